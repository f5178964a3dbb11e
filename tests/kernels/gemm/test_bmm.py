# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.gemm import bmm
from distributed_fi.kernels.gemm import reference

# Relative to sqrt(k), the size of a product of normal vectors: one rounding of the result.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("batch", "m", "n", "k"), [(1, 1, 24, 64), (5, 7, 3, 111), (3, 33, 17, 1)])
def test_bmm(batch: int, m: int, n: int, k: int, dtype: torch.dtype) -> None:
    a, b = draw(batch, m, k, dtype=dtype), draw(batch, k, n, dtype=dtype, seed=1)
    d = bmm(a, b)
    assert d.dtype == dtype
    tolerance = ROUNDING[dtype] * k**0.5
    torch.testing.assert_close(d.double(), reference.bmm(a, b), rtol=ROUNDING[dtype], atol=tolerance)


def test_float32_result_of_16_bit_operands_is_not_rounded() -> None:
    a, b = draw(2, 7, 111, dtype=torch.bfloat16), draw(2, 111, 5, dtype=torch.bfloat16, seed=1)
    out = torch.empty(2, 7, 5)
    assert bmm(a, b, out=out) is out
    torch.testing.assert_close(out.double(), reference.bmm(a, b), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bmm(a, b, out_dtype=torch.float32), out)


def test_transposed_weights() -> None:
    a, weight = draw(3, 4, 16), draw(3, 6, 16, seed=1)
    expected = reference.bmm(a, weight.transpose(1, 2))
    torch.testing.assert_close(bmm(a, weight.transpose(1, 2)).double(), expected, rtol=1e-5, atol=1e-5)


def test_empty_sizes() -> None:
    assert bmm(torch.empty(0, 2, 3), torch.empty(0, 3, 4)).shape == (0, 2, 4)
    assert bmm(torch.empty(2, 0, 3), torch.empty(2, 3, 4)).shape == (2, 0, 4)
    assert bmm(torch.empty(1, 1, 0), torch.empty(1, 0, 2)).tolist() == [[[0.0, 0.0]]]


def test_wrong_arguments() -> None:
    a, b = torch.ones(2, 3, 8), torch.ones(2, 8, 4)
    with pytest.raises(InvalidArgumentError, match=r"b: expected \[batch=2, k=8, n\], got \[2, 7, 4\]"):
        bmm(a, torch.ones(2, 7, 4))
    with pytest.raises(InvalidArgumentError, match=r"a: expected \[batch, m, k\], got \[3, 8\]"):
        bmm(a[0], b)
    with pytest.raises(InvalidArgumentError, match="b: expected dtype float32, got bfloat16"):
        bmm(a, b.bfloat16())
    with pytest.raises(InvalidArgumentError, match=r"out: expected \[2, 3, 4\], got \[2, 4, 3\]"):
        bmm(a, b, out=torch.empty(2, 4, 3))
