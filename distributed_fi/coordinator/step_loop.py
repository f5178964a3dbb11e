# SPDX-License-Identifier: Apache-2.0
"""The coordinator's half of a step: schedule, plan once, publish, collect; no Ray call anywhere in it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from distributed_fi.coordinator.step_stats import StepStats
from distributed_fi.errors import PlanError
from distributed_fi.mesh import Mesh
from distributed_fi.plan.batch import plan_batch
from distributed_fi.plan.layout import StepPlan, encode, read_header, stop_plan
from distributed_fi.scheduler.scheduler import ScheduledStep, Scheduler, TokenEvent
from distributed_fi.workers.ring.writer import RingWriter
from distributed_fi.workers.step_hook import StepHook
from distributed_fi.workers.step_reply import StepReply


@dataclass(frozen=True)
class InFlight:
    """A published step whose tokens are not back yet."""

    seq: int
    digest: int
    scheduled: ScheduledStep
    published_ns: int


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
        self.step = 0

    def turn(self) -> list[TokenEvent]:
        """Publish what fits, then wait for the oldest step in flight; [] when there is nothing to do.

        Raises:
            RankError, RankDiedError, StepTimeoutError: a rank failed, is gone, or is silent.
            PlanError: a rank ran another plan than the one sent.
        """
        with self.hook("coordinator"):
            while len(self.in_flight) < self.run_ahead and (scheduled := self.scheduler.schedule()) is not None:
                self._publish(scheduled)
            return self._collect() if self.in_flight else []

    def stop(self) -> None:
        """Tell the ranks to leave their loops."""
        self.ring.publish(self._encode(stop_plan(dp=self.mesh.dp)))

    def _publish(self, scheduled: ScheduledStep) -> None:
        buffer = self._encode(plan_batch(scheduled.items, page_size=self.page_size, dp=self.mesh.dp))
        published_ns = time.monotonic_ns()
        seq = self.ring.publish(buffer)
        self.in_flight.append(InFlight(seq, read_header(buffer).digest, scheduled, published_ns))

    def _collect(self) -> list[TokenEvent]:
        step = self.in_flight[0]
        replies = self.ring.wait_replies(step.seq, self.output_ranks, self.timeout_s)
        self.in_flight.popleft()
        outputs = []
        for rank in self.output_ranks:
            if replies[rank].digest != step.digest:
                raise PlanError(f"rank {rank} ran plan {replies[rank].digest:#x} where {step.digest:#x} was sent")
            outputs.append(StepReply.from_bytes(replies[rank].payload))
        self._record(step, outputs)
        # Samples are ordered by replica, as the plan is.
        return self.scheduler.complete(step.scheduled, np.concatenate([reply.tokens for reply in outputs]))

    def _encode(self, plan: StepPlan) -> np.ndarray:
        self.step += 1
        return encode(plan, epoch=self.epoch, step=self.step)

    def _record(self, step: InFlight, outputs: list[StepReply]) -> None:
        latency_ns = max(o.received_ns - max(step.published_ns, o.waiting_ns) for o in outputs)
        self.stats.broadcast_us.append(latency_ns / 1e3)
        self.stats.step_ms.append((time.monotonic_ns() - max(o.received_ns for o in outputs)) / 1e6)
