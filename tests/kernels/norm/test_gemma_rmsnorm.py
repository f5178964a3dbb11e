# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.norm import reference
from distributed_fi.norm import gemma_fused_add_rmsnorm, gemma_rmsnorm

EPS = 1e-5
# One rounding to the output type: half a unit in the last place, plus float32's own error.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6, torch.float16: 2**-11 + 2e-6}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 576), (7, 111), (2, 3, 64), (64,)], ids=str)
def test_gemma_rmsnorm_is_the_formula_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype, seed=1)
    out = gemma_rmsnorm(x, weight, EPS)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), reference.gemma_rmsnorm(x, weight, EPS), rtol=ROUNDING[dtype], atol=1e-6)


def test_one_is_added_before_rounding() -> None:
    # 1 + 2^-9 is 1 in bfloat16; behind a large norm the difference shows.
    x = torch.tensor([[3.0, 0.0]], dtype=torch.bfloat16)
    weight = torch.full((2,), 2.0**-9, dtype=torch.bfloat16)
    expected = reference.gemma_rmsnorm(x, weight, 1e-6).to(torch.bfloat16)
    assert torch.equal(gemma_rmsnorm(x, weight), expected)


def test_same_as_gemma_of_transformers() -> None:
    norm, x = GemmaRMSNorm(48, eps=EPS), draw(5, 48)
    norm.weight.data = draw(48, seed=1)
    torch.testing.assert_close(gemma_rmsnorm(x, norm.weight.data, EPS), norm(x).detach())


def test_out_may_be_the_input() -> None:
    x, weight = draw(5, 32), draw(32, seed=1)
    expected = reference.gemma_rmsnorm(x, weight, EPS).float()
    assert gemma_rmsnorm(x, weight, EPS, out=x) is x
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_gemma_fused_add_rmsnorm(num_tokens: int, dtype: torch.dtype) -> None:
    x, residual = draw(num_tokens, 111, dtype=dtype), draw(num_tokens, 111, dtype=dtype, seed=1)
    weight = draw(111, dtype=dtype, seed=2)
    total = x.double() + residual.double()
    gemma_fused_add_rmsnorm(x, residual, weight, EPS)
    torch.testing.assert_close(residual, total.to(dtype), rtol=0, atol=1e-6)
    expected = reference.gemma_rmsnorm(total, weight, EPS)
    torch.testing.assert_close(x.double(), expected, rtol=ROUNDING[dtype], atol=1e-6)


def test_wrong_tensors() -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(InvalidArgumentError, match=r"weight: expected \[hidden_size=8\], got \[7\]"):
        gemma_rmsnorm(x, torch.ones(7))
    with pytest.raises(InvalidArgumentError, match=r"out: expected \[2, 8\], got \[3, 8\]"):
        gemma_rmsnorm(x, weight, out=torch.ones(3, 8))
    with pytest.raises(InvalidArgumentError, match=r"residual: expected \[2, 8\], got \[2, 9\]"):
        gemma_fused_add_rmsnorm(x, torch.ones(2, 9), weight)
    with pytest.raises(InvalidArgumentError, match="residual: expected dtype float32, got float16"):
        gemma_fused_add_rmsnorm(x, x.half(), weight)
