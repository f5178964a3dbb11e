# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.gemm import gemm_nt
from distributed_fi.kernels.gemm import reference

# Relative to sqrt(k), the size of a product of normal vectors: one rounding of the result.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 24, 64), (7, 5, 111), (33, 17, 1)])
def test_gemm_nt(m: int, n: int, k: int, dtype: torch.dtype, with_bias: bool) -> None:
    a, b = draw(m, k, dtype=dtype), draw(n, k, dtype=dtype, seed=1)
    bias = draw(n, dtype=dtype, seed=2) if with_bias else None
    d = gemm_nt(a, b, bias=bias)
    assert d.dtype == dtype
    tolerance = ROUNDING[dtype] * k**0.5
    torch.testing.assert_close(d.double(), reference.gemm_nt(a, b, bias), rtol=ROUNDING[dtype], atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_operands_accumulate_in_float32(dtype: torch.dtype) -> None:
    # A sum of ones kept in the operands' own type stops growing at 256 (bfloat16) or 2048 (float16).
    ones = torch.ones(3, 4096, dtype=dtype)
    assert gemm_nt(ones, ones).unique().tolist() == [4096.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_result_of_16_bit_operands_is_not_rounded(dtype: torch.dtype) -> None:
    a, b, bias = draw(7, 111, dtype=dtype), draw(5, 111, dtype=dtype, seed=1), draw(5, dtype=dtype, seed=2)
    d = gemm_nt(a, b, bias=bias, out_dtype=torch.float32)
    assert d.dtype == torch.float32
    torch.testing.assert_close(d.double(), reference.gemm_nt(a, b, bias), rtol=1e-5, atol=1e-5)


def test_out_is_written_and_sets_the_dtype() -> None:
    a, b = draw(7, 16, dtype=torch.bfloat16), draw(5, 16, dtype=torch.bfloat16, seed=1)
    out = torch.empty(7, 5)
    assert gemm_nt(a, b, out=out) is out
    torch.testing.assert_close(out.double(), reference.gemm_nt(a, b), rtol=1e-5, atol=1e-5)


def test_transposed_operands() -> None:
    a, b = draw(16, 7).t(), draw(16, 5, seed=1).t()
    torch.testing.assert_close(gemm_nt(a, b).double(), reference.gemm_nt(a, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_empty_sizes(dtype: torch.dtype) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype)

    assert gemm_nt(empty(0, 4), empty(5, 4)).shape == (0, 5)
    assert gemm_nt(empty(3, 4), empty(0, 4)).shape == (3, 0)
    assert gemm_nt(empty(2, 0), empty(3, 0)).tolist() == [[0.0, 0.0, 0.0]] * 2
    assert gemm_nt(empty(2, 0), empty(2, 0), bias=torch.tensor([1, 2], dtype=dtype)).tolist() == [[1.0, 2.0]] * 2
    assert gemm_nt(empty(2, 0), empty(3, 0), out_dtype=torch.float32).tolist() == [[0.0, 0.0, 0.0]] * 2


def test_wrong_arguments() -> None:
    a, b = torch.ones(2, 8), torch.ones(3, 8)
    with pytest.raises(InvalidArgumentError, match=r"b: expected \[n, k=8\], got \[3, 7\]"):
        gemm_nt(a, torch.ones(3, 7))
    with pytest.raises(InvalidArgumentError, match=r"a: expected \[m, k\], got \[8\]"):
        gemm_nt(torch.ones(8), b)
    with pytest.raises(InvalidArgumentError, match="b: expected dtype float32, got bfloat16"):
        gemm_nt(a, b.bfloat16())
    with pytest.raises(InvalidArgumentError, match="a: expected dtype float32 or bfloat16 or float16, got int8"):
        gemm_nt(a.to(torch.int8), b.to(torch.int8))
    with pytest.raises(InvalidArgumentError, match=r"bias: expected \[n=3\], got \[2\]"):
        gemm_nt(a, b, bias=torch.ones(2))
    with pytest.raises(InvalidArgumentError, match=r"out: expected \[2, 3\], got \[3, 2\]"):
        gemm_nt(a, b, out=torch.empty(3, 2))
    with pytest.raises(InvalidArgumentError, match="out: expected dtype bfloat16, got float32"):
        gemm_nt(a, b, out=torch.empty(2, 3), out_dtype=torch.bfloat16)
