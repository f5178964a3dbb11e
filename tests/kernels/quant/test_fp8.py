# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.quant import reference
from distributed_fi.quantization import fp8_dequantize, fp8_quantize

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
TABLES = {E4M3: reference.E4M3, E5M2: reference.E5M2}
# Rows and columns of a 200 x 300 matrix that share a scale.
SHARES = {"per_tensor": (200, 300), "per_token": (1, 300), "1x128": (1, 128), "128x128": (128, 128)}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator) * torch.randn(*shape, generator=generator).exp()
    return x.to(dtype)


@pytest.mark.parametrize("dtype", TABLES, ids=str)
def test_rounds_to_the_nearest_value_of_the_format(dtype: torch.dtype) -> None:
    table = TABLES[dtype]
    middles = [(a + b) / 2 for a, b in pairwise(table)]
    x = torch.tensor([[*table, *middles, *(-m for m in middles), *draw(100).tolist(), 1e6, -1e6]])
    q, scale = fp8_quantize(x, scale=torch.ones(1), dtype=dtype)
    assert q.dtype == dtype
    assert q.double().tolist() == [[reference.nearest(value, table) for value in x[0].tolist()]]
    assert torch.equal(fp8_dequantize(q, scale), q.float())


@pytest.mark.parametrize("dtype", TABLES, ids=str)
@pytest.mark.parametrize("granularity", SHARES)
def test_each_share_fills_the_format(granularity: Any, dtype: torch.dtype) -> None:
    x = draw(200, 300)
    q, scale = fp8_quantize(x, granularity=granularity, dtype=dtype)
    largest = TABLES[dtype][-1]
    height, width = SHARES[granularity]
    out = fp8_dequantize(q, scale, granularity=granularity)
    flat = iter(scale.flatten().tolist())
    for top in range(0, 200, height):
        for left in range(0, 300, width):
            share = (slice(top, top + height), slice(left, left + width))
            factor = x[share].abs().max().item() / largest
            assert next(flat) == pytest.approx(factor, rel=1e-6)
            assert q[share].float().abs().max().item() == largest
            # Half a unit in the last place of three (two) bits, or of the smallest subnormal.
            bits = {E4M3: 3, E5M2: 2}[dtype]
            tolerance = x[share].abs() * 2.0 ** -(bits + 1) * 1.001 + TABLES[dtype][1] * factor
            assert bool(((out[share] - x[share]).abs() <= tolerance).all())
    assert next(flat, None) is None


def test_16_bit_inputs_are_divided_in_float32() -> None:
    x = draw(3, 40, dtype=torch.bfloat16)
    q, scale = fp8_quantize(x, granularity="per_token")
    expected = [
        [reference.nearest(value, reference.E4M3) for value in (row / row.abs().max() * 448).tolist()]
        for row in x.double()
    ]
    assert q.double().tolist() == expected
    assert fp8_dequantize(q, scale, granularity="per_token", out_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_zeros_and_tiny_values_stay_finite_and_nan_stays_in_its_row() -> None:
    x = torch.zeros(4, 8)
    x[1, 0], x[2, 3], x[3, 3] = 1e-44, torch.nan, torch.inf
    q, scale = fp8_quantize(x, granularity="per_token")
    out = fp8_dequantize(q, scale, granularity="per_token")
    assert out[:2].abs().max() < 1e-40
    assert out[2].isnan().all()
    assert out[3].isnan().all()


def test_strided_and_empty_inputs() -> None:
    x = draw(300, 200)
    for granularity in SHARES:
        found, expected = (fp8_quantize(y, granularity=granularity) for y in (x.t(), x.t().contiguous()))  # type: ignore[arg-type]
        torch.testing.assert_close([t.float() for t in found], [t.float() for t in expected], rtol=0, atol=0)
        for shape in ((0, 8), (3, 0)):
            q, scale = fp8_quantize(torch.empty(shape), granularity=granularity)  # type: ignore[arg-type]
            assert fp8_dequantize(q, scale, granularity=granularity).shape == shape  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"granularity": "per_row"}, "granularity: expected one of per_tensor, per_token, 1x128, 128x128, got per_row"),
        ({"dtype": torch.int8}, "dtype: expected float8_e4m3fn or float8_e5m2, got int8"),
        ({"scale": torch.ones(2, 1)}, r"scale: expected \[2, 2\], got \[2, 1\]"),
        ({"scale": torch.ones(2, 2).half()}, "scale: expected dtype float32, got float16"),
        ({"x": torch.ones(8)}, r"x: expected \[m, k\], got \[8\]"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        fp8_quantize(**({"x": torch.ones(2, 130), "granularity": "1x128"} | arguments))


def test_wrong_arguments_of_dequantize() -> None:
    q, scale = fp8_quantize(torch.ones(2, 8))
    with pytest.raises(InvalidArgumentError, match=r"scale: expected \[2, 1\], got \[1\]"):
        fp8_dequantize(q, scale, granularity="per_token")
    with pytest.raises(InvalidArgumentError, match="q: expected dtype float8_e4m3fn or float8_e5m2, got uint8"):
        fp8_dequantize(q.view(torch.uint8), scale)
    with pytest.raises(InvalidArgumentError, match="out_dtype: expected float32, bfloat16 or float16"):
        fp8_dequantize(q, scale, out_dtype=torch.int8)
