# SPDX-License-Identifier: Apache-2.0
"""The rotation itself: pairs of dimensions turned by given cosines and sines.

A pair is (x[i], x[i + rotary_dim / 2]) in the layout of Llama and NeoX, (x[2i], x[2i + 1]) in the interleaved one:

    a' = a cos - b sin,   b' = b cos + a sin

Both pairs' halves turn in one pass: x' = x * cos + swapped(x) * (-sin, sin).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError


class Turn(NamedTuple):
    """Cosines and signed sines of a batch of tokens, float32, shaped to broadcast over the heads of `turn_`."""

    cos: Tensor
    sin: Tensor
    rotary_dim: int
    interleave: bool


def make_turn(cos: Tensor, sin: Tensor, interleave: bool) -> Turn:
    """From cos and sin, each [num_tokens, rotary_dim / 2], float32."""
    pair_dim = -1 if interleave else -2
    signed = torch.stack((-sin, sin), dim=pair_dim)[:, None]  # [T, 1, 2, half] or [T, 1, half, 2]
    return Turn(cos[:, None].unsqueeze(pair_dim), signed, 2 * cos.shape[-1], interleave)


def turn_(x: Tensor, turn: Turn) -> None:
    """Rotate the first rotary_dim dimensions of x, [num_tokens, num_heads, head_dim], in place.

    In float32 throughout; a 16-bit x is rounded once.
    """
    half = turn.rotary_dim // 2
    pair = (half, 2) if turn.interleave else (2, half)
    pairs = x[..., : turn.rotary_dim].view(x.shape[0], x.shape[1], *pair)
    wide = pairs if x.dtype == torch.float32 else pairs.float()
    swapped = wide.flip(-1 if turn.interleave else -2)
    wide.mul_(turn.cos).addcmul_(swapped, turn.sin)
    if wide is not pairs:
        pairs.copy_(wide)


def copies(**tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies of the tensors, for the forms that leave their arguments alone."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(name, type(tensor).__name__, "a torch.Tensor")
    return tuple(tensor.clone() for tensor in tensors.values())
