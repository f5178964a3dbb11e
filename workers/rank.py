# SPDX-License-Identifier: Apache-2.0
"""The loop of one rank: take a plan from the ring, run it, answer; no Ray call anywhere in it."""

from __future__ import annotations

import numpy as np

from distributed_fi.mesh import MeshCoord
from distributed_fi.plan.layout import decode, read_header, slice_replica
from distributed_fi.workers.ring.errors import RingAbortedError, RingFinishedError
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.runner import Runner
from distributed_fi.workers.step_hook import StepHook

IDLE_S = 0.5  # how often an idle rank beats and looks whether the coordinator still lives


def serve(reader: RingReader, runner: Runner, coord: MeshCoord, *, epoch: int, hook: StepHook) -> int:
    """Run plans until the coordinator ends the ring, in order or not; returns how many steps were run.

    Raises:
        WriterDiedError: the coordinator's process is gone.
        Whatever a step raised, after its text went to the coordinator; the rank cannot go on then,
        because its peers are in a collective it left.
    """
    steps = 0
    while True:
        try:
            seq, view = reader.recv(idle_s=IDLE_S)
        except (RingFinishedError, RingAbortedError):
            return steps
        try:
            with hook(f"rank {coord.rank}"):
                buffer = np.frombuffer(view, np.int32)
                plan = slice_replica(decode(buffer, epoch=epoch), coord.dp_rank)
                tokens = runner.step(plan)
        except BaseException as error:
            reader.reply(seq, 0, f"{type(error).__name__}: {error}".encode(), status=1)
            raise
        outputs = tokens if coord.tp_rank == 0 else tokens[:0]  # int32 [num_samples of the replica]
        reader.reply(seq, read_header(buffer).digest, outputs)
        steps += 1
