# SPDX-License-Identifier: Apache-2.0
"""A point in time by which something must have happened, and waits that keep it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from distributed_fi.errors import InvalidArgumentError

_SPIN_S = 50e-6  # most steps end within this; a sleep costs at least as much
_MAX_SLEEP_S = 1e-3


def check_timeout(timeout_s: float) -> float:
    """Return `timeout_s`.

    Raises:
        InvalidArgumentError: it is no positive finite number of seconds.
    """
    if not isinstance(timeout_s, (int, float)) or isinstance(timeout_s, bool) or not 0 < timeout_s < 1e8:
        raise InvalidArgumentError("timeout_s", timeout_s, "a number of seconds > 0 and < 1e8")
    return float(timeout_s)


class Deadline:
    """The moment `timeout_s` seconds after its creation, on the monotonic clock."""

    __slots__ = ("_end", "timeout_s")

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left, 0 once expired."""
        return max(0.0, self._end - time.monotonic())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the creation."""
        return self.timeout_s - (self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._end

    def left(self) -> timedelta:
        """Time left, at least 1 ms: torch takes 0 as "no limit"."""
        return timedelta(seconds=max(1e-3, self._end - time.monotonic()))

    def poll(self, ready: Callable[[], bool], *, every_s: float) -> bool:
        """Call `ready` every `every_s` seconds until it is true; False where the deadline came first."""
        while not ready():
            if self.expired:
                return False
            time.sleep(min(every_s, self.left_s))
        return True


class Event(Protocol):
    """What `wait_for_event` needs of a torch.cuda.Event."""

    def query(self) -> bool: ...


def wait_for_event(event: Event, deadline: Deadline) -> bool:
    """Wait on the host for a device event without a blocking driver call, which nothing could interrupt.

    Returns:
        True when the event has happened, False where the deadline came first.
    """
    sleep_s = 0.0
    while not event.query():
        if deadline.expired:
            return False
        if deadline.elapsed_s > _SPIN_S:
            sleep_s = min(_MAX_SLEEP_S, sleep_s + 10e-6)
            time.sleep(sleep_s)
    return True


def run_bounded(action: Callable[[], object], timeout_s: float) -> bool:
    """Run `action` in a daemon thread and wait for it no longer than `timeout_s`.

    For driver calls that may never return and take no timeout. A late thread is left behind.

    Returns:
        True when it ended in time; False where it still runs.
    Raises:
        Exception: what `action` raised.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    return not thread.is_alive()
