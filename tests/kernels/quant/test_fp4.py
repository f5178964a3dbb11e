# SPDX-License-Identifier: Apache-2.0
"""NVFP4 and MXFP4, which share their four-bit entries."""

from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.quant import reference
from distributed_fi.kernels.quant.e2m1 import from_e2m1, to_e2m1
from distributed_fi.quantization import mxfp4_dequantize, mxfp4_quantize, nvfp4_dequantize, nvfp4_quantize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of very different size."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return (x * torch.logspace(-2, 2, shape[0])[:, None]).to(dtype)


def test_entries_round_to_the_nearest_of_all_sixteen() -> None:
    grid = torch.cat([torch.arange(-700, 701) / 100, torch.tensor([0.0])])[None]  # holds every middle
    packed = to_e2m1(grid)
    assert packed.dtype == torch.uint8
    assert from_e2m1(packed).tolist() == [[reference.nearest(x, reference.E2M1) for x in grid[0].tolist()]]


def test_the_even_entry_is_in_the_low_half() -> None:
    codes = torch.arange(16)
    every_byte = (codes[:, None] * 16 + codes).flatten().to(torch.uint8)[None]  # high * 16 + low
    values = from_e2m1(every_byte)[0].tolist()
    table = [*reference.E2M1, *(-v for v in reference.E2M1)]
    assert values[0::2] == table * 16
    assert values[1::2] == [v for v in table for _ in range(16)]
    assert torch.equal(to_e2m1(from_e2m1(every_byte)), every_byte)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nvfp4_block_by_block(dtype: torch.dtype) -> None:
    x = draw(7, 48, dtype=dtype)
    q, block_scale, global_scale = nvfp4_quantize(x)
    assert (q.shape, block_scale.shape, global_scale.shape) == ((7, 24), (7, 3), (1,))
    assert global_scale.item() == pytest.approx(448 * 6 / x.abs().max().item())
    out = nvfp4_dequantize(q, block_scale, global_scale)
    blocks = x.double().view(-1, 16).tolist()
    expected = [reference.nvfp4_block(block, global_scale.item()) for block in blocks]
    torch.testing.assert_close(out.view(-1, 16), torch.tensor(expected), rtol=1e-6, atol=0)


def test_nvfp4_given_global_scale_saturates_and_zero_blocks_stay_zero() -> None:
    x = torch.zeros(1, 48)
    x[0, 0], x[0, 16], x[0, 17] = 1e9, 1e-9, torch.nan
    out = nvfp4_dequantize(*nvfp4_quantize(x, torch.ones(1)))
    assert out[0, :16].tolist() == [6 * 448.0, *[0.0] * 15]
    assert out[0, 16:32].isnan().all()
    x[0, 17] = 0.0
    assert nvfp4_dequantize(*nvfp4_quantize(x, torch.ones(1)))[0, 16:].tolist() == [0.0] * 32
    assert nvfp4_dequantize(*nvfp4_quantize(torch.zeros(2, 16))).tolist() == [[0.0] * 16] * 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mxfp4_block_by_block(dtype: torch.dtype) -> None:
    x = draw(7, 96, dtype=dtype)
    x[0, :32] = 0
    x[1, 0] = 6 * 2.0**5  # fits exactly
    q, scale = mxfp4_quantize(x)
    assert (q.shape, scale.shape, scale.dtype) == ((7, 48), (7, 3), torch.float8_e8m0fnu)
    assert scale.view(torch.uint8)[1, 0].item() == 127 + 5  # not one more
    out = mxfp4_dequantize(q, scale)
    expected = [reference.mxfp4_block(block) for block in x.double().view(-1, 32).tolist()]
    torch.testing.assert_close(out.view(-1, 32).double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0)
    assert torch.equal(mxfp4_dequantize(q, scale.view(torch.uint8), out_dtype=dtype), out.to(dtype))


def test_mxfp4_at_the_ends_of_float32() -> None:
    x = torch.zeros(4, 32)
    x[0, 0], x[1, 0], x[2, 0], x[3, 0] = 1.5 * 2.0**127, 1e-45, torch.nan, torch.inf
    q, scale = mxfp4_quantize(x)
    assert scale.view(torch.uint8).flatten().tolist()[1:] == [0, 255, 255]
    out = mxfp4_dequantize(q, scale)
    assert out[0, 0].item() == 1.5 * 2.0**127
    assert out[1].tolist() == [0.0] * 32
    assert out[2:].isnan().all()


def test_strided_and_empty_inputs() -> None:
    x = draw(32, 3).t()
    for quantize in (nvfp4_quantize, mxfp4_quantize):
        for found, expected in zip(quantize(x), quantize(x.contiguous()), strict=True):
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    assert nvfp4_dequantize(*nvfp4_quantize(torch.empty(0, 32))).shape == (0, 32)
    assert mxfp4_dequantize(*mxfp4_quantize(torch.empty(0, 32))).shape == (0, 32)
    assert mxfp4_dequantize(*mxfp4_quantize(torch.empty(2, 0))).shape == (2, 0)
    assert nvfp4_dequantize(*nvfp4_quantize(torch.empty(2, 0))).shape == (2, 0)


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match=r"x: expected \[m, k\], k a multiple of 16, got \[2, 24\]"):
        nvfp4_quantize(torch.ones(2, 24))
    with pytest.raises(InvalidArgumentError, match=r"x: expected \[m, k\], k a multiple of 32, got \[2, 48\]"):
        mxfp4_quantize(torch.ones(2, 48))
    with pytest.raises(InvalidArgumentError, match=r"global_scale: expected \[1\], got \[\]"):
        nvfp4_quantize(torch.ones(2, 16), torch.tensor(1.0))
    q, scale = mxfp4_quantize(torch.ones(2, 64))
    with pytest.raises(InvalidArgumentError, match=r"scale: expected \[2, 2\], got \[2, 1\]"):
        mxfp4_dequantize(q, scale[:, :1])
    with pytest.raises(InvalidArgumentError, match="block_scale: expected dtype float8_e4m3fn, got float32"):
        nvfp4_dequantize(q, torch.ones(2, 4), torch.ones(1))
