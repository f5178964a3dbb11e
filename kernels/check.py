# SPDX-License-Identifier: Apache-2.0
"""One sentence per tensor: shape with named sizes shared across tensors, dtype, device.

    dims = Dims()
    check_tensor("q", q, ("num_tokens", "num_qo_heads", 128), dims, dtype=(torch.float32, torch.bfloat16))
    check_tensor("k", k, ("num_tokens", "num_kv_heads", 128), dims, dtype=q.dtype)

A named size is bound by the first tensor that has it and compared from then on; the error shows the
sizes bound so far: ``k: expected [num_tokens=7, num_kv_heads, 128], got [6, 2, 128]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distributed_fi.errors import InvalidArgumentError


class Dims(dict[str, int]):
    """Named sizes bound so far, shared by the tensors of one call."""


def check_tensor(
    name: str,
    tensor: object,
    shape: Sequence[int | str],
    dims: Dims,
    *,
    dtype: torch.dtype | Sequence[torch.dtype] | None = None,
    device: torch.device | None = None,
) -> None:
    """Raise InvalidArgumentError unless `tensor` has this shape, dtype and device.

    Args:
        name: the argument's name, for the message.
        shape: per dimension a fixed size, or a name bound in `dims`.
        dims: sizes bound by earlier tensors of the same call; new names are added.
        dtype: the one dtype, or those allowed.
        device: where it must live; None leaves it free.
    """
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgumentError(name, type(tensor).__name__, "a torch.Tensor")
    allowed = None if dtype is None else (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
    if allowed is not None and tensor.dtype not in allowed:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        raise InvalidArgumentError(name, str(tensor.dtype).removeprefix("torch."), f"dtype {wanted}")
    if device is not None and tensor.device != device:
        raise InvalidArgumentError(name, str(tensor.device), f"a tensor on {device}")
    if tensor.dim() != len(shape) or not all(map(lambda d, n: _matches(d, n, dims), shape, tensor.shape)):
        raise InvalidArgumentError(name, str(list(tensor.shape)), _wanted(shape, dims))
    dims.update({d: n for d, n in zip(shape, tensor.shape, strict=True) if isinstance(d, str)})


def _matches(dim: int | str, size: int, dims: Dims) -> bool:
    return size == dim if isinstance(dim, int) else dims.get(dim, size) == size


def _wanted(shape: Sequence[int | str], dims: Dims) -> str:
    parts = [f"{d}={dims[d]}" if isinstance(d, str) and d in dims else str(d) for d in shape]
    return "[" + ", ".join(parts) + "]"
