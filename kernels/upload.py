# SPDX-License-Identifier: Apache-2.0
"""From host arrays to a device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: NDArray[Any] | Tensor, device: torch.device | str) -> Tensor:
    """`values`, an array or a CPU tensor, as a tensor on `device`.

    Notes: on CUDA the copy is queued on the current stream, from pinned memory, because a copy from pageable
    memory makes the host wait; torch keeps the pinned block until the copy is done. On the CPU nothing is copied.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
