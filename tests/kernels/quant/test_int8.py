# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.quantization import int8_dequantize, int8_quantize

# Rows and columns of a 130 x 150 matrix that share a scale.
SHARES = {"per_tensor": (130, 150), "per_token": (1, 150), "1x128": (1, 128), "128x128": (128, 128)}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("granularity", SHARES)
def test_each_share_fills_127_steps(granularity: Any) -> None:
    x = draw(130, 150)
    q, scale = int8_quantize(x, granularity=granularity)
    assert q.dtype == torch.int8
    out = int8_dequantize(q, scale, granularity=granularity)
    height, width = SHARES[granularity]
    for top in range(0, 130, height):
        for left in range(0, 150, width):
            share = (slice(top, top + height), slice(left, left + width))
            step = x[share].abs().max().item() / 127
            assert q[share].abs().max().item() == 127
            assert (out[share] - x[share]).abs().max().item() <= step * 0.5001


def test_rounds_half_to_even_and_saturates() -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 500.0, -127.6, -500.0, torch.nan]])
    q, _ = int8_quantize(x, granularity="per_tensor", scale=torch.ones(1))
    assert q.tolist() == [[0, 2, 2, 0, -2, 127, 127, -128, -128, 0]]


def test_zeros_stay_zeros_and_nan_stays_in_its_row() -> None:
    x = torch.zeros(3, 8, dtype=torch.bfloat16)
    x[1, 2], x[2, 2] = torch.nan, torch.inf
    out = int8_dequantize(*int8_quantize(x), out_dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert out[0].tolist() == [0.0] * 8
    assert out[1].isnan().all()
    assert out[2].isnan().any()


def test_no_rows_and_wrong_arguments() -> None:
    q, scale = int8_quantize(torch.empty(0, 8))
    assert int8_dequantize(q, scale).shape == (0, 8)
    with pytest.raises(InvalidArgumentError, match=r"scale: expected \[2, 1\], got \[1\]"):
        int8_quantize(torch.ones(2, 8), scale=torch.ones(1))
    with pytest.raises(InvalidArgumentError, match="x: expected dtype float32 or bfloat16 or float16, got int8"):
        int8_quantize(torch.ones(2, 8, dtype=torch.int8))
    with pytest.raises(InvalidArgumentError, match="q: expected dtype int8, got uint8"):
        int8_dequantize(torch.ones(2, 8, dtype=torch.uint8), torch.ones(2, 1))
