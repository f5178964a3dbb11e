# SPDX-License-Identifier: Apache-2.0
"""How long a plan takes to every rank and back: the step ring beside Ray calls.

One round trip: a plan of `plan_bytes` (4700, what a batch of a few dozen requests has) goes from this process to
every rank, each rank reads all of it (CRC-32) and answers with the CRC, and all answers are here. The ranks idle
otherwise. Rounds of the paths alternate, so that a change in the machine's speed meets all of them.
"""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from distributed_fi.cluster.benchmarks.machine import describe_machine
from distributed_fi.errors import InvalidArgumentError, PlanError
from distributed_fi.workers.ring.errors import RingFinishedError
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.segment import RingHandle
from distributed_fi.workers.ring.writer import RingWriter

PLAN_BYTES = 4700
WARM_UP = 100  # round trips before the first that counts
NUM_ROUNDS = 4
START_TIMEOUT_S = 60.0

RING, RING_IN_RAY, RAY_CALLS = "step ring, processes", "step ring, Ray actors", "Ray actor calls"


@dataclass(frozen=True)
class Latency:
    """Round trips of one path: percentiles in us over `iterations`."""

    path: str
    num_ranks: int
    plan_bytes: int
    iterations: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class ControlPlaneReport:
    """One row per path and number of ranks, and the machine they were measured on."""

    rows: tuple[Latency, ...]
    machine: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"benchmark": "control_plane", "machine": self.machine, "rows": [asdict(row) for row in self.rows]}


RoundTrip = Callable[[], list[int]]  # returns every rank's digest
Path = Callable[[int, np.ndarray], AbstractContextManager[RoundTrip]]


def measure_ring(
    num_ranks: int,
    iterations: int = 1000,
    *,
    plan_bytes: int = PLAN_BYTES,
    in_ray_actors: bool = False,
    spin_us: int | None = None,
) -> Latency:
    """Latency of the step ring to ranks that are bare processes, or Ray actors.

    Args:
        spin_us: of writer and readers; None is what serving uses.
    Notes: starts a local Ray for actors unless this process is connected to one.
    """
    path = RING_IN_RAY if in_ray_actors else RING
    ranks = _ring_actors if in_ray_actors else _ring_processes
    with ExitStack() as stack:
        if in_ray_actors:
            stack.enter_context(_local_ray())
        return _measure({path: lambda n, plan: _ring(n, plan, ranks, spin_us)}, num_ranks, iterations, plan_bytes)[0]


def measure_ray_calls(num_ranks: int, iterations: int = 1000, *, plan_bytes: int = PLAN_BYTES) -> Latency:
    """Latency of one actor call per rank with the plan as its argument, all results fetched by one ray.get."""
    with _local_ray():
        return _measure({RAY_CALLS: _ray_calls}, num_ranks, iterations, plan_bytes)[0]


def run(ranks: Sequence[int] = (1, 2), iterations: int = 1000, *, plan_bytes: int = PLAN_BYTES) -> ControlPlaneReport:
    """Measure every path for every number of ranks.

    Raises:
        InvalidArgumentError: a number of ranks, iterations or bytes is not positive.
    """
    paths: dict[str, Path] = {
        RING: lambda n, plan: _ring(n, plan, _ring_processes, None),
        RING_IN_RAY: lambda n, plan: _ring(n, plan, _ring_actors, None),
        RAY_CALLS: _ray_calls,
    }
    rows: list[Latency] = []
    with _local_ray():
        for num_ranks in ranks:
            rows += _measure(paths, num_ranks, iterations, plan_bytes)
    return ControlPlaneReport(tuple(rows), describe_machine())


def serve(handle: RingHandle, rank: int, spin_us: int | None) -> None:
    """A rank: answer every plan with its CRC until the writer closes the ring."""
    with RingReader.attach(handle, rank, spin_us=spin_us) as reader:
        while True:
            try:
                seq, plan = reader.recv()
            except RingFinishedError:
                return
            reader.reply(seq, zlib.crc32(plan))


class BenchmarkRank:
    """The same rank as a Ray actor."""

    def serve(self, handle: RingHandle, rank: int, spin_us: int | None) -> None:
        """The ring's loop; returns when the writer closes it."""
        serve(handle, rank, spin_us)

    def step(self, plan: np.ndarray) -> int:
        """One plan by an actor call."""
        return zlib.crc32(plan.data)


