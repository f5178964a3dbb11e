# SPDX-License-Identifier: Apache-2.0
"""Random traffic through scheduler, plan and buffer, run by ranks that are a dictionary and a hash."""

import math
import zlib
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_fi.config import SamplingParams
from distributed_fi.plan.batch import plan_batch
from distributed_fi.plan.layout import StepPlan, capacity_words, decode, encode, slice_replica
from distributed_fi.scheduler.request import Request, RequestState, TokenEvent
from distributed_fi.scheduler.scheduler import ScheduledStep, Scheduler

PROPERTY = settings(deadline=None, derandomize=True, max_examples=150)
VOCAB_SIZE = 40
EOS = (0, 1)


def next_token(history: list[int], seed: int, position: int) -> int:
    """The token a model would sample: a hash of all it attends to; one in 40 comes out as NaN (-1)."""
    text = np.array([*history, seed, position], np.int64).tobytes()
    return zlib.crc32(text) % (VOCAB_SIZE + 1) - 1


def answer_alone(request: Request, max_model_len: int) -> list[TokenEvent]:
    """What the request gets when it is served alone, from its definition."""
    history, events = list(request.prompt_token_ids), []
    stops = set(request.params.stop_token_ids) | (set() if request.params.ignore_eos else set(EOS))
    while True:
        token = next_token(history, request.seed, len(history))
        history.append(token)
        is_full = len(events) + 1 == request.params.max_tokens or len(history) == max_model_len
        reason = "error" if token < 0 else "stop" if token in stops else "length" if is_full else None
        events.append(TokenEvent(request.request_id, token, len(events), reason))
        if reason is not None:
            return events


