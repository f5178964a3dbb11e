# SPDX-License-Identifier: Apache-2.0
"""Rows cut into consecutive segments, as the host needs them to launch one product a segment."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor

INTS = (torch.int32, torch.int64)


def host_indptr(name: str, indptr: Tensor, num_segments: int | None) -> list[int]:
    """An indptr's entries: [num_segments + 1] integers that ascend from 0; None leaves their number free.

    On CUDA this waits for the device.
    """
    length = "batch + 1" if num_segments is None else num_segments + 1
    check_tensor(name, indptr, (length,), Dims(), dtype=INTS)
    bounds: list[int] = indptr.tolist()
    if not bounds or bounds[0] != 0 or any(a > b for a, b in pairwise(bounds)):
        raise InvalidArgumentError(name, bounds, "entries that ascend from 0")
    return bounds
