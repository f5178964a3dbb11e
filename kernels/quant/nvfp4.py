# SPDX-License-Identifier: Apache-2.0
"""NVFP4: e2m1 entries, an e4m3 scale for each 16 of a row, and one float32 scale for all."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.quant.e2m1 import LARGEST, from_e2m1, to_e2m1

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 16
LARGEST_SCALE = 448.0


def nvfp4_quantize(x: Tensor, global_scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix in NVFP4.

    global_scale = 448 * 6 / max |x|;  block_scale = e4m3(global_scale * max |x of the block| / 6);
    q = e2m1(x * global_scale / block_scale), both rounded to the nearest, ties to even, and saturating

    Args:
        x: [m, k], float32, bfloat16 or float16, k a multiple of 16.
        global_scale: float32 [1], known beforehand (it multiplies x, as FlashInfer's a_global_sf); None takes it
            from x.
    Returns:
        (q, block_scale, global_scale): uint8 [m, k / 2], the even entry in the low half of a byte; float8_e4m3fn
        [m, k / 16], row-major (not in the tensor cores' swizzled order); float32 [1].
        x ~ q * block_scale / global_scale.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit, k not a multiple of 16.
    Notes: a block whose scale rounds to zero becomes zeros. A NaN makes its block NaN when it is given back, and
        without a given global_scale all of the matrix, as an infinity does then; with one, infinities saturate.
        Current stream; graph-capturable; deterministic. NVIDIA 2025, "Pretraining large language models with NVFP4".
    """
    check_tensor("x", x, ("m", "k"), Dims(), dtype=FLOATS)
    if x.shape[1] % BLOCK:
        raise InvalidArgumentError("x", list(x.shape), f"[m, k], k a multiple of {BLOCK}")
    blocks = x.float().reshape(x.shape[0], x.shape[1] // BLOCK, BLOCK)
    if global_scale is None:
        global_scale = _global_scale(x)
    check_tensor("global_scale", global_scale, (1,), Dims(), dtype=torch.float32, device=x.device)
    wanted = blocks.abs().amax(-1) * global_scale / LARGEST
    block_scale = wanted.clamp(max=LARGEST_SCALE).to(torch.float8_e4m3fn)
    factor = torch.where(block_scale.float() == 0, 0.0, global_scale / block_scale.float())
    return to_e2m1((blocks * factor[..., None]).reshape(x.shape)), block_scale, global_scale


def nvfp4_dequantize(
    q: Tensor, block_scale: Tensor, global_scale: Tensor, *, out_dtype: torch.dtype = torch.float32
) -> Tensor:
    """The matrix that `nvfp4_quantize` wrote down.

    out = q * (block_scale / global_scale)

    Args:
        q: [m, k / 2], uint8, two entries a byte, the even one low.
        block_scale: [m, k / 16], float8_e4m3fn.
        global_scale: [1], float32.
        out_dtype: float32, bfloat16 or float16.
    Returns:
        [m, k] in out_dtype, computed in float32 and rounded once.
    Raises:
        InvalidArgumentError: a shape, dtype or device that does not fit.
    """
    check_tensor("q", q, ("m", "k / 2"), Dims(), dtype=torch.uint8)
    shape = (q.shape[0], q.shape[1] * 2 // BLOCK)
    check_tensor("block_scale", block_scale, shape, Dims(), dtype=torch.float8_e4m3fn, device=q.device)
    check_tensor("global_scale", global_scale, (1,), Dims(), dtype=torch.float32, device=q.device)
    scale = (block_scale.float() / global_scale).repeat_interleave(BLOCK, 1)
    return (from_e2m1(q) * scale).to(out_dtype)


def _global_scale(x: Tensor) -> Tensor:
    """float32 [1]; 1 for a matrix of zeros."""
    peak = x.float().abs().amax().view(1) if x.numel() else torch.zeros(1, device=x.device)
    # The largest float32 rather than infinity where the peak is that small.
    fitting = (LARGEST_SCALE * LARGEST / peak).clamp_(max=torch.finfo(torch.float32).max)
    return torch.where(peak == 0, 1.0, fitting)
