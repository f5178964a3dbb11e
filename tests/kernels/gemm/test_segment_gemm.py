# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.gemm import segment_gemm
from distributed_fi.kernels.gemm import reference

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
D_IN, D_OUT = 111, 17


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("weight_column_major", [True, False])
def test_segments_choose_their_weights(weight_column_major: bool, dtype: torch.dtype) -> None:
    x, weights = draw(9, D_IN, dtype=dtype), draw(3, D_OUT, D_IN, dtype=dtype, seed=1)
    stored = weights if weight_column_major else weights.transpose(1, 2).contiguous()
    seg_lens, weight_indices = torch.tensor([2, 0, 3, 4]), torch.tensor([2, 0, -1, 2], dtype=torch.int32)
    expected = reference.rows_by_weight(x, weights, [2, 2, -1, -1, -1, 2, 2, 2, 2])
    layout: dict[str, Any] = {"weight_column_major": weight_column_major, "weight_indices": weight_indices}
    out = segment_gemm(x, stored, seg_lens=seg_lens, **layout)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * D_IN**0.5)
    seg_indptr = torch.tensor([0, 2, 2, 5, 9], dtype=torch.int32)
    assert torch.equal(segment_gemm(x, stored, seg_indptr=seg_indptr, **layout), out)


def test_without_indices_each_segment_has_its_own_weight() -> None:
    x, weights, out = draw(5, D_IN), draw(2, D_OUT, D_IN, seed=1), torch.empty(5, D_OUT)
    found = segment_gemm(x, weights, weight_column_major=True, seg_lens=torch.tensor([4, 1]), out=out)
    assert found is out
    expected = reference.rows_by_weight(x, weights, [0, 0, 0, 0, 1])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_rows_and_no_segments() -> None:
    weights = torch.empty(2, 4, 8)
    none = segment_gemm(torch.empty(0, 8), weights, weight_column_major=True, seg_lens=torch.tensor([0, 0]))
    assert none.shape == (0, 4)
    nobody = torch.empty(0, dtype=torch.int32)
    none = segment_gemm(torch.empty(0, 8), weights, weight_column_major=True, seg_lens=nobody, weight_indices=nobody)
    assert none.shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seg_lens": None}, "seg_lens, seg_indptr: expected one of them, got neither"),
        ({"seg_indptr": torch.tensor([0, 2, 4])}, "seg_lens, seg_indptr: expected one of them, got both"),
        ({"seg_lens": torch.tensor([2, 3])}, "seg_lens: expected segments of all num_rows=4, got segments of 5 rows"),
        ({"seg_lens": torch.tensor([5, -1])}, r"seg_lens: expected lengths >= 0, got \[5, -1\]"),
        (
            {"seg_lens": None, "seg_indptr": torch.tensor([0, 5, 4])},
            r"seg_indptr: expected entries that ascend from 0, got \[0, 5, 4\]",
        ),
        ({"weight_indices": None}, "weight_indices: expected one of num_weights=3 for each of 2, got None"),
        (
            {"weight_indices": torch.tensor([0, 3])},
            r"weight_indices: expected weights in \[0, num_weights=3\), or -1, got 3",
        ),
        ({"weight_indices": torch.tensor([0])}, r"weight_indices: expected \[2\], got \[1\]"),
        ({"weight_column_major": False}, r"weights: expected \[num_weights, d_in=8, d_out\], got \[3, 5, 8\]"),
        ({"out": torch.empty(4, 8)}, r"out: expected \[4, 5\], got \[4, 8\]"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    right = {
        "weight_column_major": True,
        "seg_lens": torch.tensor([1, 3]),
        "weight_indices": torch.tensor([0, 2]),
    }
    with pytest.raises(InvalidArgumentError, match=message):
        segment_gemm(torch.ones(4, 8), torch.ones(3, 5, 8), **(right | arguments))
