# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling import reference
from distributed_fi.sampling import top_k


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("batch", "d", "k"), [(3, 111, 7), (1, 5, 5), (4, 1000, 1)])
def test_the_largest_first_and_equals_by_index(batch: int, d: int, k: int, dtype: torch.dtype) -> None:
    x = (torch.randn(batch, d, generator=torch.Generator().manual_seed(0)) * 8).round().to(dtype)  # many equals
    values, indices = top_k(x, k)
    expected = [reference.ranked(row)[:k] for row in x.tolist()]
    assert indices.tolist() == expected
    assert indices.dtype == torch.int64
    assert torch.equal(
        values, torch.tensor([[r[i] for i in e] for r, e in zip(x.tolist(), expected, strict=True)], dtype=dtype)
    )
    values, indices = top_k(x, k, sorted=False)
    assert indices.tolist() == [sorted(row) for row in expected]
    assert torch.equal(values, x.gather(-1, indices))


def test_infinities_and_nan() -> None:
    x = torch.tensor([[-torch.inf, 1.0, torch.inf, torch.nan, -torch.inf]])
    assert top_k(x, 4)[1].tolist() == [[3, 2, 1, 0]]


def test_no_rows_and_wrong_arguments() -> None:
    values, indices = top_k(torch.empty(0, 8), 3)
    assert values.shape == indices.shape == (0, 3)
    for k in (0, 9):
        with pytest.raises(InvalidArgumentError, match=rf"k: expected an integer in \[1, d=8\], got {k}"):
            top_k(torch.ones(2, 8), k)
    with pytest.raises(InvalidArgumentError, match=r"input: expected \[batch, d\], got \[8\]"):
        top_k(torch.ones(8), 3)
