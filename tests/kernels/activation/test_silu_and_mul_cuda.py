# SPDX-License-Identifier: Apache-2.0
"""The compiled SiLU-and-mul on a GPU, against float64."""

from __future__ import annotations

import pytest
import torch

from distributed_fi.activation import silu_and_mul
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.activation import reference
from distributed_fi.kernels.dispatch.candidates import explain

# One rounding to the output type, plus the error of the fast exponential.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 1e-5, torch.float16: 2**-11 + 1e-5}

pytestmark = pytest.mark.gpu


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return (4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to("cuda", dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("d", [1, 31, 64, 1536, 4095, 14336])
@pytest.mark.parametrize("num_tokens", [1, 3, 400])
def test_silu_and_mul_is_the_formula_rounded_once(num_tokens: int, d: int, dtype: torch.dtype) -> None:
    x = draw(num_tokens, 2 * d, dtype=dtype)
    out = torch.full((num_tokens, d), float("nan"), device="cuda", dtype=dtype)
    assert silu_and_mul(x, out, backend="cuda") is out
    torch.testing.assert_close(out.double(), reference.silu_and_mul(x), rtol=ROUNDING[dtype], atol=1e-6)


def test_gates_far_from_zero() -> None:
    gate = torch.tensor([-1e4, -100.0, -50.0, 0.0, 50.0, 100.0, 1e4, -30.0])
    x = torch.cat([gate, torch.ones(8)])[None].to("cuda", torch.bfloat16)
    out = silu_and_mul(x, backend="cuda")
    torch.testing.assert_close(out.double(), reference.silu_and_mul(x), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("start", [8, 1])  # aligned rows, and rows that are not
def test_strided_rows_and_more_dimensions(start: int) -> None:
    whole = draw(7, 128, dtype=torch.bfloat16)
    x = whole[:, start : start + 96]
    expected = reference.silu_and_mul(x)
    torch.testing.assert_close(silu_and_mul(x, backend="cuda").double(), expected, rtol=2**-7, atol=1e-6)
    y = draw(2, 3, 32, dtype=torch.float32)
    torch.testing.assert_close(silu_and_mul(y, backend="cuda"), reference.silu_and_mul(y).float())


def test_no_tokens_and_what_auto_takes() -> None:
    x = draw(16, 6, dtype=torch.float32)
    assert silu_and_mul(x[:0], backend="cuda").shape == (0, 3)
    assert explain("silu_and_mul", x).chosen == "cuda"
    torch.testing.assert_close(silu_and_mul(x.T), reference.silu_and_mul(x.T).float())


def test_a_captured_graph_replays_on_new_values() -> None:
    x = draw(5, 512, dtype=torch.bfloat16)
    out = silu_and_mul(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        silu_and_mul(x, out)
    x.copy_(draw(5, 512, dtype=torch.bfloat16, seed=9))
    graph.replay()
    torch.testing.assert_close(out.double(), reference.silu_and_mul(x), rtol=2**-7, atol=1e-6)


def test_wrong_tensors_are_named() -> None:
    x = torch.ones(2, 8, device="cuda")
    cases = [
        (
            r"input: expected \[..., 2 \* d\], an even last dimension, got \[2, 7\]",
            torch.ones(2, 7, device="cuda"),
            None,
        ),
        ("input: expected float32, bfloat16 or float16, got float64", x.double(), None),
        (r"out: expected \[2, 4\], got \[3, 4\]", x, torch.ones(3, 4, device="cuda")),
        (r"out: expected \[..., d=4\], got \[2, 5\]", x, torch.ones(2, 5, device="cuda")),
        ("out: expected dtype float32, got float16", x, torch.ones(2, 4, device="cuda").half()),
    ]
    for message, input, out in cases:
        with pytest.raises(InvalidArgumentError, match=message):
            silu_and_mul(input, out)
