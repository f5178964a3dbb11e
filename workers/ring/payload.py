# SPDX-License-Identifier: Apache-2.0
"""What a message or a reply is made of: any contiguous buffer."""

from __future__ import annotations

import numpy as np

from distributed_fi.errors import InvalidArgumentError

Payload = bytes | bytearray | memoryview | np.ndarray


def flat_view(payload: Payload, max_bytes: int) -> memoryview:
    """The payload as bytes, not copied.

    Raises:
        InvalidArgumentError: it is strided, or larger than `max_bytes`.
    """
    view: memoryview = memoryview(payload)  # type: ignore[arg-type]  # numpy's stubs for 3.11 lack __buffer__
    if not view.c_contiguous:
        raise InvalidArgumentError("payload", f"strides {view.strides}", "a contiguous buffer")
    if view.nbytes > max_bytes:
        raise InvalidArgumentError("payload", f"{view.nbytes} bytes", f"at most {max_bytes} bytes, as the ring has")
    return view.cast("B") if view.nbytes else memoryview(b"")  # an empty view cannot be cast
