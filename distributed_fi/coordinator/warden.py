# SPDX-License-Identifier: Apache-2.0
"""Ends what a killed driver leaves behind of its local Ray.

Ray's own agents outlive a killed driver by a minute: they try to report the loss of their node to a control
store that died with it (ray 2.60). The warden is a small process that holds the reading end of a pipe; when the
driver ends, however it ends, the pipe closes, and the warden ends whoever of the local Ray still runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distributed_fi.workers.ring.process import ProcessId

GRACE_S = 2.0  # for those that leave by themselves


class Warden:
    """Watches over the processes that this one has started so far, and theirs."""

    def __init__(self) -> None:
        watched = [str(number) for process in descendants(os.getpid()) for number in _numbers(process)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distributed_fi.coordinator.warden", *watched],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the driver's terminal is not meant for it
        )

    def close(self) -> None:
        """Say that the driver ends; returns when nothing it watched runs any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def descendants(pid: int) -> list[ProcessId]:
    """Children of a process, their children, and so on."""
    try:
        tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(c) for t in tasks for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]
        known = [ProcessId.of(child) for child in children]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it ended meanwhile
    return known + [below for child in children for below in descendants(child)]


def watch(processes: list[ProcessId]) -> None:
    """Wait until the driver is gone, then end what is left of `processes`."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + GRACE_S
    while (left := [p for p in processes if not p.is_gone()]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in left:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _numbers(process: ProcessId) -> tuple[int, int, int]:
    return process.pid, process.start_ticks, process.namespace


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    watch([ProcessId(*numbers[i : i + 3]) for i in range(0, len(numbers), 3)])
