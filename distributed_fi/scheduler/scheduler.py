# SPDX-License-Identifier: Apache-2.0
"""Continuous batching over a paged KV cache: which requests do what in the next step."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distributed_fi.config import check_range
from distributed_fi.plan.item import StepItem
from distributed_fi.scheduler.replica import Replica
from distributed_fi.scheduler.request import FinishReason, Request, RequestState, TokenEvent


@dataclass(frozen=True, eq=False)
class ScheduledStep:
    """One step: `items` for plan_batch, ordered by dp rank, and the request of each sample, in the plan's order."""

    index: int
    items: tuple[StepItem, ...]
    sampled: tuple[Request, ...]


class Scheduler:
    """Forms steps from requests, and turns the tokens of each step into events.

    Decoding requests come first, prompts fill what is left of the token budget in chunks. A request is admitted to
    the replica that holds the fewest pages, when pages for all its known tokens are free. A decode that finds no
    free page evicts the replica's latest arrival, which waits at the front of the queue and is prefilled again with
    the tokens it already has. Requests are admitted in the order they arrived, none overtakes. Deterministic: the
    same calls give the same steps.

    Up to `run_ahead` steps may be planned before the oldest is complete: a token that is not known yet is planned
    as -(slot + 1). `complete` is called once per step, in the order of `schedule`.

    Args:
        mesh_dp: number of replicas; the limits below hold for each.
        num_pages: KV pages.
        page_size: tokens per page.
        max_num_seqs: requests that run at the same time.
        max_batch_tokens: tokens in a step.
        max_model_len: longest prompt + answer, in tokens.
        run_ahead: steps planned and not complete at most, 1 or 2.
    Raises:
        InvalidArgumentError: a limit is below 1, or run_ahead neither 1 nor 2.
    """

    def __init__(
        self,
        *,
        mesh_dp: int,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        max_batch_tokens: int,
        max_model_len: int,
        run_ahead: int = 2,
    ):
        limits = {"num_pages": num_pages, "page_size": page_size, "max_num_seqs": max_num_seqs}
        limits["max_batch_tokens"] = max_batch_tokens
        for name, limit in {"mesh_dp": mesh_dp, **limits, "max_model_len": max_model_len}.items():
            check_range(name, limit, "an integer >= 1", limit >= 1)
        check_range("run_ahead", run_ahead, "1 or 2", run_ahead in (1, 2))
        self.replicas = [Replica(dp_rank, **limits) for dp_rank in range(mesh_dp)]
        self._max_model_len, self._run_ahead = max_model_len, run_ahead
        self._requests: dict[str, Request] = {}
        self._waiting: list[Request] = []  # oldest arrival first, so an evicted one stands before all new ones
        self._in_flight: deque[ScheduledStep] = deque()
        self._num_arrivals = self._num_steps = 0

    @property
    def has_work(self) -> bool:
        """A request is unfinished, or a step not complete."""
        return bool(self._requests or self._in_flight)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return sum(len(replica.running) for replica in self.replicas)

    @property
    def num_in_flight(self) -> int:
        """Steps scheduled and not complete."""
        return len(self._in_flight)

    def add(self, request: Request) -> None:
        """Queue a new request.

        Raises:
            InvalidArgumentError: its id belongs to an unfinished request, it was added before, prompt and one
                token exceed max_model_len, or prompt and answer need more pages than a replica has.
        """
        prompt_len = len(request.prompt)
        is_new = request.arrival < 0 and request.request_id not in self._requests
        check_range("request_id", request.request_id, "a new request, with an id that no unfinished one has", is_new)
        fits = f"at most {self._max_model_len - 1} tokens: with one more they fill max_model_len={self._max_model_len}"
        check_range("prompt_token_ids", f"{prompt_len} tokens", fits, prompt_len < self._max_model_len)
        request.max_new_tokens = min(request.params.max_tokens, self._max_model_len - prompt_len)
        num_pages, replica = self.replicas[0].num_pages_for(request.max_cached_tokens), self.replicas[0]
        value = f"{prompt_len} tokens, which need {num_pages} KV pages with max_tokens={request.params.max_tokens}"
        num_there = replica.pool.num_pages
        check_range("prompt_token_ids", value, f"at most the {num_there} pages of a replica", num_pages <= num_there)
        request.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._requests[request.request_id] = request
        self._waiting.append(request)

    def cancel(self, request_id: str) -> bool:
        """End a request at once; its tokens in flight are dropped. False if there is no such unfinished request."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request, "cancelled")
        return True

    def schedule(self) -> ScheduledStep | None:
        """Plan the next step.

        Returns:
            The step, or None: nothing to run before a step completes or a request is added, or `run_ahead` steps
            are in flight. With unfinished requests and no step in flight there always is one.
        """
        if len(self._in_flight) >= self._run_ahead:
            return None
        for replica in self.replicas:
            for request in replica.plan_running():
                insort(self._waiting, request, key=lambda r: r.arrival)
        self._admit_waiting()
        items = tuple(item for replica in self.replicas for item in replica.items)
        if not items:
            return None
        sampled = tuple(request for replica in self.replicas for request in replica.sampled)
        step = ScheduledStep(self._num_steps, items, sampled)
        self._num_steps += 1
        self._in_flight.append(step)
        return step

    def complete(self, step: ScheduledStep, tokens: Sequence[int] | npt.NDArray[np.integer]) -> list[TokenEvent]:
        """Take the tokens of the oldest step in flight.

        Args:
            step: from `schedule`.
            tokens: [S], in the order of the plan's samples; < 0 where none could be sampled (NaN logits).
        Returns:
            One event per token, in the same order, without those of requests that ended before.
        Raises:
            InvalidArgumentError: another step is the oldest, or the number of tokens is not S.
        """
        oldest = self._in_flight[0] if self._in_flight else None
        in_order = f"step {oldest.index}, the oldest in flight" if oldest else "a step in flight; there is none"
        check_range("step", step.index, in_order, step is oldest)
        wanted = f"one for each of {len(step.sampled)} samples"
        check_range("tokens", f"{len(tokens)} tokens", wanted, len(tokens) == len(step.sampled))
        self._in_flight.popleft()
        events = []
        for request, token_id in zip(step.sampled, map(int, tokens), strict=True):
            # A request that a stop token ended in the step before was already planned in this one: the token is
            # dropped. Its pages are free since then, see Replica.
            if request.state is RequestState.FINISHED:
                continue
            event = request.receive(token_id)
            events.append(event)
            if event.finish_reason is not None:
                self._finish(request, event.finish_reason)
        return events

    def _admit_waiting(self) -> None:
        # An evicted request with a token in flight is admitted once that token is known: it is part of its context.
        while self._waiting and self._waiting[0].num_pending == 0:
            request = self._waiting[0]
            fitting = [replica for replica in self.replicas if replica.can_admit(request)]
            if not fitting:
                return
            del self._waiting[0]
            min(fitting, key=lambda replica: replica.load).admit(request)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request.state is RequestState.RUNNING:
            self.replicas[request.dp_rank].release(request)
        else:
            self._waiting.remove(request)
        request.state, request.finish_reason = RequestState.FINISHED, reason
        del self._requests[request.request_id]
