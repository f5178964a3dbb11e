# SPDX-License-Identifier: Apache-2.0
"""Tensors and sizes that callers hand to a collective: checked, flattened, allocated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distributed_fi.comm.fingerprint import DTYPES, MAX_DIMS, sizes_digest
from distributed_fi.errors import InvalidArgumentError, UnsupportedError
from distributed_fi.kernels.check import Dims, check_tensor

SUM_DTYPES = DTYPES[:7]  # float32, float64, bfloat16, float16, int32, int64, uint8
NORM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_operand(x: object, dtypes: Sequence[torch.dtype], device: torch.device) -> None:
    """Raise InvalidArgumentError or UnsupportedError unless x can go through a collective on `device`."""
    if not isinstance(x, Tensor):
        raise InvalidArgumentError("x", type(x).__name__, "a torch.Tensor")
    if x.dtype not in dtypes:
        allowed = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise InvalidArgumentError("x", str(x.dtype).removeprefix("torch."), f"dtype {allowed}")
    if x.device != device:
        raise InvalidArgumentError("x", str(x.device), f"a tensor on {device}")
    if x.dim() > MAX_DIMS:
        raise UnsupportedError("x", list(x.shape), f"at most {MAX_DIMS} dimensions")


def output_like(x: Tensor, out: Tensor | None, shape: Sequence[int]) -> Tensor:
    """`out`, checked to have this shape and x's dtype and device; allocated where it is None."""
    if out is None:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    check_tensor("out", out, shape, Dims(), dtype=x.dtype, device=x.device)
    return out


def contiguous_target(out: Tensor) -> Tensor:
    """`out` itself, or memory for a copy of it where it is not contiguous."""
    return out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)


def byte_view(x: Tensor) -> Tensor:
    """x, contiguous (copied where it is not), as uint8 [bytes]."""
    return x.contiguous().view(-1).view(torch.uint8)


def dim_index(x: Tensor, dim: int) -> int:
    """`dim` counted from the front.

    Raises:
        InvalidArgumentError: x does not have it.
    """
    if not -x.dim() <= dim < x.dim():
        raise InvalidArgumentError("dim", dim, f"a dimension of x, which is {list(x.shape)}")
    return dim % x.dim()


def rank_sizes(name: str, sizes: Sequence[int] | None, world_size: int, *, even: int) -> list[int]:
    """One size per rank: `sizes`, checked, or `even` for each."""
    if sizes is None:
        return [even] * world_size
    given = list(sizes)
    if len(given) != world_size or any(not isinstance(n, int) or n < 0 for n in given):
        raise InvalidArgumentError(name, given, f"{world_size} sizes >= 0, one per rank")
    return given


def even_rows(x: Tensor, world_size: int, *, alternative: str) -> int:
    """Rows of x per rank.

    Raises:
        InvalidArgumentError: they do not divide; `alternative` names the argument for that case.
    """
    if x.shape[0] % world_size:
        raise InvalidArgumentError("x", list(x.shape), f"rows divisible by {world_size} ranks, or {alternative}")
    return x.shape[0] // world_size


def check_sum(name: str, sizes: Sequence[int], total: int) -> None:
    """Raise InvalidArgumentError unless the sizes add up to the rows of x."""
    if sum(sizes) != total:
        raise InvalidArgumentError(name, list(sizes), f"a sum of {total}, the rows of x")


def agreed_shape(shape: Sequence[int], dim: int, sizes: Sequence[int] | None) -> tuple[tuple[int, ...], int]:
    """What all ranks have in common of a tensor that is joined along `dim`: the shape (-1: free) and a digest."""
    if sizes is None:
        return tuple(shape), sizes_digest([], dim=dim) if dim else 0
    return (*shape[:dim], -1, *shape[dim + 1 :]), sizes_digest(sizes, dim=dim)
