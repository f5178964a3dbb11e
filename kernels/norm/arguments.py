# SPDX-License-Identifier: Apache-2.0
"""What every norm asks of its tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.kernels.check import Dims, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_input_and_weight(input: Tensor, weight: Tensor) -> None:
    """Raise InvalidArgumentError unless they are [..., hidden_size] and [hidden_size], of one dtype and device."""
    # The full check costs half of a small norm, and a token runs through 60 norms: look first, explain after.
    if (
        isinstance(input, Tensor)
        and isinstance(weight, Tensor)
        and input.dtype in FLOATS
        and input.dtype == weight.dtype
        and input.dim() > 0
        and input.shape[-1:] == weight.shape
        and input.device == weight.device
    ):
        return
    dims = Dims()
    check_input(input, dims)
    check_tensor("weight", weight, ("hidden_size",), dims, dtype=input.dtype, device=input.device)


def check_input(input: Tensor, dims: Dims) -> None:
    """Raise InvalidArgumentError unless it is a float [..., hidden_size]; binds hidden_size."""
    leading = [f"dim{i}" for i in range(input.dim() - 1)] if isinstance(input, Tensor) else []
    check_tensor("input", input, (*leading, "hidden_size"), dims, dtype=FLOATS)
