# SPDX-License-Identifier: Apache-2.0
"""Sampling row by row in float64 Python, over an explicitly sorted list: what the operators are tested against."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import accumulate


def ranked(row: Sequence[float]) -> list[int]:
    """Token ids by value, largest first; equals by id, smallest first."""
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """exp(l / t) / sum; temperature 0 gives 1 to the first of ranked()."""
    if temperature == 0:
        first = ranked(logits)[0]
        return [float(token == first) for token in range(len(logits))]
    peak = max(logits)
    terms = [math.exp((logit - peak) / temperature) for logit in logits]
    total = math.fsum(terms)
    return [term / total for term in terms]


def top_k(row: Sequence[float], k: int) -> set[int]:
    """Tokens that stay; k = 0 keeps all."""
    return set(ranked(row)[: k or len(row)])


def top_p(probs: Sequence[float], p: float) -> set[int]:
    """Tokens that stay: the shortest head of ranked() that holds p of the sum; p = 1 keeps all."""
    if p == 1:
        return set(range(len(probs)))
    order = ranked(probs)
    reached = list(accumulate(probs[token] for token in order))
    return set(order[: 1 + sum(mass < p * reached[-1] for mass in reached[:-1])])


def min_p(probs: Sequence[float], p: float) -> set[int]:
    """Tokens that stay: those of at least p times the largest."""
    floor = p * max(probs)
    return {token for token, prob in enumerate(probs) if prob >= floor}


def only(probs: Sequence[float], tokens: Collection[int]) -> list[float]:
    """Probabilities of `tokens`, summing to 1; 0 elsewhere."""
    total = math.fsum(probs[token] for token in tokens)
    return [prob / total if token in tokens else 0.0 for token, prob in enumerate(probs)]


def draw(probs: Sequence[float], uniform: float) -> int:
    """First token at which the running sum passes uniform times the total."""
    running = list(accumulate(probs))
    return next(token for token, mass in enumerate(running) if mass > uniform * running[-1])


def speculative(
    draft: Sequence[Sequence[float]],
    tokens: Sequence[int],
    target: Sequence[Sequence[float]],
    accept_u: Sequence[float],
    draw_u: Sequence[float],
) -> tuple[list[int], int, int]:
    """One request's (emitted tokens, drafts that pass on their own, drafts emitted); -1 is no draft."""
    passes = [
        token >= 0 and u * draft[i][token] < target[i][token]
        for i, (token, u) in enumerate(zip(tokens, accept_u, strict=True))
    ]
    emitted = passes.index(False) if False in passes else len(passes)
    rest = target[emitted]
    if emitted < len(tokens) and tokens[emitted] >= 0:
        rest = [max(q - p, 0.0) for q, p in zip(rest, draft[emitted], strict=True)]
    return [*tokens[:emitted], draw(rest, draw_u[emitted])], sum(passes), emitted
