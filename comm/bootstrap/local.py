# SPDX-License-Identifier: Apache-2.0
"""Ranks as processes of this machine: for tests, examples and one-machine scripts.

def total(group, x):
    return group.all_reduce(torch.tensor([x]))

if __name__ == "__main__":
    print(run_ranks(total, 2, 21.0))  # [tensor([42.]), tensor([42.])]
"""

from __future__ import annotations

import multiprocessing as mp
import pickle
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from distributed_fi.comm.bootstrap.local_rank import START_S, Report, portable, serve_rank
from distributed_fi.comm.bootstrap.store import serve_store
from distributed_fi.comm.deadline import Deadline, check_timeout
from distributed_fi.errors import InvalidArgumentError, RankDiedError, RankError, StepTimeoutError

_CAUSE_S = 1.0  # how long the reports of other ranks are awaited when one says that a peer is gone


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
    """Run fn(group, *args) in `world_size` new processes, one rank each, on the CPU.

    Args:
        fn: a function at the top level of a file; the processes load it from there.
        args: picklable.
        timeout_s: bound of fn and of each collective in it, seconds; starting the processes is not counted.
    Returns:
        What fn returned, by rank.
    Raises:
        RankError: fn raised on a rank; carries its traceback, the other ranks are stopped.
        RankDiedError: the process of a rank ended. StepTimeoutError: fn did not return in time.
    Notes: no process is left when this returns or raises, nor where this process is killed.
    """
    with RankPool(world_size, timeout_s=timeout_s) as pool:
        return pool.run(fn, *args, timeout_s=timeout_s)


class RankPool:
    """Processes that form one CPU group and run functions handed to them; see run_ranks.

    After an error the pool is closed: the ranks of a broken group have no further use.

    Args:
        timeout_s: bound of each collective of the group, seconds.
    """

    def __init__(self, world_size: int, *, timeout_s: float = 30.0):
        if not isinstance(world_size, int) or world_size < 1:
            raise InvalidArgumentError("world_size", world_size, "an integer >= 1")
        self.world_size = world_size
        self._store, address = serve_store("127.0.0.1", check_timeout(timeout_s))
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        context = mp.get_context("spawn")
        try:
            for rank in range(world_size):
                pipe, child_pipe = context.Pipe()
                arguments = (child_pipe, address, rank, world_size, timeout_s)
                process = context.Process(target=serve_rank, args=arguments, daemon=True, name=f"rank {rank}")
                process.start()
                child_pipe.close()
                self._processes.append(process)
                self._pipes.append(pipe)
            self._collect(Deadline(START_S), "joined its group")
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids by rank."""
        return [process.pid or 0 for process in self._processes]

    @property
    def is_closed(self) -> bool:
        return not self._processes

    def run(self, fn: Callable[..., Any], *args: Any, timeout_s: float = 60.0) -> list[Any]:
        """Run fn(group, *args) on every rank and return the results by rank; raises as run_ranks."""
        if self.is_closed:
            raise RankError(0, "the pool is closed")
        message = pickle.dumps((portable(fn), args))
        try:
            for rank, pipe in enumerate(self._pipes):
                try:
                    pipe.send_bytes(message)
                except OSError as error:
                    raise self._obituary(rank) from error
            return self._collect(Deadline(check_timeout(timeout_s)), "returned")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the processes. May be repeated."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _collect(self, deadline: Deadline, achievement: str) -> list[Any]:
        """What every rank reported, or the error that explains best why one did not."""
        waiting = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        reports: dict[int, Report | RankDiedError] = {}
        # Once a rank fails the others are awaited only where it says no more than that a peer is gone.
        while waiting and (ready := wait(list(waiting), deadline.left_s)):
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[call-overload]
                reports[rank] = self._read(rank)
            if any(_is_cause(report) for report in reports.values()):
                break
            if any(_is_failure(report) for report in reports.values()):
                deadline = Deadline(min(_CAUSE_S, max(1e-3, deadline.left_s)))
        failures = {rank: report for rank, report in reports.items() if _is_failure(report)}
        if failures:
            raise _explanation(failures)
        if waiting:
            raise StepTimeoutError(min(waiting.values()), f"has not {achievement} within {deadline.timeout_s:g} s")
        return [report.value for _, report in sorted(reports.items()) if isinstance(report, Report)]

    def _read(self, rank: int) -> Report | RankDiedError:
        try:
            report = pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, OSError):
            return self._obituary(rank)
        assert isinstance(report, Report)
        return report

    def _obituary(self, rank: int) -> RankDiedError:
        process = self._processes[rank]
        process.join(_CAUSE_S)
        code = process.exitcode
        if code is not None and code < 0:
            return RankDiedError(rank, f"its process was ended by {signal.Signals(-code).name}")
        return RankDiedError(rank, f"its process ended with exit code {code}")


def _is_failure(report: Report | RankDiedError) -> bool:
    return isinstance(report, RankDiedError) or not report.is_ok


def _is_cause(report: Report | RankDiedError) -> bool:
    """Whether it says more than that a peer is gone."""
    return isinstance(report, RankDiedError) or not (report.is_ok or report.is_collective)


def _explanation(failures: dict[int, Report | RankDiedError]) -> RankError:
    rank, report = min(failures.items(), key=lambda item: (not _is_cause(item[1]), item[0]))
    if isinstance(report, RankDiedError):
        return report
    error = RankError(rank, report.problem)
    error.add_note(f"On rank {rank}:\n{report.traceback}")
    return error
