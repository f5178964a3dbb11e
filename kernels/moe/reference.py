# SPDX-License-Identifier: Apache-2.0
"""Routing and the mixture of experts, token by token in float64 Python: what the operators are tested against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def softmax(row: Sequence[float]) -> list[float]:
    """exp(x) / sum."""
    terms = [math.exp(x - max(row)) for x in row]
    return [term / math.fsum(terms) for term in terms]


def sigmoid(row: Sequence[float]) -> list[float]:
    """1 / (1 + exp(-x))."""
    return [1 / (1 + math.exp(-x)) for x in row]


def ranked(scores: Sequence[float]) -> list[int]:
    """Ids by score, largest first; equals by id."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def best_groups(choice: Sequence[float], num_groups: int, topk_group: int, summands: int) -> list[int]:
    """Experts of the topk_group groups with the largest sum of their `summands` best scores."""
    size = len(choice) // num_groups
    members = [list(range(g * size, (g + 1) * size)) for g in range(num_groups)]
    best = [sum(sorted((choice[e] for e in group), reverse=True)[:summands]) for group in members]
    return sorted(e for g in ranked(best)[:topk_group] for e in members[g])


def weights(scores: Sequence[float], chosen: Sequence[int], renormalize: bool, factor: float) -> list[float]:
    """factor * scores of the chosen (/ their sum)."""
    total = math.fsum(scores[e] for e in chosen) if renormalize else 1.0
    return [factor * scores[e] / total for e in chosen]


def mixture(x: Tensor, topk_idx: Tensor, topk_weights: Tensor, expert: Callable[[int, Tensor], Tensor]) -> Tensor:
    """float64 [num_tokens, hidden_size]: sum over a token's experts of weight * expert(e, token); -1 is no expert."""
    out = torch.zeros_like(x, dtype=torch.float64)
    for token, (experts, shares) in enumerate(zip(topk_idx.tolist(), topk_weights.tolist(), strict=True)):
        for e, share in zip(experts, shares, strict=True):
            if e >= 0:
                out[token] += share * expert(e, x[token].double())
    return out
