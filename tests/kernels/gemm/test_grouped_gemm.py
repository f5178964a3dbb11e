# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.gemm import grouped_gemm_nt
from distributed_fi.kernels.gemm import reference

ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def indptr_of(*group_sizes: int) -> torch.Tensor:
    return torch.tensor([0, *group_sizes]).cumsum(0).int()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("group_sizes", [(3, 0, 7, 1), (0, 0, 33, 0), (1, 1, 1, 1)], ids=str)
def test_each_group_has_its_own_weight(group_sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    num_rows, n, k = sum(group_sizes), 17, 111
    a, b = draw(num_rows, k, dtype=dtype), draw(4, n, k, dtype=dtype, seed=1)
    d = grouped_gemm_nt(a, b, indptr_of(*group_sizes))
    assert d.dtype == dtype
    expert_of_row = [g for g, size in enumerate(group_sizes) for _ in range(size)]
    expected = reference.rows_by_weight(a, b, expert_of_row)
    torch.testing.assert_close(d.double(), expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * k**0.5)


def test_rows_of_no_group_are_zero() -> None:
    a, b = draw(6, 8), draw(2, 3, 8, seed=1)
    a[4:] = torch.nan
    d = grouped_gemm_nt(a, b, indptr_of(1, 3), out=torch.full((6, 3), 9.0))
    expected = reference.rows_by_weight(a, b, [0, 1, 1, 1, -1, -1])
    torch.testing.assert_close(d.double(), expected, rtol=1e-5, atol=1e-5)


def test_out_sets_the_dtype() -> None:
    a, b = draw(5, 64, dtype=torch.bfloat16), draw(2, 3, 64, dtype=torch.bfloat16, seed=1)
    out = torch.empty(5, 3)
    assert grouped_gemm_nt(a, b, indptr_of(2, 3), out=out) is out
    expected = reference.rows_by_weight(a, b, [0, 0, 1, 1, 1])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grouped_gemm_nt(a, b, indptr_of(2, 3), out_dtype=torch.float32), out)


def test_empty_sizes() -> None:
    assert grouped_gemm_nt(torch.empty(0, 8), torch.empty(3, 5, 8), indptr_of(0, 0, 0)).shape == (0, 5)
    assert grouped_gemm_nt(torch.empty(2, 8), torch.empty(0, 5, 8), indptr_of()).tolist() == [[0.0] * 5] * 2
    assert grouped_gemm_nt(torch.empty(2, 0), torch.empty(1, 3, 0), indptr_of(2)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("m_indptr", "message"),
    [
        (torch.tensor([0, 4]), r"m_indptr: expected \[3\], got \[2\]"),
        (torch.tensor([0, 3, 2]), r"m_indptr: expected entries that ascend from 0, got \[0, 3, 2\]"),
        (torch.tensor([1, 3, 4]), r"m_indptr: expected entries that ascend from 0, got \[1, 3, 4\]"),
        (torch.tensor([0, 3, 5]), r"m_indptr: expected a last entry <= num_rows=4, got \[0, 3, 5\]"),
        (torch.tensor([0.0, 3.0, 4.0]), "m_indptr: expected dtype int32 or int64, got float32"),
    ],
)
def test_wrong_indptr(m_indptr: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        grouped_gemm_nt(torch.ones(4, 8), torch.ones(2, 3, 8), m_indptr)


def test_wrong_matrices() -> None:
    a, b, m_indptr = torch.ones(4, 8), torch.ones(2, 3, 8), indptr_of(2, 2)
    with pytest.raises(InvalidArgumentError, match=r"b: expected \[num_groups, n, k=8\], got \[2, 8, 3\]"):
        grouped_gemm_nt(a, b.transpose(1, 2), m_indptr)
    with pytest.raises(InvalidArgumentError, match="out: expected dtype float16, got float32"):
        grouped_gemm_nt(a, b, m_indptr, out=torch.empty(4, 3), out_dtype=torch.float16)
