# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from distributed_fi.comm.rank_order import sum_in_rank_order

HUGE = 2.0**25  # 1 added to it is lost in float32, so that the order of additions shows


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((HUGE, 1.0, -HUGE), 0.0),
        ((HUGE, -HUGE, 1.0), 1.0),
        ((1.0, HUGE, -HUGE), 0.0),
    ],
)
def test_float32_is_added_in_the_order_given(values: tuple[float, ...], expected: float) -> None:
    out = torch.empty(3)
    sum_in_rank_order([torch.full((3,), value) for value in values], out)
    assert out.tolist() == [expected] * 3


def test_bfloat16_is_rounded_once() -> None:
    # 256 + 1 rounds to 256 in bfloat16, which has 8 bits: four times rounded it stays there.
    out = torch.empty(1, dtype=torch.bfloat16)
    sum_in_rank_order([torch.tensor([v], dtype=torch.bfloat16) for v in (256.0, 1.0, 1.0, 1.0, 1.0)], out)
    assert out.tolist() == [260.0]


@pytest.mark.parametrize("own", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_out_may_be_any_of_the_parts(own: int, dtype: torch.dtype) -> None:
    parts = [torch.arange(5).mul(10**rank % 97).to(dtype) for rank in range(4)]
    expected = np.sum([part.numpy().astype(np.float64) for part in parts], axis=0)
    sum_in_rank_order(parts, parts[own])
    assert parts[own].double().tolist() == expected.tolist()


def test_uint8_wraps() -> None:
    out = torch.empty(1, dtype=torch.uint8)
    sum_in_rank_order([torch.tensor([200], dtype=torch.uint8)] * 3, out)
    assert out.tolist() == [600 % 256]
