# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts operators: routing, permutation by expert and back."""

from __future__ import annotations

from distributed_fi.kernels.moe.permute import ExpertOrder, moe_permute, moe_unpermute, sort_by_expert
from distributed_fi.kernels.moe.routing import grouped_topk, topk_sigmoid, topk_softmax

__all__ = [
    "ExpertOrder",
    "grouped_topk",
    "moe_permute",
    "moe_unpermute",
    "sort_by_expert",
    "topk_sigmoid",
    "topk_softmax",
]
