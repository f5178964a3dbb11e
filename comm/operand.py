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


def check_norm_operands(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    *,
    norm_out: Tensor | None,
    residual_out: Tensor | None,
    device: torch.device,
) -> None:
    """Raise InvalidArgumentError unless these fit together; norm_out may be x and residual_out residual, no more."""
    dims = Dims()
    shape = [f"dim{i}" for i in range(x.dim() - 1)] + ["hidden_size"] if isinstance(x, Tensor) else []
    check_tensor("x", x, shape, dims, dtype=NORM_DTYPES, device=device)
    check_tensor("residual", residual, shape, dims, dtype=x.dtype, device=device)
    check_tensor("weight", weight, ("hidden_size",), dims, dtype=x.dtype, device=device)
    outputs = (("norm_out", norm_out, x), ("residual_out", residual_out, residual))
    operands = [("x", x), ("residual", residual), ("weight", weight)]
    for name, out, same in outputs:
        if out is not None and out is not same:
            check_tensor(name, out, shape, dims, dtype=x.dtype, device=device)
            operands.append((name, out))
    # Tensors of separate storages are apart: the usual case, found at once.
    if len({tensor.untyped_storage().data_ptr() for _, tensor in operands}) == len(operands):
        return
    for name, out, same in outputs:
        if out is not None:
            for other_name, other in operands:
                check_apart(name, out, other_name, other, may_be_same=other is same or other_name == name)


def output_like(x: Tensor, out: Tensor | None, shape: Sequence[int], *, may_be_x: bool = False) -> Tensor:
    """`out`, checked to have this shape and x's dtype and device and memory of its own; allocated where it is None."""
    if out is None:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    if out is x and may_be_x:
        return out
    check_tensor("out", out, shape, Dims(), dtype=x.dtype, device=x.device)
    check_apart("out", out, "x", x, may_be_same=may_be_x)
    return out


def check_apart(name: str, out: Tensor, other_name: str, other: Tensor, *, may_be_same: bool = False) -> None:
    """Raise InvalidArgumentError where `out` shares memory with `other`, unless it is all of it and that is allowed."""
    if out is other and may_be_same:
        return
    if out.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not _overlap(out, other):
        return
    start, other_start = out.storage_offset(), other.storage_offset()
    if may_be_same and (start, out.shape, out.stride()) == (other_start, other.shape, other.stride()):
        return
    either = f"{other_name} itself or " if may_be_same else ""
    raise InvalidArgumentError(name, f"memory of {other_name}", f"{either}memory that does not overlap {other_name}")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage and item size have an element in common."""
    spans = [(t.storage_offset(), t.storage_offset() + _extent(t)) for t in (a, b)]
    start, end = min(s for s, _ in spans), max(e for _, e in spans)
    if not a.numel() or not b.numel() or max(s for s, _ in spans) >= min(e for _, e in spans):
        return False
    if a.is_contiguous() and b.is_contiguous():
        return True
    # Columns of one matrix lie between each other: mark what one has, look where the other is.
    marks = torch.zeros(end - start, dtype=torch.bool)
    marks.as_strided(a.shape, a.stride(), spans[0][0] - start).fill_(True)
    return bool(marks.as_strided(b.shape, b.stride(), spans[1][0] - start).any())


def _extent(x: Tensor) -> int:
    """Elements from x's first to its last in memory, both included."""
    return 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))


def contiguous_target(out: Tensor) -> Tensor:
    """`out` itself, or memory for a copy of it where it is not contiguous."""
    return out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)


def delivered(result: Tensor, target: Tensor) -> Tensor:
    """`result`, filled from `target` where that is other memory."""
    if target is not result:
        with torch.inference_mode():  # as the backends: whatever autograd makes of result
            result.copy_(target)
    return result


def byte_view(x: Tensor) -> Tensor:
    """x, contiguous (copied where it is not), as uint8 [bytes]."""
    return x.contiguous().view(-1).view(torch.uint8)


def dim_index(x: Tensor, dim: int) -> int:
    """`dim` counted from the front.

    Raises:
        InvalidArgumentError: x does not have it.
    """
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise InvalidArgumentError("dim", dim, "an integer")
    if not -x.dim() <= dim < x.dim():
        raise InvalidArgumentError("dim", dim, f"a dimension of x, which is {list(x.shape)}")
    return dim % x.dim()


def rank_sizes(name: str, sizes: Sequence[int] | None, world_size: int, *, even: int) -> list[int]:
    """One size per rank: `sizes`, checked, or `even` for each."""
    if sizes is None:
        return [even] * world_size
    given = list(sizes) if isinstance(sizes, Sequence) else []
    if len(given) != world_size or any(not isinstance(n, int) or n < 0 for n in given):
        raise InvalidArgumentError(name, sizes, f"{world_size} sizes >= 0, one per rank")
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
