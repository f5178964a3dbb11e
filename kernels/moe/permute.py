# SPDX-License-Identifier: Apache-2.0
"""Tokens brought into the order of their experts, and back: what stands on both sides of a grouped GEMM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class ExpertOrder:
    """The slots (token, choice) of a batch sorted by expert, and within an expert by token, then by choice.

    `m_indptr` int32 [num_experts + 1]: expert e has the sorted rows m_indptr[e] to m_indptr[e + 1]; rows from
    m_indptr[-1] on are slots without an expert. `slot_idx` int32 [num_tokens * top_k]: slot of each row,
    token * top_k + choice. `row_idx` int32 [num_tokens, top_k]: row of each slot, the inverse of `slot_idx`.
    """

    m_indptr: Tensor
    slot_idx: Tensor
    row_idx: Tensor

    @property
    def num_tokens(self) -> int:
        return self.row_idx.shape[0]

    @property
    def top_k(self) -> int:
        return self.row_idx.shape[1]

    @property
    def counts(self) -> Tensor:
        """Rows of each expert, int32 [num_experts]."""
        return self.m_indptr.diff()

    @property
    def token_idx(self) -> Tensor:
        """Token of each row, int32 [num_tokens * top_k]."""
        return self.slot_idx // self.top_k


def sort_by_expert(topk_idx: Tensor, num_experts: int) -> ExpertOrder:
    """Order of the slots of a batch by expert.

    slot_idx = stable argsort of topk_idx, flattened;  m_indptr[e] = number of slots whose expert is below e

    Args:
        topk_idx: [num_tokens, top_k >= 1], int32 or int64: the expert of each slot, in [0, num_experts), or -1 for
            a slot that has none here (an expert of another rank).
        num_experts: experts to sort by.
    Returns:
        ExpertOrder; the same for the same topk_idx on every device.
    Raises:
        InvalidArgumentError: a shape or dtype that does not fit; on the CPU, an expert out of range. On CUDA ids
            are not looked at, since that would synchronise: one out of range counts as -1.
    Notes: no synchronisation; graph-capturable; deterministic.
    """
    dims = Dims()
    check_tensor("topk_idx", topk_idx, ("num_tokens", "top_k"), dims, dtype=INTS)
    if dims["top_k"] == 0:
        raise InvalidArgumentError("topk_idx", list(topk_idx.shape), "[num_tokens, top_k >= 1]")
    if not isinstance(num_experts, int) or num_experts < 1:
        raise InvalidArgumentError("num_experts", num_experts, "an integer >= 1")
    none = (topk_idx < 0) | (topk_idx >= num_experts)
    if not topk_idx.is_cuda:
        strange = none & (topk_idx != -1)
        if strange.any():
            worst = topk_idx[strange].tolist()[0]
            raise InvalidArgumentError("topk_idx", worst, f"experts in [0, num_experts={num_experts}), or -1")
    # Slots without an expert sort behind all that have one.
    experts, slots = topk_idx.long().masked_fill(none, num_experts).flatten().sort(stable=True)
    m_indptr = torch.searchsorted(experts, torch.arange(num_experts + 1, device=experts.device), out_int32=True)
    rows = torch.arange(slots.shape[0], dtype=torch.int32, device=slots.device)
    row_idx = torch.empty_like(rows).scatter_(0, slots, rows).view(topk_idx.shape)
    return ExpertOrder(m_indptr, slots.int(), row_idx)


def moe_permute(hidden_states: Tensor, order: ExpertOrder) -> Tensor:
    """The tokens' rows, one per slot, in the order of their experts.

    out[r] = hidden_states[order.slot_idx[r] // top_k]

    Args:
        hidden_states: [num_tokens, hidden_size], any dtype (fp8 and its scales are permuted alike).
        order: of the batch, from `sort_by_expert`.
    Returns:
        [num_tokens * top_k, hidden_size]; expert e owns the rows from order.m_indptr[e] to order.m_indptr[e + 1].
    Raises:
        InvalidArgumentError: a shape or device that does not fit the order.
    Notes: no synchronisation; graph-capturable; deterministic.
    """
    shape = (order.num_tokens, "hidden_size")
    check_tensor("hidden_states", hidden_states, shape, Dims(), device=order.row_idx.device)
    if hidden_states.element_size() > 1:
        return hidden_states.index_select(0, order.token_idx)
    # Not every device gathers eight-bit floats; any gathers bytes.
    return hidden_states.view(torch.uint8).index_select(0, order.token_idx).view(hidden_states.dtype)


def moe_unpermute(
    expert_out: Tensor,
    order: ExpertOrder,
    topk_weights: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Each token's sum over its experts' results.

    out[t] = sum over j of topk_weights[t, j] * expert_out[order.row_idx[t, j]], slots without an expert left out

    Args:
        expert_out: [num_tokens * top_k, hidden_size], float32, bfloat16 or float16, in the order of `moe_permute`;
            rows of slots without an expert may hold anything.
        order: of the batch, from `sort_by_expert`.
        topk_weights: [num_tokens, top_k], float32; None adds the results as they are.
        out_dtype: of the result; None is expert_out's. float32 leaves a sum over ranks to be rounded once.
    Returns:
        [num_tokens, hidden_size] in out_dtype; zero for a token without an expert.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit the order.
    Notes: added up in float32 in the order of the choices and rounded once, so a token's result does not depend on
        its batch. No synchronisation; graph-capturable; deterministic.
    """
    device = order.row_idx.device
    check_tensor(
        "expert_out", expert_out, (order.slot_idx.shape[0], "hidden_size"), Dims(), dtype=FLOATS, device=device
    )
    if topk_weights is not None:
        shape = (order.num_tokens, order.top_k)
        check_tensor("topk_weights", topk_weights, shape, Dims(), dtype=torch.float32, device=device)
    has_expert = order.row_idx < order.m_indptr[-1]
    total = torch.zeros(order.num_tokens, expert_out.shape[1], dtype=torch.float32, device=device)
    for choice in range(order.top_k):
        rows = expert_out.index_select(0, order.row_idx[:, choice]).float()
        if topk_weights is not None:
            rows = rows * topk_weights[:, choice, None]
        total += rows.masked_fill(~has_expert[:, choice, None], 0.0)
    return total.to(out_dtype or expert_out.dtype)
