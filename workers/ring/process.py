# SPDX-License-Identifier: Apache-2.0
"""A process known beyond its number, which the kernel gives again to others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """Number, start time (clock ticks since boot) and pid namespace (inode) of a process."""

    pid: int
    start_ticks: int
    namespace: int

    @staticmethod
    def current() -> ProcessId:
        return ProcessId.of(os.getpid())

    @staticmethod
    def of(pid: int) -> ProcessId:
        """A process of this pid namespace; FileNotFoundError or ProcessLookupError when there is none."""
        return ProcessId(pid, _stat(pid)[1], _namespace())

    def is_gone(self) -> bool:
        """True once the process has ended; False also where another pid namespace hides it."""
        if self.namespace != _namespace():
            return False
        try:
            state, start_ticks = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state in "ZX" or start_ticks != self.start_ticks  # Z: ended, its parent has not looked yet


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _stat(pid: int) -> tuple[str, int]:
    # The command's name, in parentheses, may hold spaces and parentheses itself.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[19])
