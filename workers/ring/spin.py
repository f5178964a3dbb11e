# SPDX-License-Identifier: Apache-2.0
"""How long a waiter looks again and again before it goes to sleep."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from distributed_fi import env

# Two ranks and a writer on 2 virtual cores, 4700 bytes there and replies back, p50: asleep at once 116-327 us,
# 20 us 62-301, 100 us 33-66, 300 us 40-66 (one rank: 39-184, 17-204, 18-47, 15-47). With a stranger on one core, or
# 4 and 8 ranks on the 2 cores, 100 us is near the best as well: the spin yields, so it takes a core from nobody,
# while waking a sleeper on an idle virtual core costs more than a short wait.
DEFAULT_SPIN_US = 100


def default_spin_us() -> int:
    """DFI_SPIN_US, else 100: long enough for a rank that only has to answer, nothing beside a real step."""
    chosen = env.spin_us()
    return DEFAULT_SPIN_US if chosen is None else chosen


def spin(ready: Callable[[], bool], spin_us: int) -> bool:
    """Look until `ready()` or `spin_us` are over, giving way to other processes; returns what it saw last."""
    if ready():
        return True
    end_ns = time.perf_counter_ns() + spin_us * 1000
    while time.perf_counter_ns() < end_ns:
        os.sched_yield()
        if ready():
            return True
    return False
