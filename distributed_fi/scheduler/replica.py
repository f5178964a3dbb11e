# SPDX-License-Identifier: Apache-2.0
"""One dp replica: its pages, its slots, and its part of the step being planned."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence

import numpy as np

from distributed_fi.plan.item import StepItem
from distributed_fi.plan.layout import Int32Array
from distributed_fi.scheduler.page_pool import PagePool
from distributed_fi.scheduler.request import Request, RequestState


class Replica:
    """The requests that run in one replica, oldest arrival first, and what they hold.

    Pages and slots that a request gives back are handed out again at once, even while a planned step still writes
    to them: ranks run steps in order, so a later step finds the earlier one's writes done and overwrites them.
    """

    def __init__(self, dp_rank: int, *, num_pages: int, page_size: int, max_num_seqs: int, max_batch_tokens: int):
        self.dp_rank = dp_rank
        self.pool = PagePool(num_pages)
        self.running: list[Request] = []
        self.items: list[StepItem] = []
        self.sampled: list[Request] = []
        self._page_size = page_size
        self._max_batch_tokens = max_batch_tokens
        self._budget = 0
        self._free_slots = list(range(max_num_seqs))  # a heap: the smallest is taken first

    @property
    def load(self) -> tuple[int, int, int]:
        """Orders replicas for a new request: pages held, requests, dp rank."""
        return self.pool.num_used, len(self.running), self.dp_rank

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)

    def plan_running(self) -> list[Request]:
        """Begin a step: a token of each decoding request, oldest first, then the next chunk of a prompt.

        Returns:
            The requests evicted because an older one's token needed a page and none was free.
        """
        self._budget, self.items, self.sampled = self._max_batch_tokens, [], []
        evicted: list[Request] = []
        # No request goes short: one is only admitted with a token left after every other had what it could use, so at
        # most max_batch_tokens of them run, and only the last admitted can be in the middle of its prompt.
        for request in tuple(self.running):
            if request.is_prefilling or request.has_all_tokens_planned or request.state is not RequestState.RUNNING:
                continue
            if self._holds_page_for_next(request, evicted):
                self._plan_tokens(request)
        for request in self.running:
            if request.is_prefilling:
                self._plan_tokens(request)
        return evicted

    def can_admit(self, request: Request) -> bool:
        """Whether a slot, tokens of this step and pages for all known tokens are there.

        A page is left to each running request that will need another one, so that admitting a request does not
        evict it, or an older one, within the next page_size steps.
        """
        num_spare = self.pool.num_free - self.num_pages_for(len(request.prompt) + len(request.generated))
        if self._budget == 0 or not self._free_slots or num_spare < 0:
            return False
        return num_spare >= sum(other.num_pages < len(other.pages) for other in self.running)

    def admit(self, request: Request) -> None:
        """Give the request a slot and pages for all its known tokens, and plan the first chunk of them."""
        request.context = np.concatenate([request.prompt, np.array(request.generated, np.int32)])
        request.num_pages = self.num_pages_for(len(request.context))
        request.pages = np.zeros(self.num_pages_for(request.max_cached_tokens), np.int32)
        request.pages[: request.num_pages] = self.pool.allocate(request.num_pages)
        request.state, request.dp_rank = RequestState.RUNNING, self.dp_rank
        request.slot, request.num_computed = heapq.heappop(self._free_slots), 0
        insort(self.running, request, key=lambda r: r.arrival)
        self._plan_tokens(request)

    def release(self, request: Request) -> None:
        """Take the request's pages and slot back."""
        self.pool.free(request.pages[: request.num_pages].tolist())
        heapq.heappush(self._free_slots, request.slot)
        self.running.remove(request)
        request.num_pages, request.slot, request.dp_rank = 0, -1, -1

    def _holds_page_for_next(self, request: Request, evicted: list[Request]) -> bool:
        """Give the request the page of its next token, evicting the last arrivals; False if it is evicted itself.

        Whoever is evicted has arrived later, so the oldest request is only ever evicted by itself, with no other
        left; since `add` refused what the whole pool cannot hold, that does not happen and the oldest one finishes.
        """
        while self.num_pages_for(request.num_computed + 1) > request.num_pages:
            if self.pool.num_free > 0:
                request.pages[request.num_pages] = self.pool.allocate(1)[0]
                request.num_pages += 1
                continue
            victim = self.running[-1]
            self.release(victim)
            victim.state = RequestState.WAITING
            evicted.append(victim)
            if victim is request:
                return False
        return True

    def _plan_tokens(self, request: Request) -> None:
        start, slot = request.num_computed, request.slot
        tokens: Sequence[int] | Int32Array
        if request.is_prefilling:
            tokens = request.context[start : start + self._budget]
            stop = start + len(tokens)
        else:  # the newest token; where it is not known here yet, the rank finds it in the request's slot
            tokens = (-(slot + 1),) if request.num_pending else (request.generated[-1],)
            stop = start + 1
        samples = stop == request.num_tokens
        pages = request.pages[: self.num_pages_for(stop)]
        sampling = request.sampling if samples else None
        self.items.append(StepItem(self.dp_rank, slot, tokens, start, pages, sampling))
        if samples:
            self.sampled.append(request)
            request.num_pending += 1
        request.num_computed = stop
        self._budget -= stop - start
