# SPDX-License-Identifier: Apache-2.0
"""How many compilers this machine can run at once."""

from __future__ import annotations

import os
from pathlib import Path

from distributed_fi import env

# cicc and ptxas of one kernel of ours stay below this; CUTLASS would not.
BYTES_PER_JOB = 1536 * 2**20
_CGROUP = Path("/sys/fs/cgroup")


def build_jobs() -> int:
    """DFI_BUILD_JOBS, or as many as cores and free memory allow; at least 1."""
    given = env.build_jobs()
    if given is not None:
        return max(1, given)
    return max(1, min(len(os.sched_getaffinity(0)), available_bytes() // BYTES_PER_JOB))


def available_bytes() -> int:
    """Memory that can be used before the machine, or the container this runs in, is out of it."""
    machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                machine = int(line.split()[1]) * 1024
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return machine
    return machine if limit == "max" else min(machine, max(0, int(limit) - used))