def _measure(paths: dict[str, Path], num_ranks: int, iterations: int, plan_bytes: int) -> list[Latency]:
    for name, value in (("num_ranks", num_ranks), ("iterations", iterations), ("plan_bytes", plan_bytes)):
        if value < 1:
            raise InvalidArgumentError(name, value, "an integer >= 1")
    plan = np.random.default_rng(0).integers(0, 256, plan_bytes, dtype=np.uint8)
    times_us: dict[str, list[float]] = {name: [] for name in paths}
    per_round = -(-iterations // NUM_ROUNDS)
    with ExitStack() as stack:
        trips = {name: stack.enter_context(path(num_ranks, plan)) for name, path in paths.items()}
        for name, trip in trips.items():
            _check(name, trip, [zlib.crc32(plan.data)] * num_ranks)
            _time(trip, WARM_UP)
        for _ in range(NUM_ROUNDS):
            for name, trip in trips.items():
                times_us[name] += _time(trip, per_round)
    return [_latency(name, num_ranks, plan_bytes, times) for name, times in times_us.items()]


def _check(name: str, trip: RoundTrip, expected: list[int]) -> None:
    digests = trip()
    if digests != expected:
        wrong = next(rank for rank, digest in enumerate(digests) if digest != expected[rank])
        raise PlanError(f"{name}: rank {wrong} saw digest {digests[wrong]:08x}, expected {expected[wrong]:08x}")


def _time(trip: RoundTrip, iterations: int) -> list[float]:
    times_us = []
    for _ in range(iterations):
        start_ns = time.perf_counter_ns()
        trip()
        times_us.append((time.perf_counter_ns() - start_ns) / 1000)
    return times_us


def _latency(path: str, num_ranks: int, plan_bytes: int, times_us: list[float]) -> Latency:
    p50_us, p99_us = np.percentile(times_us, (50, 99)).tolist()
    return Latency(path, num_ranks, plan_bytes, len(times_us), p50_us, p99_us)


Ranks = Callable[[RingHandle, int | None], AbstractContextManager[None]]


@contextmanager
def _ring(num_ranks: int, plan: np.ndarray, ranks: Ranks, spin_us: int | None) -> Iterator[RoundTrip]:
    writer = RingWriter.create(num_ranks, slot_bytes=plan.nbytes, reply_bytes=64, epoch=1, spin_us=spin_us)

    def round_trip() -> list[int]:
        replies = writer.wait_replies(writer.publish(plan), timeout_s=START_TIMEOUT_S)
        return [replies[rank].digest for rank in range(num_ranks)]

    with ranks(writer.handle, spin_us), writer:  # the ranks end once the writer is closed
        writer.wait_attached(START_TIMEOUT_S)
        yield round_trip


@contextmanager
def _ring_processes(handle: RingHandle, spin_us: int | None) -> Iterator[None]:
    # Plain subprocesses: multiprocessing would leave its resource tracker behind. They get this process's sys.path.
    script = (
        "import pickle, sys; sys.path[:] = {path!r}; "
        "from distributed_fi.cluster.benchmarks.control_plane import serve; serve(*pickle.loads({arguments!r}))"
    )
    processes = []
    try:
        for rank in range(handle.layout.num_readers):
            text = script.format(path=sys.path, arguments=pickle.dumps((handle, rank, spin_us)))
            processes.append(subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.DEVNULL))
        yield
    finally:
        for process in processes:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _ring_actors(handle: RingHandle, spin_us: int | None) -> Iterator[None]:
    import ray

    with _actors(handle.layout.num_readers) as actors:
        serving = [actor.serve.remote(handle, rank, spin_us) for rank, actor in enumerate(actors)]
        yield
        ray.get(serving, timeout=START_TIMEOUT_S)


@contextmanager
def _ray_calls(num_ranks: int, plan: np.ndarray) -> Iterator[RoundTrip]:
    import ray

    with _actors(num_ranks) as actors:
        yield lambda: ray.get([actor.step.remote(plan) for actor in actors])


@contextmanager
def _actors(num_ranks: int) -> Iterator[list]:
    import ray

    rank_class = ray.remote(num_cpus=0)(BenchmarkRank)
    actors = [rank_class.remote() for _ in range(num_ranks)]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


@contextmanager
def _local_ray() -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=1,  # the actors ask for none
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2**27,
    )
    try:
        yield
    finally:
        ray.shutdown()
