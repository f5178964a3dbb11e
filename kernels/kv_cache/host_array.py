# SPDX-License-Identifier: Apache-2.0
"""Lengths, offsets and page indices as numpy arrays: planning happens on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from distributed_fi.errors import InvalidArgumentError

IntArray: TypeAlias = np.ndarray
HostInts: TypeAlias = np.ndarray | torch.Tensor | Sequence[int] | Sequence[Sequence[int]]


def host_array(name: str, value: HostInts, ndim: int | tuple[int, ...] = 1) -> IntArray:
    """`value` as an int64 numpy array of `ndim` dimensions; a CUDA tensor is copied, which waits for the device."""
    dims = (ndim,) if isinstance(ndim, int) else ndim
    wanted = f"a {' or '.join(f'{d}-D' for d in dims)} array of integers"
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    except (ValueError, TypeError):  # rows of different lengths, or values that are no numbers
        raise InvalidArgumentError(name, value, wanted) from None
    if array.ndim not in dims or (array.size and array.dtype.kind not in "iu"):
        raise InvalidArgumentError(name, f"{array.dtype} {list(array.shape)}", wanted)
    return array.astype(np.int64)


def host_indptr(name: str, value: HostInts, batch_size: int | None = None) -> IntArray:
    """`value` as an exclusive prefix sum: [batch_size + 1], starts at 0, never falls."""
    indptr = host_array(name, value)
    size = "batch_size + 1" if batch_size is None else f"batch_size + 1 = {batch_size + 1}"
    if len(indptr) < 1 or (batch_size is not None and len(indptr) != batch_size + 1):
        raise InvalidArgumentError(name, f"{len(indptr)} values", f"{size} values")
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise InvalidArgumentError(name, indptr.tolist(), "a prefix sum that starts at 0 and never falls")
    return indptr


def host_counts(name: str, value: HostInts, batch_size: int) -> IntArray:
    """`value` as one count >= 0 per request: [batch_size]."""
    counts = host_array(name, value)
    if len(counts) != batch_size:
        raise InvalidArgumentError(name, f"{len(counts)} values", f"{batch_size} values, one per request")
    if (counts < 0).any():
        raise InvalidArgumentError(name, counts.tolist(), "values >= 0")
    return counts
