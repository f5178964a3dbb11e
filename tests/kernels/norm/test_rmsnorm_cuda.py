# SPDX-License-Identifier: Apache-2.0
"""The compiled RMSNorm on a GPU, against float64."""

from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError, UnsupportedError
from distributed_fi.kernels.dispatch.candidates import explain
from distributed_fi.kernels.norm import reference
from distributed_fi.norm import fused_add_rmsnorm, rmsnorm

EPS = 1e-5
POISON = float("nan")
# One rounding to the output type, plus float32's own error over thousands of summands.
ROUNDING = {torch.float32: 5e-6, torch.bfloat16: 2**-8 + 5e-6, torch.float16: 2**-11 + 5e-6}
# Vectors of every width class, sizes that are odd, shorter than a warp, longer than the registers hold.
HIDDEN_SIZES = (1, 7, 64, 576, 4095, 4096, 8192, 16384, 20480, 65536)
ON_CUDA = "cuda"

pytestmark = pytest.mark.gpu


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(ON_CUDA, dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, POISON, device=ON_CUDA, dtype=dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
@pytest.mark.parametrize("num_tokens", [1, 300])  # fewer rows than multiprocessors, and more
def test_rmsnorm_is_the_formula_rounded_once(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
    x, weight = draw(num_tokens, hidden_size, dtype=dtype), draw(hidden_size, dtype=dtype, seed=1)
    out = poisoned(num_tokens, hidden_size, dtype=dtype)
    assert rmsnorm(x, weight, EPS, out, backend="cuda") is out
    torch.testing.assert_close(out.double(), reference.rmsnorm(x, weight, EPS), rtol=ROUNDING[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("hidden_size", HIDDEN_SIZES)
@pytest.mark.parametrize("num_tokens", [1, 300])
def test_fused_add_rmsnorm(num_tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
    x, residual = draw(num_tokens, hidden_size, dtype=dtype), draw(num_tokens, hidden_size, dtype=dtype, seed=1)
    weight = draw(hidden_size, dtype=dtype, seed=2)
    normed, total = reference.fused_add_rmsnorm(x, residual, weight, EPS)
    fused_add_rmsnorm(x, residual, weight, EPS, backend="cuda")
    torch.testing.assert_close(residual, total.float().to(dtype), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.double(), normed, rtol=ROUNDING[dtype], atol=2e-6)


def test_fused_norm_is_of_the_unrounded_sum() -> None:
    # 256 + 0.5 is 256 in bfloat16; the ratio of the two entries still shows the half.
    x = torch.tensor([[0.5] * 8 + [0.0] * 8], dtype=torch.bfloat16, device=ON_CUDA)
    residual = torch.full_like(x, 256.0)
    weight = torch.full((16,), 1000.0, dtype=torch.bfloat16, device=ON_CUDA)
    normed, _ = reference.fused_add_rmsnorm(x, residual, weight, 1e-6)
    fused_add_rmsnorm(x, residual, weight, backend="cuda")
    assert residual.eq(256).all()
    assert torch.equal(x, normed.to(torch.bfloat16))


@pytest.mark.parametrize("start", [16, 3])  # aligned rows, and rows that are not
def test_strided_rows(start: int) -> None:
    whole, weight = draw(300, 160, dtype=torch.bfloat16), draw(96, dtype=torch.bfloat16, seed=1)
    x = whole[:, start : start + 96]
    expected = reference.rmsnorm(x, weight, EPS)
    untouched = whole.clone()
    assert rmsnorm(x, weight, EPS, out=x, backend="cuda") is x
    torch.testing.assert_close(x.double(), expected, rtol=ROUNDING[torch.bfloat16], atol=1e-6)
    assert torch.equal(whole[:, :start], untouched[:, :start])
    assert torch.equal(whole[:, start + 96 :], untouched[:, start + 96 :])


def test_more_dimensions_and_no_leading_one() -> None:
    x, weight = draw(2, 3, 64, dtype=torch.float32), draw(64, dtype=torch.float32, seed=1)
    expected = reference.rmsnorm(x, weight, 1e-6).float()
    torch.testing.assert_close(rmsnorm(x, weight, backend="cuda"), expected)
    torch.testing.assert_close(rmsnorm(x[1, 2], weight, backend="cuda"), expected[1, 2])


def test_no_tokens() -> None:
    x, weight = torch.empty(0, 8, device=ON_CUDA), torch.ones(8, device=ON_CUDA)
    assert rmsnorm(x, weight, backend="cuda").shape == (0, 8)
    fused_add_rmsnorm(x, x.clone(), weight, backend="cuda")


def test_auto_takes_the_kernel_and_torch_where_rows_are_not_contiguous() -> None:
    x, weight = draw(64, 8, dtype=torch.float32), draw(64, dtype=torch.float32, seed=1)
    assert explain("rmsnorm", x).chosen == "cuda"
    assert explain("rmsnorm", x.T).chosen == "torch"
    torch.testing.assert_close(rmsnorm(x.T, weight), reference.rmsnorm(x.T, weight, 1e-6).float())
    with pytest.raises(UnsupportedError, match="strides"):
        rmsnorm(x.T, weight, backend="cuda")


def test_a_captured_graph_replays_on_new_values() -> None:
    x, weight = draw(5, 4096, dtype=torch.bfloat16), draw(4096, dtype=torch.bfloat16, seed=1)
    residual, out = draw(5, 4096, dtype=torch.bfloat16, seed=2), poisoned(5, 4096, dtype=torch.bfloat16)
    rmsnorm(x, weight, EPS, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rmsnorm(x, weight, EPS, out)
        fused_add_rmsnorm(out, residual, weight, EPS)
    for seed in (7, 8):
        x.copy_(draw(5, 4096, dtype=torch.bfloat16, seed=seed))
        residual.copy_(draw(5, 4096, dtype=torch.bfloat16, seed=seed + 10))
        first = reference.rmsnorm(x, weight, EPS).to(torch.bfloat16)
        normed, total = reference.fused_add_rmsnorm(first, residual, weight, EPS)
        graph.replay()
        # The first norm may round the other way at a tie of float32: two units of bfloat16 downstream.
        torch.testing.assert_close(residual.double(), total, rtol=2**-7, atol=2**-7)
        torch.testing.assert_close(out.double(), normed, rtol=2**-6, atol=2**-6)


def test_runs_on_the_current_stream() -> None:
    x, weight = draw(64, 4096, dtype=torch.float32), draw(4096, dtype=torch.float32, seed=1)
    expected = reference.rmsnorm(x * 2, weight, EPS).float()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # work on the default stream would overtake the doubling
        x.mul_(2)
        out = rmsnorm(x, weight, EPS, backend="cuda")
    stream.synchronize()
    torch.testing.assert_close(out, expected)


@pytest.mark.multi_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
def test_runs_on_its_tensors_device_whatever_the_current_one_is() -> None:
    x, weight = draw(64, 4096, dtype=torch.float32).to("cuda:1"), draw(4096, dtype=torch.float32, seed=1).to("cuda:1")
    out = rmsnorm(x, weight, EPS, backend="cuda")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(out, reference.rmsnorm(x, weight, EPS).float())
    with pytest.raises(InvalidArgumentError, match="weight: expected a tensor on cuda:1, got cuda:0"):
        rmsnorm(x, weight.to("cuda:0"), EPS, backend="cuda")


def wrong_operands() -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    x, weight = torch.ones(2, 8, device=ON_CUDA), torch.ones(8, device=ON_CUDA)
    return [
        (r"weight: expected \[hidden_size=8\], got \[7\]", x, weight[:7], None),
        ("weight: expected dtype float32, got float16", x, weight.half(), None),
        ("weight: expected a tensor on cuda:0, got cpu", x, weight.cpu(), None),
        ("weight: expected a contiguous tensor, got strides", x, torch.ones(16, device=ON_CUDA)[::2], None),
        ("input: expected dtype float32 or bfloat16 or float16, got float64", x.double(), weight.double(), None),
        (r"out: expected \[2, 8\], got \[3, 8\]", x, weight, torch.ones(3, 8, device=ON_CUDA)),
        ("out: expected dtype float32, got bfloat16", x, weight, x.bfloat16()),
        ("out: expected a tensor on cuda:0, got cpu", x, weight, x.cpu()),
    ]


def test_wrong_tensors_are_named() -> None:
    for message, x, weight, out in wrong_operands():
        with pytest.raises(InvalidArgumentError, match=message):
            rmsnorm(x, weight, EPS, out)
    with pytest.raises(InvalidArgumentError, match=r"residual: expected \[2, 8\], got \[2, 9\]"):
        x = torch.ones(2, 8, device=ON_CUDA)
        fused_add_rmsnorm(x, torch.ones(2, 9, device=ON_CUDA), x[0].clone())
