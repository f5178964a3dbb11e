# SPDX-License-Identifier: Apache-2.0
"""Attention over a paged KV cache for any mix of prefill and decode, planned once per batch."""

from __future__ import annotations

from typing import Any, Unpack, overload

import torch

from distributed_fi.errors import InvalidArgumentError, PlanError
from distributed_fi.kernels.attention import torch_backend
from distributed_fi.kernels.attention.arguments import (
    batch_from_block_table,
    batch_from_indptr,
    check_call,
    is_indptr_form,
)
from distributed_fi.kernels.attention.plan import AttentionPlan
from distributed_fi.kernels.attention.problem import Variant, to_device
from distributed_fi.kernels.attention.torch_backend import BoundAttention, TorchAttention
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.dispatch.candidates import Candidate, check_backend, choose, register
from distributed_fi.kernels.kv_cache.host_array import HostInts
from distributed_fi.kernels.kv_cache.layout import PagedKVCache, check_kv_cache, check_kv_layout, split_kv_cache

register(Candidate("batch_attention", "torch", TorchAttention, torch_backend.why_not))


class BatchAttention:
    """Attention of a batch of requests, each with one or more new tokens, over its paged KV cache.

    out[i] = softmax(cap(sm_scale * q[i] @ K.T) + mask) @ V and lse[i] = log2(sum(exp(those logits))),
    with K, V the first kv_len tokens of row i's request, gathered through its pages. plan() takes the
    lengths and pages of a batch, run() its tensors; one plan serves every layer, until the next plan().

    Args:
        kv_layout: "NHD", pages are [page_size, num_kv_heads, head_dim], or "HND", with the first two swapped.
        device: of the tensors; None takes them where they are, and sizes the work for a GPU where there is one.
        backend: "auto" or a name from `distributed_fi.kernels.dispatch.candidates`; today "torch".
    Raises:
        InvalidArgumentError: an unknown kv_layout or device.
        UnsupportedError: an unknown backend.
    Notes: current stream; deterministic. The first run after a plan copies the plan to the device; later ones neither
        copy nor wait, so a CUDA graph may capture them, and is valid until the next plan(). No gradients.
    """

    def __init__(self, kv_layout: str = "NHD", device: str | torch.device | None = None, backend: str = "auto"):
        check_kv_layout(kv_layout)
        check_backend("batch_attention", backend)
        self._kv_layout, self._backend = kv_layout, backend
        self._device = None if device is None else to_device("device", device)
        self._planned: TorchAttention | None = None
        self._bound: dict[tuple[object, ...], BoundAttention] = {}

    @overload
    def plan(
        self,
        qo_offsets: HostInts,
        kv_lens: HostInts,
        kv_block_table: HostInts,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        *,
        dtype_q: torch.dtype | str = ...,
        dtype_kv: torch.dtype | str | None = ...,
        dtype_o: torch.dtype | str | None = ...,
        page_size: int | None = ...,
        **variant: Unpack[Variant],
    ) -> AttentionPlan: ...

    @overload
    def plan(
        self,
        qo_indptr: HostInts,
        kv_indptr: HostInts,
        kv_indices: HostInts,
        kv_len_arr: HostInts,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        causal: bool = ...,
        sm_scale: float | None = ...,
        logits_soft_cap: float | None = ...,
        q_data_type: torch.dtype | str = ...,
        kv_data_type: torch.dtype | str | None = ...,
        *,
        window_left: int = ...,
    ) -> AttentionPlan: ...

    def plan(self, *args: Any, **kwargs: Any) -> AttentionPlan:
        """Take the lengths and pages of a batch; replaces the plan before.

        Two forms; the type of the fourth argument, or the names, tell them apart:

            plan(qo_offsets, kv_lens, kv_block_table, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo, *,
                 dtype_q=bfloat16, dtype_kv=dtype_q, dtype_o=dtype_q, page_size=None, **variant)
            plan(qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo,
                 page_size, causal=False, sm_scale=None, logits_soft_cap=None, q_data_type=bfloat16,
                 kv_data_type=q_data_type, *, window_left=-1)

        Integer arrays are numpy, CPU tensors or lists; a CUDA tensor is copied, which waits for the device.

        Args:
            qo_offsets, qo_indptr: [batch_size + 1], query rows before each request; 0 rows are allowed.
            kv_lens, kv_len_arr: [batch_size], tokens in the cache, the new ones included; 0 is allowed.
            kv_block_table: [batch_size, max_pages], padded: entries past a request's last page are ignored
                (-1, say); or [total_pages], packed: ceil(kv_len / page_size) pages of each request in turn.
            kv_indptr, kv_indices: pages of request r are kv_indices[kv_indptr[r] : kv_indptr[r + 1]].
            page_size: tokens per page; None takes the cache's at the first run, and checks the pages then.
            causal: key kv_idx is visible iff kv_idx <= kv_len - qo_len + qo_idx. Off by default in both forms.
            sm_scale: None is 1 / sqrt(head_dim_qk).
            logits_soft_cap: c > 0 replaces a logit x by c * tanh(x / c); 0 or None is off.
            window_left: key kv_idx is visible iff kv_idx >= kv_len - qo_len + qo_idx - window_left; -1 is off.
                Pages that no window reaches are ignored.
        Returns:
            The plan, printable.
        Raises:
            InvalidArgumentError: an argument is missing, or lengths, pages or sizes do not fit together.
            UnsupportedError: an unknown variant argument, or no backend for this problem.
        """
        make_batch = batch_from_indptr if is_indptr_form(args, kwargs) else batch_from_block_table
        try:
            batch = make_batch(self._kv_layout, *args, **kwargs)
        except TypeError:
            check_call(make_batch, args, kwargs)
            raise
        candidate = choose("batch_attention", batch.problem, backend=self._backend)
        self._planned = candidate.make(batch, device_type=self._device_type())
        self._bound = {}
        return self._planned.plan

    def run(
        self,
        q: torch.Tensor,
        kv_cache: PagedKVCache,
        *,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend with the planned batch.

        Args:
            q: [num_tokens, num_qo_heads, head_dim_qk], dtype_q.
            kv_cache: dtype_kv; a tuple (k, v) of [num_pages, page_size, num_kv_heads, head_dim] (NHD) or
                [num_pages, num_kv_heads, page_size, head_dim] (HND), with head_dim_qk and head_dim_vo; or one
                tensor [num_pages, 2, ...] of these, where both head dims are equal.
            out: [num_tokens, num_qo_heads, head_dim_vo], dtype_o; None allocates it.
            lse: [num_tokens, num_qo_heads], float32; None allocates it.
        Returns:
            (out, lse); lse is the base-2 logarithm. A row that sees no key has out 0 and lse -inf.
        Raises:
            InvalidArgumentError: a tensor disagrees with the plan, or a page lies outside the cache.
            PlanError: plan() was not called.
        """
        planned = self._planned
        if planned is None:
            raise PlanError("BatchAttention.run: call plan() before run()")
        if not isinstance(q, torch.Tensor):
            raise InvalidArgumentError("q", type(q).__name__, "a torch.Tensor")
        k, v = split_kv_cache(kv_cache, self._kv_layout)
        caches = (k.shape, k.stride(), k.dtype, k.device, v.shape, v.stride(), v.dtype, v.device)
        signature = (q.shape, q.dtype, q.device, *caches)
        bound = self._bound.get(signature)
        if bound is None:
            self._check(planned.plan, q, k, v)
            bound = self._bound[signature] = planned.bind(k, v)
        _check_outputs(planned.plan, q, out, lse)
        return bound.run(q, k, v, out, lse)

    def _device_type(self) -> str:
        if self._device is not None:
            return self._device.type
        return "cuda" if torch.cuda.is_available() else "cpu"

    def _check(self, plan: AttentionPlan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        problem, batch = plan.batch.problem, plan.batch
        dims = Dims(
            num_tokens=batch.num_tokens,
            num_qo_heads=problem.num_qo_heads,
            num_kv_heads=problem.num_kv_heads,
            head_dim_qk=problem.head_dim_qk,
            head_dim_vo=problem.head_dim_vo,
        )
        if batch.page_size is not None:
            dims["page_size"] = batch.page_size
        shape = ("num_tokens", "num_qo_heads", "head_dim_qk")
        device = self._device
        if device is not None and device.index is None and device.type == q.device.type:
            device = q.device  # "cuda" is any of them
        check_tensor("q", q, shape, dims, dtype=problem.dtype_q, device=device)
        check_kv_cache(k, v, self._kv_layout, dims, dtype=problem.dtype_kv, device=q.device)


def _check_outputs(plan: AttentionPlan, q: torch.Tensor, out: torch.Tensor | None, lse: torch.Tensor | None) -> None:
    problem = plan.batch.problem
    dims = Dims(num_tokens=plan.batch.num_tokens, num_qo_heads=problem.num_qo_heads, head_dim_vo=problem.head_dim_vo)
    if out is not None:
        shape = ("num_tokens", "num_qo_heads", "head_dim_vo")
        check_tensor("out", out, shape, dims, dtype=problem.dtype_o, device=q.device)
    if lse is not None:
        check_tensor("lse", lse, ("num_tokens", "num_qo_heads"), dims, dtype=torch.float32, device=q.device)
