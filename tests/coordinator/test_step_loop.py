# SPDX-License-Identifier: Apache-2.0
"""The coordinator's half of a step over a real ring; threads are the ranks, and their model counts: 7, 8, 9."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np
import pytest

from distributed_fi.config import SamplingParams
from distributed_fi.coordinator.step_loop import StepLoop
from distributed_fi.coordinator.step_stats import StepStats
from distributed_fi.errors import PlanError, RankError, StepTimeoutError
from distributed_fi.mesh import Mesh, MeshCoord
from distributed_fi.plan.layout import StepPlan, decode, read_header, slice_replica
from distributed_fi.scheduler.request import Request
from distributed_fi.scheduler.scheduler import Scheduler
from distributed_fi.workers.ring.errors import RingFinishedError
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.writer import RingWriter

EPOCH, PAGE_SIZE = 3, 4
PARAMS = SamplingParams(max_tokens=5)
Rank = Callable[[RingReader, MeshCoord], None]
StartLoop = Callable[..., StepLoop]


def count_up(plan: StepPlan, last_tokens: dict[int, int]) -> np.ndarray:
    """The token after each sampled row; a token below 0 names the slot whose last one is meant."""
    slots = plan.request_slots[plan.sample_requests].tolist()
    tokens = [token if token >= 0 else last_tokens[-token - 1] for token in plan.token_ids[plan.sample_rows].tolist()]
    last_tokens.update((slot, token + 1) for slot, token in zip(slots, tokens, strict=True))
    return np.array([token + 1 for token in tokens], np.int32)


def answering(*, wrong_from: int | None = None, release: threading.Event | None = None) -> Rank:
    """A rank that runs every plan; from message `wrong_from` on it says, once released, that it ran another one."""

    def rank(reader: RingReader, coord: MeshCoord) -> None:
        last_tokens: dict[int, int] = {}
        while True:
            try:
                seq, view = reader.recv()
            except RingFinishedError:
                return
            buffer = np.frombuffer(view, np.int32)
            tokens = count_up(slice_replica(decode(buffer, epoch=EPOCH), coord.dp_rank), last_tokens)
            is_wrong = wrong_from is not None and seq >= wrong_from
            if is_wrong and release is not None:
                release.wait(10.0)
            digest = read_header(buffer).digest ^ (1 if is_wrong else 0)
            reader.reply(seq, digest, tokens if coord.tp_rank == 0 else tokens[:0])

    return rank


def silent(reader: RingReader, coord: MeshCoord) -> None:
    """A rank that takes plans and never answers."""
    while True:
        try:
            reader.recv()
        except RingFinishedError:
            return


def failing(reader: RingReader, coord: MeshCoord) -> None:
    """A rank whose first step fails."""
    seq, _ = reader.recv()
    reader.reply(seq, 0, b"ValueError: no such page", status=1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartLoop]:
    """A loop whose rank i runs `ranks[i]` in a thread, until the ring ends."""
    with ExitStack() as stack:

        def start_loop(mesh: Mesh, ranks: list[Rank], *, run_ahead: int = 2, timeout_s: float = 20.0) -> StepLoop:
            ring = RingWriter.create(
                mesh.world_size, slot_bytes=8192, reply_bytes=256, epoch=EPOCH, num_slots=4, directory=tmp_path
            )
            threads = []
            for rank, run in enumerate(ranks):
                reader = stack.enter_context(RingReader.attach(ring.handle, rank))
                threads.append(threading.Thread(target=run, args=(reader, mesh.coord(rank)), daemon=True))
                threads[-1].start()
                stack.callback(threads[-1].join, 10.0)
            stack.callback(ring.close)
            ring.wait_attached(5.0)
            limits = {"num_pages": 32, "page_size": PAGE_SIZE, "max_num_seqs": 4, "max_batch_tokens": 16}
            return StepLoop(
                Scheduler(mesh_dp=mesh.dp, max_model_len=64, run_ahead=run_ahead, **limits),
                ring,
                mesh,
                epoch=EPOCH,
                page_size=PAGE_SIZE,
                run_ahead=run_ahead,
                timeout_s=timeout_s,
                hook=lambda role: nullcontext(),
                stats=StepStats(),
            )

        yield start_loop


def add(loop: StepLoop, *prompts: list[int]) -> None:
    for prompt in prompts:
        loop.scheduler.add(Request(f"after {prompt[-1]}", prompt, PARAMS, seed=0))


def run(loop: StepLoop) -> dict[str, list[int]]:
    """Turn until nothing is left; every request's tokens in the order they came."""
    tokens: dict[str, list[int]] = {}
    while loop.scheduler.has_work:
        for event in loop.turn():
            answer = tokens.setdefault(event.request_id, [])
            assert event.index == len(answer)
            answer.append(event.token_id)
    return tokens


