# SPDX-License-Identifier: Apache-2.0
"""What every gated activation asks of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def gate_and_up(input: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of the last dimension; raises InvalidArgumentError unless it is a float [..., 2 * d]."""
    if not isinstance(input, Tensor):
        raise InvalidArgumentError("input", type(input).__name__, "a torch.Tensor")
    if input.dim() == 0 or input.shape[-1] % 2:
        raise InvalidArgumentError("input", list(input.shape), "[..., 2 * d], an even last dimension")
    if input.dtype not in FLOATS:
        raise InvalidArgumentError("input", str(input.dtype).removeprefix("torch."), "float32, bfloat16 or float16")
    gate, up = input.chunk(2, -1)
    return gate, up
