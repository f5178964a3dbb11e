# SPDX-License-Identifier: Apache-2.0
"""The coordinator's half of a step: schedule, plan once, publish, collect; no Ray call anywhere in it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distributed_fi.coordinator.step_stats import StepStats
from distributed_fi.errors import PlanError
from distributed_fi.mesh import Mesh
from distributed_fi.plan.batch import plan_batch
from distributed_fi.plan.item import StepItem
from distributed_fi.plan.layout import encode, read_header
from distributed_fi.scheduler.scheduler import ScheduledStep, Scheduler, TokenEvent
from distributed_fi.workers.ring.writer import RingWriter
from distributed_fi.workers.step_hook import StepHook


@dataclass(frozen=True)
class InFlight:
    """A published step whose tokens are not back yet."""

    seq: int
    scheduled: ScheduledStep


class StepLoop:
    """Keeps up to `run_ahead` plans in the ring, and turns what comes back into token events.

    Args:
        ring: with all ranks of `mesh` as its readers, reader i being rank i.
        run_ahead: plans in the ring at a time; with 2 the ranks find the next plan there when they end a step.
        timeout_s: a step that takes longer ends the run with the name of the rank that did not answer.
        hook: entered around every turn.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ring: RingWriter,
        mesh: Mesh,
        *,
        epoch: int,
        page_size: int,
        run_ahead: int,
        timeout_s: float,
        hook: StepHook,
        stats: StepStats,
    ):
        self.scheduler, self.ring, self.mesh = scheduler, ring, mesh
        self.epoch, self.page_size, self.run_ahead, self.timeout_s = epoch, page_size, run_ahead, timeout_s
        self.hook, self.stats = hook, stats
        self.output_ranks = [ranks[0] for ranks in mesh.tp_groups()]
        self.in_flight: deque[InFlight] = deque()
        self.digests: dict[int, int] = {}  # of plans that some rank has not answered yet, by message number
        self.checked = [0] * mesh.world_size
        self.step = 0

    def turn(self) -> list[TokenEvent]:
        """Publish what fits, then wait for the oldest step in flight; [] when there is nothing to do.

        Raises:
            RankError, RankDiedError, StepTimeoutError: a rank failed, is gone, or is silent.
            PlanError: a rank ran another plan than the one sent.
        """
        with self.hook("coordinator"):
            while len(self.in_flight) < self.run_ahead and (scheduled := self.scheduler.schedule()) is not None:
                self.in_flight.append(InFlight(self._publish(scheduled.items), scheduled))
            return self._collect() if self.in_flight else []

    def measure_broadcast(self, iterations: int) -> None:
        """Send empty plans, each to all ranks and back: shows that every rank answers, and how fast."""
        for _ in range(iterations):
            begun = time.monotonic_ns()
            self.ring.wait_replies(self._publish(()), timeout_s=self.timeout_s)
            self.stats.broadcast_us.append((time.monotonic_ns() - begun) / 1e3)
            self._check_digests()

    def drain(self) -> None:
        """Wait until every rank answered everything, and check that all ran the plans that were sent."""
        if self.ring.published:
            self.ring.wait_replies(self.ring.published, timeout_s=self.timeout_s)
            self._check_digests()

    def _publish(self, items: Sequence[StepItem]) -> int:
        plan = plan_batch(items, page_size=self.page_size, dp=self.mesh.dp)
        buffer = encode(plan, epoch=self.epoch, step=self.step)
        self.step += 1
        seq = self.ring.publish(buffer, timeout_s=self.timeout_s)
        self.digests[seq] = read_header(buffer).digest
        return seq

    def _collect(self) -> list[TokenEvent]:
        step = self.in_flight[0]
        replies = self.ring.wait_replies(step.seq, self.output_ranks, self.timeout_s)
        self.in_flight.popleft()
        self._check_digests()
        # Samples are ordered by replica, as the plan is.
        tokens = np.concatenate([np.frombuffer(replies[rank].payload, np.int32) for rank in self.output_ranks])
        return self.scheduler.complete(step.scheduled, tokens)

    def _check_digests(self) -> None:
        # Nobody waits for the ranks that do not output; whatever they answered since the last look is checked.
        for rank, acked in enumerate(self.ring.acked()):
            for seq in range(self.checked[rank] + 1, acked + 1):
                ran, sent = self.ring.reply_of(rank, seq).digest, self.digests[seq]
                if ran != sent:
                    raise PlanError(f"rank {rank} ran plan {ran:#018x} where {sent:#018x} was sent")
            self.checked[rank] = acked
        for seq in [seq for seq in self.digests if seq <= min(self.checked)]:
            del self.digests[seq]
