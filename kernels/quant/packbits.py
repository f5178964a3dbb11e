# SPDX-License-Identifier: Apache-2.0
"""Booleans, such as attention masks, at eight to the byte."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor

BITS = (torch.bool, torch.uint8)
INTS = (torch.int32, torch.int64)
BitOrder = Literal["big", "little"]


def packbits(x: Tensor, bitorder: BitOrder = "big") -> Tensor:
    """Bits packed into bytes.

    out[i] = sum over j < 8 of (x[8 i + j] != 0) * 2^(7 - j), or 2^j for "little"; zeros fill the last byte

    Args:
        x: [num_bits], bool or uint8.
        bitorder: "big": a byte's first bit is its highest; "little": its lowest.
    Returns:
        [ceil(num_bits / 8)], uint8.
    Raises:
        InvalidArgumentError: a shape, dtype or bitorder that does not fit.
    Notes: as numpy.packbits of a vector. Current stream; graph-capturable.
    """
    check_tensor("x", x, ("num_bits",), Dims(), dtype=BITS)
    weights = _weights(bitorder, x.device)
    octets = torch.nn.functional.pad(x != 0, (0, -x.shape[0] % 8)).view(-1, 8)
    return (octets * weights).sum(-1, dtype=torch.uint8)


def segment_packbits(x: Tensor, indptr: Tensor, bitorder: BitOrder = "big") -> tuple[Tensor, Tensor]:
    """Bits of ragged segments packed into bytes, each segment from a byte of its own.

    out[packed_indptr[i] : packed_indptr[i + 1]] = packbits(x[indptr[i] : indptr[i + 1]])

    Args:
        x: [num_bits], bool or uint8.
        indptr: [batch + 1], int32 or int64, on x's device, ascending from 0 to num_bits.
        bitorder: "big": a byte's first bit is its highest; "little": its lowest.
    Returns:
        (packed, packed_indptr): uint8 [packed_indptr[-1]], and [batch + 1] in indptr's dtype.
    Raises:
        InvalidArgumentError: a shape, dtype, device or bitorder that does not fit; an indptr that does not ascend
            from 0 to num_bits.
    Notes: the size of the result depends on indptr's values, so on CUDA it waits for the device.
    """
    check_tensor("x", x, ("num_bits",), Dims(), dtype=BITS)
    check_tensor("indptr", indptr, ("batch + 1",), Dims(), dtype=INTS, device=x.device)
    bounds = indptr.tolist()
    if not bounds or bounds[0] != 0 or bounds[-1] != x.shape[0] or bounds != sorted(bounds):
        raise InvalidArgumentError("indptr", bounds, f"entries that ascend from 0 to num_bits={x.shape[0]}")
    lens = indptr.diff()
    packed_indptr = torch.zeros_like(indptr)
    packed_indptr[1:] = ((lens + 7) // 8).cumsum(0)
    shift = (packed_indptr[:-1] * 8 - indptr[:-1]).long().repeat_interleave(lens.long())
    padded = torch.zeros(int(packed_indptr[-1]) * 8, dtype=torch.bool, device=x.device)
    padded[torch.arange(x.shape[0], device=x.device) + shift] = x != 0
    return packbits(padded, bitorder), packed_indptr


def _weights(bitorder: BitOrder, device: torch.device) -> Tensor:
    if bitorder not in ("big", "little"):
        raise InvalidArgumentError("bitorder", bitorder, "big or little")
    places = torch.arange(8, device=device)
    return (1 << (7 - places if bitorder == "big" else places)).to(torch.uint8)
