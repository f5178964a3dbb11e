# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.norm import reference
from distributed_fi.norm import fused_add_rmsnorm, rmsnorm

EPS = 1e-5
# One rounding to the output type: half a unit in the last place, plus float32's own error.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6, torch.float16: 2**-11 + 2e-6}


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 576), (7, 111), (2, 3, 64), (64,)], ids=str)
def test_rmsnorm_is_the_formula_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype, seed=1)
    out = rmsnorm(x, weight, EPS)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), reference.rmsnorm(x, weight, EPS), rtol=ROUNDING[dtype], atol=1e-6)


def test_eps_defaults_to_1e_6() -> None:
    x, weight = torch.full((1, 4), 1e-3), torch.ones(4)  # mean square = eps
    torch.testing.assert_close(rmsnorm(x, weight), torch.full((1, 4), 0.5**0.5))


def test_out_receives_the_result_and_may_be_the_input() -> None:
    x, weight = draw(5, 32, dtype=torch.float32), draw(32, dtype=torch.float32, seed=1)
    expected = reference.rmsnorm(x, weight, EPS).float()
    out = torch.empty_like(x)
    assert rmsnorm(x, weight, EPS, out) is out
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(rmsnorm(x, weight, EPS, out=x), expected)


def test_strided_rows() -> None:
    x, weight = draw(6, 80, dtype=torch.float32), draw(48, dtype=torch.float32, seed=1)
    torch.testing.assert_close(rmsnorm(x[::2, 16:64], weight), reference.rmsnorm(x[::2, 16:64], weight, 1e-6).float())


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 7])
def test_fused_add_rmsnorm(num_tokens: int, dtype: torch.dtype) -> None:
    x, residual = draw(num_tokens, 111, dtype=dtype), draw(num_tokens, 111, dtype=dtype, seed=1)
    weight = draw(111, dtype=dtype, seed=2)
    normed, total = reference.fused_add_rmsnorm(x, residual, weight, EPS)
    fused_add_rmsnorm(x, residual, weight, EPS)
    torch.testing.assert_close(residual, total.to(dtype), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.double(), normed, rtol=ROUNDING[dtype], atol=1e-6)


def test_fused_norm_is_of_the_unrounded_sum() -> None:
    # 256 + 0.5 is 256 in bfloat16; the ratio of the two entries still shows the half.
    x = torch.tensor([[0.5, 0.0]], dtype=torch.bfloat16)
    residual = torch.tensor([[256.0, 256.0]], dtype=torch.bfloat16)
    weight = torch.tensor([1.0, 1.0], dtype=torch.bfloat16) * 1000
    fused_add_rmsnorm(x, residual, weight)
    normed, _ = reference.fused_add_rmsnorm(torch.tensor([[256.5, 256.0]]), torch.zeros(1, 2), weight, 1e-6)
    assert residual.tolist() == [[256.0, 256.0]]
    assert torch.equal(x, normed.to(torch.bfloat16))


def test_no_tokens() -> None:
    x, residual = torch.empty(0, 8), torch.empty(0, 8)
    assert rmsnorm(x, torch.ones(8)).shape == (0, 8)
    fused_add_rmsnorm(x, residual, torch.ones(8))
    assert residual.shape == (0, 8)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(2, 8), torch.ones(7), r"weight: expected \[hidden_size=8\], got \[7\]"),
        (torch.ones(2, 8), torch.ones(8).half(), "weight: expected dtype float32, got float16"),
        (torch.ones(2, 8).double(), torch.ones(8).double(), "input: expected dtype float32 or bfloat16 or float16"),
        ([1.0], torch.ones(1), "input: expected a torch.Tensor, got list"),
        (torch.tensor(1.0), torch.tensor(1.0), r"input: expected \[hidden_size\], got \[\]"),
    ],
)
def test_wrong_tensors(x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        rmsnorm(x, weight)


def test_wrong_out_and_residual() -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(InvalidArgumentError, match=r"out: expected \[2, 8\], got \[3, 8\]"):
        rmsnorm(x, weight, out=torch.ones(3, 8))
    with pytest.raises(InvalidArgumentError, match=r"residual: expected \[2, 8\], got \[2, 9\]"):
        fused_add_rmsnorm(x, torch.ones(2, 9), weight)
