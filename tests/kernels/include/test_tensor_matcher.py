# SPDX-License-Identifier: Apache-2.0
"""The sentences of the bindings' tensor matcher, on CPU tensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_fi.kernels.dispatch.compiled import invalid_argument
from distributed_fi.kernels.jit.load import load_kernel
from distributed_fi.kernels.jit.spec import KernelSpec

PROBE = Path(__file__).parent / "matcher_probe.cpp"
W = torch.ones(8)
ROWS_APART = torch.ones(3, 5, 8)[:, :2]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")


@pytest.fixture(scope="module")
def probe() -> Any:
    return load_kernel(KernelSpec(name="tests/matcher_probe", sources=(str(PROBE),)), arch="cpu")


@pytest.mark.parametrize(
    ("x", "rows", "stride"),
    [
        (torch.ones(3, 8), 3, 8),
        (torch.ones(8), 1, 8),
        (torch.ones(2, 3, 8), 6, 8),
        (torch.ones(6, 16)[:, 4:12], 6, 16),
        (torch.ones(6, 8)[::2], 3, 16),
        (torch.ones(4, 5, 8)[:, :1], 4, 40),
        (torch.ones(4, 3, 16)[..., :8], 12, 16),
        (torch.ones(0, 8), 0, 8),
        (torch.ones(2, 0, 8), 0, 8),
    ],
)
def test_leading_dimensions_fold_into_rows(probe: Any, x: torch.Tensor, rows: int, stride: int) -> None:
    found_rows, found_stride = probe.match_rows(x, W)
    assert found_rows == rows
    assert found_stride == stride or rows <= 1 or x.numel() == 0


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(2, 8), torch.ones(7), "weight: expected [hidden_size=8], got [7]"),
        (torch.ones(2, 8), torch.ones(8, 1), "weight: expected [hidden_size=8], got [8, 1]"),
        (torch.ones(2, 8), torch.ones(8).half(), "weight: expected dtype float32, got float16"),
        (torch.ones(2, 8).bfloat16(), torch.ones(8), "weight: expected dtype bfloat16, got float32"),
        (torch.ones(2, 8), torch.ones(16)[::2], "weight: expected a contiguous tensor, got strides (2)"),
        (torch.ones(2, 8).double(), W, "input: expected dtype float32 or bfloat16 or float16, got float64"),
        (torch.ones(2, 8).int(), W, "input: expected dtype float32 or bfloat16 or float16, got int32"),
        (torch.tensor(1.0), W, "input: expected [..., hidden_size], got []"),
        (torch.ones(8, 2).T, W, "input: expected the last dimension contiguous, got strides (1, 2)"),
        (ROWS_APART, W, "input: expected leading dimensions that fold into one, got strides (40, 8, 1)"),
    ],
)
def test_a_misfit_is_named_with_what_would_be_right(
    probe: Any, x: torch.Tensor, weight: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        probe.match_rows(x, weight)
    assert str(invalid_argument(caught.value)) == message


def test_integers_float32_and_sizes_bound_by_an_earlier_tensor(probe: Any) -> None:
    assert probe.match_table(torch.arange(3), torch.ones(5, 4)) is True
    assert probe.match_table(torch.arange(3).int(), torch.ones(5, 4)) is False
    with pytest.raises(ValueError, match="positions: expected dtype int32 or int64, got float32"):
        probe.match_table(torch.ones(3), torch.ones(5, 4))
    with pytest.raises(ValueError, match="table: expected dtype float32, got float16"):
        probe.match_table(torch.arange(3), torch.ones(5, 4).half())


def test_fixed_and_repeated_sizes(probe: Any) -> None:
    probe.match_square(torch.ones(2, 3, 3))
    with pytest.raises(ValueError, match=r"a: expected \[pair=2, n, n\], got \[3, 3, 3\]"):
        probe.match_square(torch.ones(3, 3, 3))
    with pytest.raises(ValueError, match=r"a: expected \[pair=2, n=3, n=3\], got \[2, 3, 4\]"):
        probe.match_square(torch.ones(2, 3, 4))


def test_a_kernels_tensor_lives_on_cuda(probe: Any) -> None:
    with pytest.raises(ValueError, match="input: expected a tensor on cuda, got cpu"):
        probe.match_cuda(W)
