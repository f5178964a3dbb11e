# SPDX-License-Identifier: Apache-2.0
"""Write new keys and values into a paged KV cache, and the index arrays that say where."""

from __future__ import annotations

import numpy as np
import torch

from distributed_fi.config import check_range
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.dispatch.compiled import invalid_argument
from distributed_fi.kernels.kv_cache.append_cuda import APPEND_WITH_SLOTS
from distributed_fi.kernels.kv_cache.host_array import HostInts, IntArray, host_array, host_counts, host_indptr
from distributed_fi.kernels.kv_cache.layout import PagedKVCache, check_kv_cache, split_kv_cache
from distributed_fi.kernels.kv_cache.page_table import PageTable, check_page_bound
from distributed_fi.kernels.upload import upload


def append_paged_kv_cache(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    batch_indices: HostInts,
    positions: HostInts,
    paged_kv_cache: PagedKVCache,
    kv_indices: HostInts,
    kv_indptr: HostInts,
    kv_last_page_len: HostInts,
    kv_layout: str = "NHD",
) -> None:
    """Write a batch of new keys and values into their pages, in place.

    k_cache[kv_indices[kv_indptr[b] + p // page_size], p % page_size] = append_key[i] with
    b = batch_indices[i] and p = positions[i]; values alike. Inside a step, call `plan_append` once and
    `append_with_slots` per layer instead: this is the two composed.

    Args:
        append_key: [nnz, num_kv_heads, head_dim_qk], dtype of the cache.
        append_value: [nnz, num_kv_heads, head_dim_vo], dtype of the cache.
        batch_indices: [nnz], the request of each token.
        positions: [nnz], the place of each token in its request.
        paged_kv_cache: a tuple (k, v) of [num_pages, page_size, num_kv_heads, head_dim] (NHD) or
            [num_pages, num_kv_heads, page_size, head_dim] (HND), or one tensor [num_pages, 2, ...] of these.
        kv_indices: pages of request b are kv_indices[kv_indptr[b] : kv_indptr[b + 1]].
        kv_indptr: [batch_size + 1].
        kv_last_page_len: [batch_size], tokens in each request's last page, the new ones included.
        kv_layout: "NHD" or "HND".
    Raises:
        InvalidArgumentError: shapes disagree, or a token's request, position or page lies outside; nothing is written.
    Notes: current stream. The index arrays are read on the host, so CUDA tensors among them are waited
        for. Where two tokens share a place, either may win.
    """
    k, _ = split_kv_cache(paged_kv_cache, kv_layout)
    num_pages, page_size = k.shape[:2]
    indptr = host_indptr("kv_indptr", kv_indptr)
    last_page_len = host_counts("kv_last_page_len", kv_last_page_len, len(indptr) - 1)
    fits = bool((last_page_len <= page_size).all())
    check_range("kv_last_page_len", last_page_len.tolist(), f"values <= page_size={page_size}", fits)
    slots = plan_append(batch_indices, positions, kv_indices, indptr, page_size, num_pages, k.device)
    append_with_slots(append_key, append_value, slots, paged_kv_cache, kv_layout)


