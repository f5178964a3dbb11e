# SPDX-License-Identifier: Apache-2.0
"""What the scheduler says about one request's part in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distributed_fi.plan.layout import Int32Array


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How one request's tokens are sampled: SamplingParams' fields, with the seed drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class StepItem:
    """One request's part in a step: the tokens it appends, and whether one is sampled after them.

    Args:
        dp_rank: replica that holds the request.
        slot: the request's place in that replica; its last sampled token is kept there.
        token_ids: [>= 1], tokens to append; -(slot + 1) is the last token sampled in that slot.
        start: tokens of the request already in the cache.
        pages: [ceil((start + len(token_ids)) / page_size)], page ids in the order of positions.
        sampling: None where this chunk does not reach the end of the prompt.
    """

    dp_rank: int
    slot: int
    token_ids: Sequence[int] | Int32Array
    start: int
    pages: Sequence[int] | Int32Array
    sampling: SampleSpec | None
