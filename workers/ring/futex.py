# SPDX-License-Identifier: Apache-2.0
"""Sleep until a 32-bit word in shared memory changes, and wake those who sleep on it.

Called through ctypes, which releases the GIL for the length of the call; a signal handler runs when it is back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from distributed_fi.errors import UnsupportedError

_SYS_FUTEX = 202  # of x86-64
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1  # without FUTEX_PRIVATE_FLAG: the word is shared between processes
_EVERYBODY = 2**31 - 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint32,
    ctypes.POINTER(_Timespec),
    ctypes.c_void_p,
    ctypes.c_uint32,
)


def check_platform() -> None:
    """Raise UnsupportedError where the ring's ordering argument or its system call does not hold."""
    here = f"{platform.system()} {platform.machine()}"
    if here != "Linux x86_64":
        raise UnsupportedError("platform", here, "Linux x86_64")


def wait(address: int, expected: int, timeout_s: float) -> None:
    """Sleep while the word at `address` equals `expected`, until a wake, a signal, or `timeout_s`."""
    nanoseconds = max(int(timeout_s * 1e9), 1)
    timeout = _Timespec(nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
    if _syscall(_SYS_FUTEX, address, _FUTEX_WAIT, expected, ctypes.byref(timeout), None, 0) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR):
            raise OSError(code, os.strerror(code))


def wake(address: int) -> int:
    """Wake all who sleep on the word at `address`; returns how many did."""
    woken = _syscall(_SYS_FUTEX, address, _FUTEX_WAKE, _EVERYBODY, None, None, 0)
    if woken < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return woken
