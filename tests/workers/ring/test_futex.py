# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import platform
import threading

import pytest

from distributed_fi.errors import UnsupportedError
from distributed_fi.workers.ring import futex


def test_wait_returns_at_once_where_the_word_has_another_value() -> None:
    word = ctypes.c_uint32(7)
    futex.wait(ctypes.addressof(word), 6, timeout_s=3600.0)
    assert word.value == 7


def test_wait_ends_with_its_timeout() -> None:
    word = ctypes.c_uint32(7)
    futex.wait(ctypes.addressof(word), 7, timeout_s=0.001)
    assert word.value == 7


def test_wake_ends_the_sleep_of_all_waiters() -> None:
    word = ctypes.c_uint32(0)
    address = ctypes.addressof(word)
    waiters = [threading.Thread(target=futex.wait, args=(address, 0, 3600.0)) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    woken = 0
    while woken < 3:
        woken += futex.wake(address)
    for waiter in waiters:
        waiter.join()
    assert woken == 3


def test_address_that_is_not_mapped_is_an_error() -> None:
    with pytest.raises(OSError, match=r"Bad address"):
        futex.wait(8, 0, timeout_s=1.0)


def test_another_platform_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match=r"platform: expected Linux x86_64, got Linux aarch64"):
        futex.check_platform()
