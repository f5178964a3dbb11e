# SPDX-License-Identifier: Apache-2.0
"""The two ways to describe a batch, block table and indptr/indices, brought to one form and checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch

from distributed_fi.config import check_range
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.attention.plan import AttentionBatch
from distributed_fi.kernels.attention.problem import AttentionProblem, check_variant, is_int, to_dtype
from distributed_fi.kernels.kv_cache.host_array import (
    HostInts,
    IntArray,
    host_array,
    host_counts,
    host_indptr,
)

_INDPTR_NAMES = frozenset(("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr", "q_data_type", "kv_data_type"))


def is_indptr_form(args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    """Whether a plan call is of the indptr/indices form: its 4th positional argument is an array, or a name says so."""
    if len(args) >= 4:
        return isinstance(args[3], (np.ndarray, torch.Tensor, Sequence)) and not isinstance(args[3], str)
    return not _INDPTR_NAMES.isdisjoint(kwargs)


def check_call(
    make_batch: Callable[..., AttentionBatch], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> None:
    """Raise InvalidArgumentError where the arguments of plan() are not those of its form, `make_batch`."""
    parameters = list(signature(make_batch).parameters.values())[1:]  # the first is not plan()'s
    parameters = [parameter for parameter in parameters if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD]
    by_place = [parameter.name for parameter in parameters]
    if len(args) > len(by_place):
        wanted = f"at most {len(by_place)} without a name: {', '.join(by_place)}"
        raise InvalidArgumentError("plan", f"{len(args)} arguments", wanted)
    placed = by_place[: len(args)]
    for name in placed:
        if name in kwargs:
            raise InvalidArgumentError(name, "two values", "one value, by place or by name")
    required = [parameter.name for parameter in parameters if parameter.default is Parameter.empty]
    if missing := [name for name in required if name not in placed and name not in kwargs]:
        raise InvalidArgumentError(", ".join(missing), "nothing", "a value")


def batch_from_block_table(
    kv_layout: str,
    /,
    qo_offsets: HostInts,
    kv_lens: HostInts,
    kv_block_table: HostInts,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim_qk: int,
    head_dim_vo: int,
    *,
    dtype_q: torch.dtype | str = torch.bfloat16,
    dtype_kv: torch.dtype | str | None = None,
    dtype_o: torch.dtype | str | None = None,
    page_size: int | None = None,
    **variant: Any,
) -> AttentionBatch:
    """The block-table form of BatchAttention.plan."""
    check_variant(variant)
    offsets = host_indptr("qo_offsets", qo_offsets)
    lens = host_counts("kv_lens", kv_lens, len(offsets) - 1)
    table = host_array("kv_block_table", kv_block_table, (1, 2))
    if table.ndim == 2 and len(table) != len(lens):
        raise InvalidArgumentError("kv_block_table", f"{len(table)} rows", f"{len(lens)} rows, one per request")
    if table.ndim == 1 and (table < 0).any():
        raise InvalidArgumentError("kv_block_table", int(table.min()), "page indices >= 0 in a packed table")
    problem = AttentionProblem(
        num_qo_heads=num_qo_heads,
        num_kv_heads=num_kv_heads,
        head_dim_qk=head_dim_qk,
        head_dim_vo=head_dim_vo,
        dtype_q=to_dtype("dtype_q", dtype_q),
        dtype_kv=to_dtype("dtype_kv", dtype_q if dtype_kv is None else dtype_kv),
        dtype_o=to_dtype("dtype_o", dtype_q if dtype_o is None else dtype_o),
        kv_layout=kv_layout,
        **variant,
    )
    return _batch(problem, offsets, lens, table, None, page_size, "kv_block_table")


def batch_from_indptr(
    kv_layout: str,
    /,
    qo_indptr: HostInts,
    kv_indptr: HostInts,
    kv_indices: HostInts,
    kv_len_arr: HostInts,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim_qk: int,
    head_dim_vo: int,
    page_size: int,
    causal: bool = False,
    sm_scale: float | None = None,
    logits_soft_cap: float | None = None,
    q_data_type: torch.dtype | str = torch.bfloat16,
    kv_data_type: torch.dtype | str | None = None,
    **variant: Any,
) -> AttentionBatch:
    """The indptr/indices form of BatchAttention.plan."""
    check_variant(variant)
    offsets = host_indptr("qo_indptr", qo_indptr)
    lens = host_counts("kv_len_arr", kv_len_arr, len(offsets) - 1)
    indptr = host_indptr("kv_indptr", kv_indptr, len(lens))
    indices = host_array("kv_indices", kv_indices)
    if len(indices) < indptr[-1]:
        raise InvalidArgumentError("kv_indices", f"{len(indices)} pages", f"at least kv_indptr[-1]={indptr[-1]} pages")
    check_range("page_size", page_size, "an integer >= 1", page_size is not None)
    problem = AttentionProblem(
        num_qo_heads=num_qo_heads,
        num_kv_heads=num_kv_heads,
        head_dim_qk=head_dim_qk,
        head_dim_vo=head_dim_vo,
        dtype_q=to_dtype("q_data_type", q_data_type),
        dtype_kv=to_dtype("kv_data_type", q_data_type if kv_data_type is None else kv_data_type),
        dtype_o=to_dtype("q_data_type", q_data_type),
        kv_layout=kv_layout,
        causal=causal,
        sm_scale=sm_scale,
        logits_soft_cap=logits_soft_cap,
        **variant,
    )
    return _batch(problem, offsets, lens, indices, indptr, page_size, "kv_indices")


def _batch(
    problem: AttentionProblem,
    qo_offsets: IntArray,
    kv_lens: IntArray,
    block_table: IntArray,
    kv_indptr: IntArray | None,
    page_size: int | None,
    table_name: str,
) -> AttentionBatch:
    check_range("page_size", page_size, "an integer >= 1", page_size is None or (is_int(page_size) and page_size >= 1))
    return AttentionBatch(
        problem=problem,
        qo_offsets=qo_offsets,
        kv_lens=kv_lens,
        block_table=block_table,
        kv_indptr=kv_indptr,
        page_size=page_size,
        table_name=table_name,
    )
