# SPDX-License-Identifier: Apache-2.0
"""Number formats as tables of all their values, and rounding as a search in them, in Python."""

from __future__ import annotations

import math
from collections.abc import Sequence


def values(exponent_bits: int, mantissa_bits: int, specials: int) -> list[float]:
    """Finite magnitudes by code, ascending; `specials` top codes are infinities and NaNs."""
    bias = 2 ** (exponent_bits - 1) - 1
    table = []
    for code in range(2 ** (exponent_bits + mantissa_bits) - specials):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        fraction = mantissa / 2**mantissa_bits
        table.append((1 + fraction) * 2.0 ** (exponent - bias) if exponent else fraction * 2.0 ** (1 - bias))
    return table


E4M3 = values(4, 3, specials=1)
E5M2 = values(5, 2, specials=4)
E2M1 = values(2, 1, specials=0)


def nearest(x: float, table: Sequence[float]) -> float:
    """The table's value nearest to x, the even code of two, with x's sign; beyond the last, the last."""
    code = min(range(len(table)), key=lambda i: (abs(table[i] - abs(x)), i % 2))
    return math.copysign(table[code], x)


def nvfp4_block(block: Sequence[float], global_scale: float) -> list[float]:
    """What a block of NVFP4 stands for."""
    scale = nearest(max(abs(x) for x in block) * global_scale / 6, E4M3)
    return [nearest(x * global_scale / scale, E2M1) * scale / global_scale if scale else 0.0 for x in block]


def mxfp4_block(block: Sequence[float]) -> list[float]:
    """What a block of MXFP4 stands for: scaled by the first power of two that lets every entry fit."""
    peak = max(abs(x) for x in block)
    scale = next((2.0**e for e in range(-127, 128) if 6 * 2.0**e >= peak), 2.0**127)
    return [nearest(x / scale, E2M1) * scale for x in block]


def packbits(bits: Sequence[bool], bitorder: str) -> list[int]:
    """Eight bits a byte, the first one the highest ("big") or the lowest ("little"); zeros fill the last byte."""
    octets = [bits[i : i + 8] for i in range(0, len(bits), 8)]
    weight = {"big": lambda i: 128 >> i, "little": lambda i: 1 << i}[bitorder]
    return [sum(weight(i) for i, bit in enumerate(octet) if bit) for octet in octets]