@pytest.mark.parametrize("run_ahead", [1, 2])
@pytest.mark.parametrize("mesh", [Mesh(dp=1, tp=2), Mesh(dp=2, tp=1), Mesh(dp=2, tp=2)], ids=str)
def test_every_request_gets_its_own_tokens_in_order(start: StartLoop, mesh: Mesh, run_ahead: int) -> None:
    """Five prompts on at most two replicas: the tokens of a step are sorted by replica, not by arrival."""
    loop = start(mesh, [answering()] * mesh.world_size, run_ahead=run_ahead)
    add(loop, [100], [7, 200], [7] * 20 + [300], [400], [500])
    answers = run(loop)
    assert answers == {f"after {n}": list(range(n + 1, n + 6)) for n in (100, 200, 300, 400, 500)}
    loop.drain()
    assert loop.digests == {}


@pytest.mark.parametrize("run_ahead", [1, 2])
def test_as_many_plans_are_in_flight_as_run_ahead_says(start: StartLoop, run_ahead: int) -> None:
    loop = start(Mesh(), [answering()], run_ahead=run_ahead)
    add(loop, [100])
    published = []
    while loop.scheduler.has_work:
        loop.turn()
        published.append(loop.ring.published)
    # One turn collects one step; the others in flight were published before it.
    assert published[:3] == [run_ahead, run_ahead + 1, run_ahead + 2]


def test_nothing_to_do_is_no_step(start: StartLoop) -> None:
    loop = start(Mesh(), [answering()])
    assert loop.turn() == []
    loop.drain()
    assert loop.ring.published == 0


def test_the_hook_is_entered_around_every_turn(start: StartLoop) -> None:
    loop = start(Mesh(), [answering()])
    roles: list[str] = []
    loop.hook = lambda role: nullcontext(roles.append(role))
    add(loop, [100])
    loop.turn()
    loop.turn()
    assert roles == ["coordinator", "coordinator"]


def test_rank_that_ran_another_plan_is_named(start: StartLoop) -> None:
    loop = start(Mesh(dp=2), [answering(), answering(wrong_from=2)])
    add(loop, [100], [200])
    with pytest.raises(PlanError, match=r"^rank 1 ran plan 0x[0-9a-f]{16} where 0x[0-9a-f]{16} was sent$"):
        run(loop)


def test_rank_that_sends_no_tokens_is_checked_as_well(start: StartLoop) -> None:
    loop = start(Mesh(tp=2), [answering(), answering(wrong_from=1)])
    add(loop, [100])
    with pytest.raises(PlanError, match=r"^rank 1 ran plan"):
        run(loop)
        loop.drain()


def test_wrong_plan_in_the_last_step_is_found_by_drain(start: StartLoop) -> None:
    """The tokens are rank 0's, so nobody waits for rank 1's answer to the last of the five steps."""
    release = threading.Event()
    loop = start(Mesh(tp=2), [answering(), answering(wrong_from=5, release=release)], run_ahead=1)
    add(loop, [100])
    assert run(loop) == {"after 100": [101, 102, 103, 104, 105]}
    release.set()
    with pytest.raises(PlanError, match=r"^rank 1 ran plan"):
        loop.drain()


@pytest.mark.parametrize("silent_rank", [0, 1])
def test_silent_rank_ends_the_step_in_time_and_is_named(start: StartLoop, silent_rank: int) -> None:
    ranks = [answering(), answering()]
    ranks[silent_rank] = silent
    loop = start(Mesh(dp=2), ranks, timeout_s=0.3)
    add(loop, [100], [200])
    with pytest.raises(StepTimeoutError, match=rf"^rank {silent_rank}: no answer to message 1 in 0.3 s") as raised:
        run(loop)
    assert raised.value.rank == silent_rank


def test_silent_rank_that_sends_no_tokens_is_found_when_its_slots_run_out(start: StartLoop) -> None:
    loop = start(Mesh(tp=2), [answering(), silent], timeout_s=0.3)
    add(loop, [100])
    with pytest.raises(StepTimeoutError, match=r"^rank 1: no answer to message"):
        run(loop)


def test_error_of_a_rank_arrives_with_its_text(start: StartLoop) -> None:
    loop = start(Mesh(tp=2), [answering(), failing])
    add(loop, [100])
    with pytest.raises(RankError, match=r"^rank 1: ValueError: no such page$"):
        run(loop)
        loop.drain()


def test_measured_broadcasts_run_nothing_and_are_in_the_stats(start: StartLoop) -> None:
    loop = start(Mesh(dp=2), [answering()] * 2)
    loop.measure_broadcast(10)
    assert len(loop.stats.broadcast_us) == 10
    assert loop.ring.acked() == [10, 10]
    summary = loop.stats.summary()
    p50, p99 = summary["step_broadcast_p50_us"], summary["step_broadcast_p99_us"]
    assert p50 is not None and p99 is not None and 0 < p50 <= p99
    add(loop, [100])
    assert run(loop) == {"after 100": [101, 102, 103, 104, 105]}