@dataclass
class SimulatedRank:
    """Runs the plans of one replica in order: (page, offset) -> (position, token), slot -> last sampled token."""

    page_size: int
    cache: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    last_tokens: dict[int, int] = field(default_factory=dict)

    def run(self, plan: StepPlan) -> list[int]:
        for request in range(plan.num_requests):
            self.append(plan, request)
        tokens = []
        for sample, request in enumerate(plan.sample_requests.tolist()):
            assert plan.sample_rows[sample] == plan.qo_indptr[request + 1] - 1
            history = self.attend(plan, request)
            seed = int(plan.seeds[sample].copy().view(np.int64)[0])
            tokens.append(next_token(history, seed, int(plan.sample_positions[sample])))
        for token, request in zip(tokens, plan.sample_requests.tolist(), strict=True):
            self.last_tokens[int(plan.request_slots[request])] = token
        return tokens

    def append(self, plan: StepPlan, request: int) -> None:
        for row in range(plan.qo_indptr[request], plan.qo_indptr[request + 1]):
            token, position = int(plan.token_ids[row]), int(plan.positions[row])
            if token < 0:
                token = self.last_tokens[-token - 1]
            self.cache[self.cell(plan, request, position)] = (position, token)

    def attend(self, plan: StepPlan, request: int) -> list[int]:
        cells = [self.cache[self.cell(plan, request, position)] for position in range(plan.kv_lens[request])]
        assert [position for position, _ in cells] == list(range(plan.kv_lens[request]))
        return [token for _, token in cells]

    def cell(self, plan: StepPlan, request: int, position: int) -> tuple[int, int]:
        pages = plan.kv_page_indices[plan.kv_page_indptr[request] : plan.kv_page_indptr[request + 1]]
        return int(pages[position // self.page_size]), position % self.page_size


class Service:
    """The engine's loop over a scheduler and simulated ranks, with every limit checked at each step."""

    def __init__(self, **limits: int):
        self.limits = limits
        self.scheduler = Scheduler(**limits)
        self.ranks = [SimulatedRank(limits["page_size"]) for _ in range(limits["mesh_dp"])]
        self.in_flight: deque[tuple[ScheduledStep, list[int]]] = deque()
        self.events: list[TokenEvent] = []
        self.buffers: list[bytes] = []
        self.num_prefilled = 0

    def launch(self) -> bool:
        """Plan a step and run it; its tokens stay in flight."""
        had_work, was_idle = self.scheduler.has_work, not self.in_flight
        step = self.scheduler.schedule()
        if step is None:
            assert not (had_work and was_idle), "unfinished requests, nothing in flight and no step"
            return False
        dp, num_steps = self.limits["mesh_dp"], len(self.buffers)
        plan = plan_batch(step.items, page_size=self.limits["page_size"], dp=dp)
        buffer = encode(plan, epoch=1, step=num_steps)
        assert len(buffer) <= self.capacity()
        self.buffers.append(buffer.tobytes())
        parts = [slice_replica(decode(buffer, epoch=1), dp_rank) for dp_rank in range(dp)]
        tokens: list[int] = []
        for rank, part in zip(self.ranks, parts, strict=True):
            self.check_limits(part)
            tokens += rank.run(part)
        self.in_flight.append((step, tokens))
        assert len(self.in_flight) <= self.limits["run_ahead"]
        return True

    def collect(self) -> None:
        """Take the tokens of the oldest step."""
        if self.in_flight:
            step, tokens = self.in_flight.popleft()
            self.events += self.scheduler.complete(step, tokens)

    def finish(self) -> None:
        while self.scheduler.has_work:
            while self.launch():
                pass
            self.collect()
            assert len(self.buffers) < 20_000, "no end in sight"

    def capacity(self) -> int:
        dp, seqs = self.limits["mesh_dp"], self.limits["mesh_dp"] * self.limits["max_num_seqs"]
        num_tokens, num_pages = dp * self.limits["max_batch_tokens"], dp * self.limits["num_pages"]
        return capacity_words(max_tokens=num_tokens, max_requests=seqs, max_pages=num_pages, max_samples=seqs, dp=dp)

    def check_limits(self, part: StepPlan) -> None:
        assert part.num_tokens <= self.limits["max_batch_tokens"]
        assert part.num_requests <= self.limits["max_num_seqs"]
        slots, pages = part.request_slots.tolist(), part.kv_page_indices.tolist()
        assert set(slots) <= set(range(self.limits["max_num_seqs"])) and len(set(slots)) == len(slots)
        assert set(pages) <= set(range(self.limits["num_pages"])) and len(set(pages)) == len(pages)
        assert (part.kv_lens < self.limits["max_model_len"]).all()
        assert (part.sample_positions < self.limits["max_model_len"]).all()
        self.num_prefilled += int((part.positions == 0).sum())

    def assert_nothing_is_held(self) -> None:
        for replica in self.scheduler.replicas:
            assert (replica.pool.num_used, replica.running) == (0, [])
            assert replica.num_free_slots == self.limits["max_num_seqs"]
        assert (self.scheduler.num_waiting, self.scheduler.num_running, self.scheduler.num_in_flight) == (0, 0, 0)

    def events_of(self, request: Request) -> list[TokenEvent]:
        return [event for event in self.events if event.request_id == request.request_id]


@st.composite
def service_limits(draw) -> dict[str, int]:
    """Limits of a replica whose pool holds the longest request, and often little more."""
    page_size, max_model_len = draw(st.integers(1, 5)), draw(st.integers(2, 30))
    return {
        "mesh_dp": draw(st.integers(1, 3)),
        "num_pages": math.ceil((max_model_len - 1) / page_size) + draw(st.integers(0, 6)),
        "page_size": page_size,
        "max_num_seqs": draw(st.integers(1, 6)),
        "max_batch_tokens": draw(st.integers(1, 16)),
        "max_model_len": max_model_len,
        "run_ahead": draw(st.integers(1, 2)),
    }


@st.composite
def requests(draw, index: int, max_model_len: int) -> Request:
    prompt_len = draw(st.integers(1, max_model_len - 1))
    params = SamplingParams(
        max_tokens=draw(st.integers(1, 30)),
        ignore_eos=draw(st.booleans()),
        stop_token_ids=draw(st.sampled_from([(), (5,)])),
    )
    seed = draw(st.integers(0, 2**63 - 1))
    prompt = [(seed + 7 * i) % VOCAB_SIZE for i in range(prompt_len)]
    return Request(f"request {index}", prompt, params, seed, eos_token_ids=EOS)


@PROPERTY
@given(limits=service_limits(), data=st.data())
def test_every_request_gets_what_it_gets_alone(limits: dict[str, int], data: st.DataObject):
    service, added, cancelled = Service(**limits), [], {}
    for action in data.draw(st.lists(st.sampled_from("aaallccx"), max_size=60)):
        if action == "a":
            added.append(data.draw(requests(len(added), limits["max_model_len"])))
            service.scheduler.add(added[-1])
        elif action == "l":
            service.launch()
        elif action == "c":
            service.collect()
        elif added:
            request = data.draw(st.sampled_from(added))
            if service.scheduler.cancel(request.request_id):
                cancelled[request.request_id] = len(service.events_of(request))
    service.finish()
    service.assert_nothing_is_held()
    for request in added:
        expected = answer_alone(request, limits["max_model_len"])
        if request.request_id in cancelled:
            assert service.events_of(request) == expected[: cancelled[request.request_id]]
            assert request.finish_reason == "cancelled"
        else:
            assert service.events_of(request) == expected
            assert request.finish_reason == expected[-1].finish_reason


def crowded(**limits: int) -> tuple[Service, list[Request]]:
    """Twelve long requests, added to a service whose pool holds one of them and a page."""
    small = {"num_pages": 9, "page_size": 4, "max_num_seqs": 6, "max_batch_tokens": 7, "max_model_len": 33}
    service = Service(**(small | limits))
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    added = [Request(f"{i}", [i + 2, 3], params, seed=i) for i in range(12)]
    for request in added:
        service.scheduler.add(request)
    return service, added


@pytest.mark.parametrize("run_ahead", [1, 2])
@pytest.mark.parametrize("mesh_dp", [1, 3])
def test_a_pool_that_holds_one_request_serves_all_by_eviction(mesh_dp: int, run_ahead: int):
    service, added = crowded(mesh_dp=mesh_dp, run_ahead=run_ahead)
    service.finish()
    service.assert_nothing_is_held()
    assert service.num_prefilled > len(added), "the pool is too large to evict anyone"
    for request in added:
        assert service.events_of(request) == answer_alone(request, 33)


@pytest.mark.parametrize("mesh_dp", [1, 3])
def test_the_oldest_request_is_never_evicted(mesh_dp: int):
    service, added = crowded(mesh_dp=mesh_dp, run_ahead=2)
    while service.scheduler.has_work:
        unfinished = [request for request in added if request.state is not RequestState.FINISHED]
        was_running = bool(unfinished) and unfinished[0].state is RequestState.RUNNING
        service.launch()
        assert not was_running or unfinished[0].state is RequestState.RUNNING
        service.collect()


def test_the_same_calls_give_the_same_plans():
    first, second = (crowded(mesh_dp=2, run_ahead=2)[0] for _ in range(2))
    first.finish()
    second.finish()
    assert first.buffers == second.buffers
