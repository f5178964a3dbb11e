# SPDX-License-Identifier: Apache-2.0
"""A rank's loop over a real ring, run in a thread with a runner that computes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from distributed_fi.errors import PlanError, RankError
from distributed_fi.mesh import Mesh, MeshCoord
from distributed_fi.plan.batch import plan_batch
from distributed_fi.plan.item import SampleSpec, StepItem
from distributed_fi.plan.layout import Int32Array, StepPlan, encode, read_header
from distributed_fi.workers.rank import serve
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.writer import RingWriter

EPOCH = 3


class FakeRunner:
    """Answers each sample with the token before it plus 1000; fails on token 13."""

    def step(self, plan: StepPlan) -> np.ndarray:
        if 13 in plan.token_ids:
            raise ValueError("token 13 is unlucky")
        return plan.token_ids[plan.sample_rows] + 1000


class Rank(threading.Thread):
    """`serve` in a thread: what it returned or raised, and the roles its hook was called with."""

    def __init__(self, reader: RingReader, coord: MeshCoord):
        super().__init__(daemon=True)
        self.reader, self.coord = reader, coord
        self.steps: int | None = None
        self.error: BaseException | None = None
        self.roles: list[str] = []

    def run(self) -> None:
        try:
            self.steps = serve(self.reader, FakeRunner(), self.coord, epoch=EPOCH, hook=self.hook)  # type: ignore[arg-type]
        except Exception as error:
            self.error = error

    @contextmanager
    def hook(self, role: str) -> Iterator[None]:
        self.roles.append(role)
        yield


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[RingWriter]:
    with RingWriter.create(2, slot_bytes=4096, reply_bytes=256, epoch=EPOCH, num_slots=4, directory=tmp_path) as ring:
        yield ring


def start(ring: RingWriter, mesh: Mesh) -> list[Rank]:
    ranks = [Rank(RingReader.attach(ring.handle, rank), mesh.coord(rank)) for rank in range(mesh.world_size)]
    ring.wait_attached(5.0)
    for rank in ranks:
        rank.start()
    return ranks


def end(ranks: list[Rank]) -> None:
    for rank in ranks:
        rank.join(10.0)
        assert not rank.is_alive()
        rank.reader.close()


def plan_of(*tokens: int, dp: int = 1, epoch: int = EPOCH, step: int = 0) -> Int32Array:
    """One request of one token for each of `tokens`, dealt to the replicas in turn."""
    items = [
        StepItem(dp_rank=i % dp, slot=i, token_ids=(token,), start=0, pages=(i,), sampling=SampleSpec())
        for i, token in enumerate(tokens)
    ]
    return encode(plan_batch(items, page_size=4, dp=dp), epoch=epoch, step=step)


def sampled(payload: bytes) -> list[int]:
    return np.frombuffer(payload, np.int32).tolist()


def test_replicas_run_their_own_part_and_answer_with_the_plans_digest(ring: RingWriter) -> None:
    ranks = start(ring, Mesh(dp=2))
    for step, tokens in enumerate([(1, 2, 3), (4, 5)]):
        plan = plan_of(*tokens, dp=2, step=step)
        replies = ring.wait_replies(ring.publish(plan), timeout_s=10.0)
        for dp_rank, reply in replies.items():
            assert sampled(reply.payload) == [token + 1000 for token in tokens[dp_rank::2]]
            assert reply.digest == read_header(plan).digest
    ring.finish()
    end(ranks)
    assert [rank.steps for rank in ranks] == [2, 2]
    assert [rank.roles for rank in ranks] == [["rank 0"] * 2, ["rank 1"] * 2]


def test_only_the_first_rank_of_a_tensor_parallel_group_sends_tokens(ring: RingWriter) -> None:
    ranks = start(ring, Mesh(tp=2))
    replies = ring.wait_replies(ring.publish(plan_of(1, 2)), timeout_s=10.0)
    assert sampled(replies[0].payload) == [1001, 1002]
    assert replies[1].payload == b""
    assert replies[0].digest == replies[1].digest
    ring.finish()
    end(ranks)


def test_plans_published_before_the_end_are_run(ring: RingWriter) -> None:
    for step in range(3):
        ring.publish(plan_of(1, step=step))
    ring.finish()
    ranks = start(ring, Mesh(tp=2))
    end(ranks)
    assert [rank.steps for rank in ranks] == [3, 3]


def test_aborted_ring_ends_the_loop(ring: RingWriter) -> None:
    ranks = start(ring, Mesh(tp=2))
    ring.wait_replies(ring.publish(plan_of(1)), timeout_s=10.0)
    ring.abort("enough")
    end(ranks)
    assert [rank.steps for rank in ranks] == [1, 1]


def test_error_in_a_step_reaches_the_coordinator_and_ends_the_rank(ring: RingWriter) -> None:
    ranks = start(ring, Mesh(dp=2))
    seq = ring.publish(plan_of(1, 13, dp=2))
    with pytest.raises(RankError, match=r"^rank 1: ValueError: token 13 is unlucky$"):
        ring.wait_replies(seq, timeout_s=10.0)
    ring.abort("a rank failed")
    end(ranks)
    assert isinstance(ranks[1].error, ValueError)
    assert ranks[0].error is None


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of(1, epoch=EPOCH + 1), "PlanError: plan epoch: expected 3, got 4"),
        (plan_of(1)[:-1], "PlanError: plan truncated"),
    ],
    ids=["another epoch", "truncated"],
)
def test_plan_that_is_not_for_this_rank_is_not_run(ring: RingWriter, plan: Int32Array, message: str) -> None:
    ranks = start(ring, Mesh(tp=2))
    seq = ring.publish(plan)
    with pytest.raises(RankError, match=f"^rank [01]: {message}"):
        ring.wait_replies(seq, timeout_s=10.0)
    end(ranks)
    assert [type(rank.error) for rank in ranks] == [PlanError, PlanError]
