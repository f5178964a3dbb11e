# SPDX-License-Identifier: Apache-2.0
"""Ends what a driver leaves behind of its local Ray, however the driver ends.

Ray's own agents outlive a killed driver by a minute: they try to report the loss of their node to a control
store that died with it (ray 2.60). The warden is a small process with the reading end of a pipe. While Ray starts
it notes Ray's processes among the driver's descendants; when the pipe closes or the driver says so, it ends those
that do not leave by themselves.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from distributed_fi.workers.ring.process import ProcessId

LOOK_S = 0.05
GRACE_S = 2.0  # for those that leave by themselves
CLOSE_TIMEOUT_S = 10.0
STARTED, ENDED = b"s", b"e"


class Warden:
    """Used around the start of a local Ray: `with Warden() as warden: ray.init(...)`; then `close()` after its end."""

    def __init__(self) -> None:
        others = [str(process.pid) for process in rays_processes(os.getpid())]  # of a Ray that is not ours to end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distributed_fi.coordinator.warden", str(os.getpid()), *others],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the driver's terminal is not meant for it
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._say(STARTED)

    def close(self) -> None:
        """Ray was shut down: end what is left of it. Returns when that is done."""
        # Said rather than only closed: a child that the user forked may hold a copy of the pipe.
        self._say(ENDED)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(CLOSE_TIMEOUT_S)

    def _say(self, word: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word)
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # somebody ended the warden; there is nothing it could do any more


def watch(driver: int, others: frozenset[int]) -> None:
    """Note Ray's new processes below the driver until it says that all have started; end them when it is gone."""
    noted: set[ProcessId] = set()
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        noted |= rays_processes(driver, others)
    noted |= rays_processes(driver, others)
    if os.read(sys.stdin.fileno(), 1) == STARTED:
        os.read(sys.stdin.fileno(), 1)
    deadline = time.monotonic() + GRACE_S
    while (left := [p for p in noted if not p.is_gone()]) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    for process in left:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def rays_processes(pid: int, others: frozenset[int] = frozenset()) -> set[ProcessId]:
    """Descendants of a process that Ray started, by their command; the user's own children are left alone.

    Those below `others` are another Ray's: not even looked at.
    """
    found: set[ProcessId] = set()
    for child in _children(pid):
        if child in others:
            continue
        try:
            process, command = ProcessId.of(child), Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if command.startswith(b"ray::") or b"/ray/" in command:
            found |= {process} | rays_processes(child, others)
    return found


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return []
    children = []
    for task in tasks:
        try:
            children += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return children


if __name__ == "__main__":
    watch(int(sys.argv[1]), frozenset(map(int, sys.argv[2:])))
