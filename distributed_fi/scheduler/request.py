# SPDX-License-Identifier: Apache-2.0
"""One request on its way through the scheduler, and the tokens it sends back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypeAlias

import numpy as np

from distributed_fi.config import SamplingParams, check_range
from distributed_fi.plan.item import SampleSpec
from distributed_fi.plan.layout import Int32Array

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]


class RequestState(Enum):
    """WAITING for a place (also after an eviction), RUNNING in a replica, or FINISHED."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token of a request, to be sent to whoever asked.

    `index` counts the request's generated tokens from 0. The last event carries the finish_reason: "stop" with the
    stop token itself, "length" with the last token there is room for, "error" with token_id -1, which is no token.
    """

    request_id: str
    token_id: int
    index: int
    finish_reason: FinishReason | None


@dataclass(eq=False, slots=True)
class Request:
    """A prompt and how to continue it; what is not an argument belongs to the scheduler.

    Args:
        request_id: name of the request, unique among the unfinished ones.
        prompt_token_ids: [>= 1], in [0, 2^31).
        params: how tokens are chosen and when the request ends; its seed is not looked at.
        seed: keys the random numbers, in [0, 2^63).
        eos_token_ids: the model's own end tokens.
    Raises:
        InvalidArgumentError: the prompt is empty, a token id or the seed out of range.
    """

    request_id: str
    prompt_token_ids: Sequence[int] | Int32Array
    params: SamplingParams
    seed: int
    eos_token_ids: Sequence[int] = ()

    state: RequestState = field(default=RequestState.WAITING, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    generated: list[int] = field(default_factory=list, init=False)  # known tokens after the prompt
    num_pending: int = field(default=0, init=False)  # tokens sampled in steps that are not complete yet
    max_new_tokens: int = field(default=0, init=False)  # by max_tokens and the context's length
    arrival: int = field(default=-1, init=False)  # number given when it was added; -1 before

    context: Int32Array = field(init=False)  # known tokens when the request was admitted: what is prefilled
    num_computed: int = field(default=0, init=False)  # tokens in the cache once all planned steps have run
    dp_rank: int = field(default=-1, init=False)
    slot: int = field(default=-1, init=False)
    pages: Int32Array = field(init=False)  # [max_pages], of which num_pages are held
    num_pages: int = field(default=0, init=False)

    prompt: Int32Array = field(init=False)
    sampling: SampleSpec = field(init=False)
    stop_token_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        tokens = np.asarray(self.prompt_token_ids)
        check_range("prompt_token_ids", "[]", "at least one token", tokens.size > 0)
        is_int_vector = tokens.ndim == 1 and tokens.dtype.kind in "iu"
        in_range = is_int_vector and tokens.min() >= 0 and tokens.max() < 2**31
        check_range("prompt_token_ids", self.prompt_token_ids, "a sequence of integers in [0, 2^31)", bool(in_range))
        check_range("seed", self.seed, "an integer in [0, 2^63)", 0 <= self.seed < 2**63)
        self.prompt = self.context = tokens.astype(np.int32)
        self.pages = np.zeros(0, np.int32)
        p = self.params
        self.sampling = SampleSpec(p.temperature, p.top_k, p.top_p, p.min_p, self.seed)
        self.stop_token_ids = frozenset(p.stop_token_ids) | frozenset(() if p.ignore_eos else self.eos_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer, those not yet known included."""
        return len(self.prompt) + len(self.generated) + self.num_pending

    @property
    def max_cached_tokens(self) -> int:
        """Most tokens that it ever has in the cache: all but the last one, which nothing attends from."""
        return len(self.prompt) + self.max_new_tokens - 1

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < len(self.context)

    @property
    def has_all_tokens_planned(self) -> bool:
        return len(self.generated) + self.num_pending >= self.max_new_tokens

    def receive(self, token_id: int) -> TokenEvent:
        """Take the token of the oldest step that sampled one, and finish if it is the last.

        Args:
            token_id: < 0 says that no token could be sampled (NaN logits).
        """
        self.num_pending -= 1
        index = len(self.generated)
        if token_id < 0:
            return TokenEvent(self.request_id, -1, index, "error")
        self.generated.append(token_id)
        if token_id in self.stop_token_ids:
            return TokenEvent(self.request_id, token_id, index, "stop")
        return TokenEvent(self.request_id, token_id, index, "length" if index + 1 >= self.max_new_tokens else None)
