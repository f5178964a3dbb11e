# SPDX-License-Identifier: Apache-2.0
"""The k largest entries of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def top_k(input: Tensor, k: int, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, and where they are.

    values[i, j] = input[i, indices[i, j]]

    Args:
        input: [batch, d], float32, bfloat16 or float16; NaN counts as larger than all.
        k: in [1, d].
        sorted: largest first, and among equals the smallest index; False: by index, ascending.
    Returns:
        (values, indices): [batch, k] in input's dtype, and [batch, k] int64. Exactly k, and always the same ones:
        among equals, the smallest indices.
    Raises:
        InvalidArgumentError: a shape or dtype that does not fit, a k out of range.
    Notes: sorts the rows; torch.topk is faster and leaves open which of several equals it takes. Rows are
        independent. Current stream; no synchronisation; deterministic.
    """
    dims = Dims()
    check_tensor("input", input, ("batch", "d"), dims, dtype=FLOATS)
    if not isinstance(k, int) or not 1 <= k <= dims["d"]:
        raise InvalidArgumentError("k", k, f"an integer in [1, d={dims['d']}]")
    values, indices = input.sort(dim=-1, descending=True, stable=True)
    if sorted:
        return values[:, :k].contiguous(), indices[:, :k].contiguous()
    indices = indices[:, :k].sort(dim=-1).values
    return input.gather(-1, indices), indices
