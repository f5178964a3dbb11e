# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.activation import silu_and_mul
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.activation import reference

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6, torch.float16: 2**-11 + 2e-6}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 3072), (7, 222), (2, 3, 8), (2,)], ids=str)
def test_silu_and_mul_is_the_formula_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = draw(*shape, dtype=dtype)
    out = silu_and_mul(x)
    assert out.dtype == dtype
    assert out.shape == (*shape[:-1], shape[-1] // 2)
    torch.testing.assert_close(out.double(), reference.silu_and_mul(x), rtol=ROUNDING[dtype], atol=1e-6)


def test_large_gates_saturate() -> None:
    x = torch.tensor([[-200.0, 200.0, 3.0, 3.0]])
    assert silu_and_mul(x).tolist() == [[0.0, 600.0]]


def test_input_is_left_alone_and_out_is_written() -> None:
    x = draw(5, 16)
    before, out = x.clone(), torch.empty(5, 8)
    assert silu_and_mul(x, out) is out
    assert torch.equal(x, before)
    torch.testing.assert_close(out, reference.silu_and_mul(x).float())


def test_strided_input() -> None:
    x = draw(6, 40)[::2, 8:]
    torch.testing.assert_close(silu_and_mul(x), reference.silu_and_mul(x).float())


def test_no_tokens() -> None:
    assert silu_and_mul(torch.empty(0, 6)).shape == (0, 3)
    assert silu_and_mul(torch.empty(4, 0)).shape == (4, 0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 7), r"input: expected \[..., 2 \* d\], an even last dimension, got \[2, 7\]"),
        (torch.ones(2, 8, dtype=torch.int32), "input: expected float32, bfloat16 or float16, got int32"),
        (3, "input: expected a torch.Tensor, got int"),
    ],
)
def test_wrong_input(x: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        silu_and_mul(x)


def test_wrong_out() -> None:
    with pytest.raises(InvalidArgumentError, match=r"out: expected \[2, 4\], got \[2, 8\]"):
        silu_and_mul(torch.ones(2, 8), torch.ones(2, 8))
