# SPDX-License-Identifier: Apache-2.0
import threading
import time

import pytest

from distributed_fi.comm.deadline import Deadline, check_timeout, run_bounded, wait_for_event
from distributed_fi.errors import InvalidArgumentError


class CountingEvent:
    """Happens at the n-th query."""

    def __init__(self, num_queries: int):
        self.num_left = num_queries

    def query(self) -> bool:
        self.num_left -= 1
        return self.num_left <= 0


def test_time_left_falls_to_zero_but_never_to_no_limit() -> None:
    deadline = Deadline(0.02)
    assert 0 < deadline.left_s <= 0.02
    assert not deadline.expired
    time.sleep(0.03)
    assert deadline.expired
    assert deadline.left_s == 0
    assert deadline.left().total_seconds() == 0.001
    assert deadline.elapsed_s >= 0.03


def test_poll_ends_when_ready_or_late() -> None:
    assert Deadline(5).poll(CountingEvent(3).query, every_s=0.001)
    assert not Deadline(0.02).poll(lambda: False, every_s=0.001)


def test_wait_for_event_ends_when_it_has_happened_or_late() -> None:
    assert wait_for_event(CountingEvent(20), Deadline(5))
    assert not wait_for_event(CountingEvent(10**9), Deadline(0.02))


def test_run_bounded_leaves_what_does_not_return() -> None:
    release = threading.Event()
    assert run_bounded(lambda: None, 5)
    assert not run_bounded(release.wait, 0.02)
    release.set()


def test_run_bounded_raises_what_the_action_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_bounded(lambda: 1 / 0, 5)


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "3", True, None])
def test_a_timeout_that_is_none_is_named(timeout_s: object) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout_s: expected a number of seconds > 0 and < 1e8, got "):
        check_timeout(timeout_s)