def plan_append(
    batch_indices: HostInts,
    positions: HostInts,
    kv_indices: HostInts,
    kv_indptr: HostInts,
    page_size: int,
    num_pages: int,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Slots of new tokens, checked once per step: slot = page * page_size + position % page_size.

    Args:
        batch_indices, positions, kv_indices, kv_indptr: as for `append_paged_kv_cache`.
        page_size, num_pages: of the cache.
        device: where the slots are wanted.
    Returns:
        int64 [nnz] on `device`, for `append_with_slots` of every layer.
    Raises:
        InvalidArgumentError: a token's request, position or page lies outside.
    """
    check_range("page_size", page_size, "an integer >= 1", page_size >= 1)
    indptr = host_indptr("kv_indptr", kv_indptr)
    indices = host_array("kv_indices", kv_indices)
    request, position = host_array("batch_indices", batch_indices), host_array("positions", positions)
    check_range(
        "kv_indices", f"{len(indices)} pages", f"at least kv_indptr[-1]={indptr[-1]} pages", len(indices) >= indptr[-1]
    )
    check_range(
        "positions", f"{len(position)} values", f"{len(request)} values, one per token", len(position) == len(request)
    )
    _check_within("batch_indices", request, len(indptr) - 1)
    _check_within("positions", position, None)
    table = PageTable(
        page_indices=indices, first_page=indptr[:-1], num_pages=np.diff(indptr), page_size=page_size, name="kv_indices"
    )
    page, offset = table.locate(request, position)
    check_page_bound("kv_indices", int(page.max(initial=-1)), num_pages)
    return upload(page * page_size + offset, device)


def append_with_slots(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    slots: torch.Tensor,
    paged_kv_cache: PagedKVCache,
    kv_layout: str = "NHD",
    *,
    backend: str = "auto",
) -> None:
    """Write keys and values into planned slots, in place: one kernel of our own on CUDA, two indexed writes elsewhere.

    Args:
        append_key, append_value, paged_kv_cache, kv_layout: as for `append_paged_kv_cache`.
        slots: int64 [nnz] from `plan_append`, for this cache's page size and number of pages.
        backend: "cuda" (our kernel), "torch", or "auto": the kernel where it can be built and head dims are contiguous.
    Raises:
        InvalidArgumentError: shapes, dtypes or devices disagree, or a cache's head dimension is not contiguous.
        UnsupportedError: the named backend cannot serve this, or a graph is captured before the kernel's first use.
    Notes: current stream; graph-capturable. On CUDA a slot outside the cache trips a device-side assertion.
    """
    k, v = split_kv_cache(paged_kv_cache, kv_layout)
    launcher = APPEND_WITH_SLOTS.pick(backend, k, v, append_key, append_value)
    if launcher is None:
        _torch_append(append_key, append_value, slots, k, v, kv_layout)
        return
    try:
        launcher.function(append_key, append_value, slots, k, v, launcher.pdl)
    except (TypeError, ValueError) as error:
        _check(k, v, append_key, append_value, slots, kv_layout)
        raise invalid_argument(error) from None


def _torch_append(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    slots: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_layout: str,
) -> None:
    if not _surely_fit(k, v, append_key, append_value, slots):
        _check(k, v, append_key, append_value, slots, kv_layout)
    page_size = k.shape[1]
    for cache, tokens in ((k, append_key.detach()), (v, append_value.detach())):
        if cache.is_contiguous():
            cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, tokens)
        else:
            cache.index_put_((slots // page_size, slots % page_size), tokens)


def _surely_fit(
    k: torch.Tensor, v: torch.Tensor, append_key: torch.Tensor, append_value: torch.Tensor, slots: torch.Tensor
) -> bool:
    """Whether `_check`, which alone decides, need not be asked: cheaper, for every layer of every step."""
    if not (isinstance(slots, torch.Tensor) and slots.dim() == 1 and slots.dtype == torch.int64):
        return False
    return (
        k.shape[:3] == v.shape[:3]
        and k.shape[1] >= 1
        and k.stride(-1) == v.stride(-1) == 1
        and k.dtype == v.dtype
        and k.device == v.device == slots.device
        and _surely_fits(k, append_key, len(slots))
        and _surely_fits(v, append_value, len(slots))
    )


def _surely_fits(cache: torch.Tensor, tokens: object, nnz: int) -> bool:
    return (
        isinstance(tokens, torch.Tensor)
        and tokens.shape == (nnz, *cache.shape[2:])
        and tokens.dtype == cache.dtype
        and tokens.device == cache.device
    )


def _check(
    k: torch.Tensor,
    v: torch.Tensor,
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    slots: torch.Tensor,
    kv_layout: str,
) -> None:
    """Raise InvalidArgumentError for the first tensor that does not fit."""
    dims = Dims()
    check_kv_cache(k, v, kv_layout, dims, dtype=k.dtype, device=k.device)
    for name, tokens, head_dim in (
        ("append_key", append_key, "head_dim_qk"),
        ("append_value", append_value, "head_dim_vo"),
    ):
        check_tensor(name, tokens, ("nnz", "num_kv_heads", head_dim), dims, dtype=k.dtype, device=k.device)
    check_tensor("slots", slots, ("nnz",), dims, dtype=torch.int64, device=k.device)


def get_batch_indices_positions(
    append_indptr: HostInts, seq_lens: HostInts, nnz: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Request and position of each appended token: the last tokens of each request.

    Token j of request b is row append_indptr[b] + j, at position seq_lens[b] - appended[b] + j.

    Args:
        append_indptr: [batch_size + 1], tokens appended before each request.
        seq_lens: [batch_size], tokens of each request after the append.
        nnz: append_indptr[-1].
    Returns:
        (batch_indices, positions), int32 [nnz] each, on append_indptr's device.
    Raises:
        InvalidArgumentError: sizes disagree, or a request appends more tokens than it has.
    Notes: computed on the host; CUDA tensors are waited for.
    """
    indptr = host_indptr("append_indptr", append_indptr)
    lens = host_counts("seq_lens", seq_lens, len(indptr) - 1)
    check_range("nnz", nnz, f"append_indptr[-1]={indptr[-1]}", nnz == indptr[-1])
    appended = np.diff(indptr)
    check_range("seq_lens", lens.tolist(), f"at least the appended {appended.tolist()}", bool((lens >= appended).all()))
    request = np.repeat(np.arange(len(lens)), appended)
    position = np.arange(nnz) + (lens - indptr[1:])[request]
    device = append_indptr.device if isinstance(append_indptr, torch.Tensor) else "cpu"
    return _int32(request, device), _int32(position, device)


def get_seq_lens(kv_indptr: torch.Tensor, kv_last_page_len: torch.Tensor, page_size: int) -> torch.Tensor:
    """Tokens of each request: (pages - 1) * page_size + tokens in the last page, which is 0 where there is no page.

    Args:
        kv_indptr: [batch_size + 1], pages before each request.
        kv_last_page_len: [batch_size].
        page_size: tokens per page.
    Returns:
        [batch_size], dtype and device of kv_indptr; the device is not waited for.
    Raises:
        InvalidArgumentError: shapes disagree.
    """
    check_range("page_size", page_size, "an integer >= 1", page_size >= 1)
    check_tensor("kv_indptr", kv_indptr, ("batch_size + 1",), Dims())
    check_tensor("kv_last_page_len", kv_last_page_len, (len(kv_indptr) - 1,), Dims(), device=kv_indptr.device)
    return (kv_indptr.diff() - 1).clamp(min=0) * page_size + kv_last_page_len


def _check_within(name: str, values: IntArray, stop: int | None) -> None:
    wanted = "values >= 0" if stop is None else f"values in [0, {stop})"
    if values.size and (values.min() < 0 or (stop is not None and values.max() >= stop)):
        bad = values[(values < 0) | (values >= (np.inf if stop is None else stop))][0]
        raise InvalidArgumentError(name, int(bad), wanted)


def _int32(array: IntArray, device: str | torch.device) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int32)).to(device)


APPEND_WITH_SLOTS.register(_torch_append)
