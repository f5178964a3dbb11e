# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.activation import gelu_and_mul, gelu_tanh_and_mul
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.activation import reference

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6, torch.float16: 2**-11 + 2e-6}
FORMS = {"erf": (gelu_and_mul, reference.gelu_and_mul), "tanh": (gelu_tanh_and_mul, reference.gelu_tanh_and_mul)}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 3072), (7, 222), (2, 3, 8), (2,)], ids=str)
def test_the_formula_rounded_once(shape: tuple[int, ...], dtype: torch.dtype, form: str) -> None:
    op, formula = FORMS[form]
    x = draw(*shape, dtype=dtype)
    out = op(x)
    assert out.dtype == dtype
    # 1 + erf loses what a negative gate leaves of 1: an absolute error of float32's last bit.
    torch.testing.assert_close(out.double(), formula(x), rtol=ROUNDING[dtype], atol=2e-6)


def test_the_two_forms_differ() -> None:
    x = torch.tensor([[2.0, 1.0]])
    assert gelu_and_mul(x).item() == pytest.approx(1.954500)
    assert gelu_tanh_and_mul(x).item() == pytest.approx(1.954598)


@pytest.mark.parametrize("form", FORMS)
def test_large_gates_saturate(form: str) -> None:
    assert FORMS[form][0](torch.tensor([[-200.0, 200.0, 3.0, 3.0]])).tolist() == [[0.0, 600.0]]


@pytest.mark.parametrize("form", FORMS)
def test_strided_input_is_left_alone_and_out_is_written(form: str) -> None:
    op, formula = FORMS[form]
    x = draw(10, 24)[::2, 8:]
    before, out = x.clone(), torch.empty(5, 8)
    assert op(x, out) is out
    assert torch.equal(x, before)
    torch.testing.assert_close(out, formula(x).float(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_no_tokens_and_wrong_arguments(form: str) -> None:
    op = FORMS[form][0]
    assert op(torch.empty(0, 6)).shape == (0, 3)
    with pytest.raises(InvalidArgumentError, match=r"input: expected \[..., 2 \* d\], an even last dimension"):
        op(torch.ones(2, 7))
    with pytest.raises(InvalidArgumentError, match="input: expected float32, bfloat16 or float16, got int32"):
        op(torch.ones(2, 8, dtype=torch.int32))
    with pytest.raises(InvalidArgumentError, match=r"out: expected \[2, 4\], got \[2, 8\]"):
        op(torch.ones(2, 8), torch.ones(2, 8))
