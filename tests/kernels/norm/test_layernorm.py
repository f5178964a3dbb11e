# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.norm import reference
from distributed_fi.norm import layernorm

EPS = 1e-5
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6, torch.float16: 2**-11 + 2e-6}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("wide_weights", [False, True])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 576), (7, 111), (2, 3, 64), (64,)], ids=str)
def test_layernorm_is_the_formula_rounded_once(shape: tuple[int, ...], dtype: torch.dtype, wide_weights: bool) -> None:
    x = (draw(*shape) + 3).to(dtype)
    gamma, beta = (draw(shape[-1], dtype=torch.float32 if wide_weights else dtype, seed=s) for s in (1, 2))
    out = layernorm(x, gamma, beta, EPS)
    assert out.dtype == dtype
    expected = reference.layernorm(x, gamma, beta, EPS)
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDING[dtype], atol=2e-6)


def test_out_may_be_the_input_and_rows_may_be_strided() -> None:
    x, gamma, beta = draw(6, 80)[::2, 16:64], draw(48, seed=1), draw(48, seed=2)
    expected = reference.layernorm(x, gamma, beta, 1e-6).float()
    assert layernorm(x, gamma, beta, out=x) is x
    torch.testing.assert_close(x, expected)


def test_no_tokens() -> None:
    assert layernorm(torch.empty(0, 8), torch.ones(8), torch.zeros(8)).shape == (0, 8)


def test_wrong_tensors() -> None:
    x, ones = torch.ones(2, 8).half(), torch.ones(8)
    with pytest.raises(InvalidArgumentError, match=r"gamma: expected \[hidden_size=8\], got \[7\]"):
        layernorm(x, torch.ones(7), ones)
    with pytest.raises(InvalidArgumentError, match="gamma: expected dtype float32 or float16, got bfloat16"):
        layernorm(x, ones.bfloat16(), ones)
    with pytest.raises(InvalidArgumentError, match="beta: expected dtype float32, got float16"):
        layernorm(x, ones, ones.half())
    with pytest.raises(InvalidArgumentError, match="out: expected dtype float16, got float32"):
        layernorm(x, ones, ones, out=torch.ones(2, 8))
