# SPDX-License-Identifier: Apache-2.0
"""Philox4x32-10: random numbers as a pure function of a key and a counter.

Ten rounds of two 32 x 32 -> 64 bit products and xors (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"). Keyed by a request's seed and counted by the token's position, the random number of a token
depends on nothing else: not on the batch it is in, its row, the other requests, or the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
# On the host, numpy's calls cost nearly the same for one row as for many, Python's ints in proportion to the rows.
MAX_ROWS_ONE_BY_ONE = 12


def philox4x32(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Four random 32-bit words.

    Args:
        counter: four words.
        key: two words. All words are Python ints, or uint64 numpy arrays, or int64 tensors, in [0, 2^32):
            the same code serves a few tokens, many on the host, and the device.
    Returns:
        Four words of the same kind.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(MULTIPLIERS[0], c0)
        high1, low1 = _product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def philox_uniform(seed: Tensor, position: Tensor, *, stream: int = 0) -> Tensor:
    """One uniform random number per row, a function of the row's seed and position alone, and of the stream.

    u = (w + 1/2) / 2^52, w = the upper 52 bits of the first two words of philox4x32 with
    key = seed (low word, high word) and counter = (position low, position high, stream, 0)

    Args:
        seed: [batch], int64.
        position: [batch], int64 or int32, on seed's device.
        stream: in [0, 2^32); numbers of different streams are independent. Sampling a token takes stream 0.
    Returns:
        [batch], float64, in (0, 1): neither end occurs.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit.
    Notes: the same numbers on every device. On CUDA: current stream, graph-capturable.
    """
    dims = Dims()
    check_tensor("seed", seed, ("batch",), dims, dtype=torch.int64)
    check_tensor("position", position, ("batch",), dims, dtype=(torch.int64, torch.int32), device=seed.device)
    if seed.device.type != "cpu":
        return _uniform(*_block(seed, position.long(), stream))
    if len(seed) <= MAX_ROWS_ONE_BY_ONE:
        rows = [_uniform(*_block(s, p, stream)) for s, p in zip(seed.tolist(), position.tolist(), strict=True)]
        return torch.tensor(rows, dtype=torch.float64)
    words = (seed.numpy().view(np.uint64), position.long().numpy().view(np.uint64))
    return torch.from_numpy(_uniform(*_block(*words, stream)))


def _block(seed: Any, position: Any, stream: int = 0) -> tuple[Any, Any]:
    """First two words at counter (position, stream), key seed."""
    zero = position & 0
    words = philox4x32((position & MASK, position >> 32 & MASK, zero + stream, zero), (seed & MASK, seed >> 32 & MASK))
    return words[:2]


def _uniform(w0: Any, w1: Any) -> Any:
    w = (w0 << 20) | (w1 >> 12)
    return ((w.double() if isinstance(w, Tensor) else w) + 0.5) * 2.0**-52


def _product(a: int, b: Any) -> tuple[Any, Any]:
    """High and low word of a * b."""
    if not isinstance(b, Tensor):
        product = a * b
        return product >> 32, product & MASK
    # The product could overflow int64, which is all that torch has: go by 16-bit halves of b.
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
