# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.quant import reference
from distributed_fi.quantization import packbits, segment_packbits


def draw_bits(num_bits: int) -> torch.Tensor:
    return torch.rand(num_bits, generator=torch.Generator().manual_seed(0)) < 0.5


@pytest.mark.parametrize("bitorder", ["big", "little"])
@pytest.mark.parametrize("num_bits", [0, 1, 8, 63, 129])
def test_packbits_as_numpy(num_bits: int, bitorder: Any) -> None:
    x = draw_bits(num_bits)
    packed = packbits(x, bitorder)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == np.packbits(x.numpy(), bitorder=bitorder).tolist()
    assert packed.tolist() == reference.packbits(x.tolist(), bitorder)
    assert torch.equal(packbits(x.to(torch.uint8) * 4, bitorder), packed)  # any non-zero byte is a one


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bitorder", ["big", "little"])
def test_each_segment_starts_a_byte(bitorder: Any, dtype: torch.dtype) -> None:
    x, bounds = draw_bits(60), [0, 3, 3, 19, 60]
    packed, packed_indptr = segment_packbits(x, torch.tensor(bounds, dtype=dtype), bitorder)
    segments = [reference.packbits(x[a:b].tolist(), bitorder) for a, b in pairwise(bounds)]
    assert packed.tolist() == [byte for segment in segments for byte in segment]
    assert packed_indptr.tolist() == [0, 1, 1, 3, 9]
    assert packed_indptr.dtype == dtype


def test_no_segments() -> None:
    packed, packed_indptr = segment_packbits(torch.empty(0, dtype=torch.bool), torch.tensor([0]))
    assert (packed.shape, packed_indptr.tolist()) == ((0,), [0])


def test_wrong_arguments() -> None:
    bits = draw_bits(8)
    with pytest.raises(InvalidArgumentError, match="bitorder: expected big or little, got middle"):
        packbits(bits, "middle")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="x: expected dtype bool or uint8, got float32"):
        packbits(torch.ones(8))
    with pytest.raises(InvalidArgumentError, match=r"x: expected \[num_bits\], got \[2, 4\]"):
        packbits(bits.view(2, 4))
    for bounds in ([0, 7], [1, 8], [0, 9, 8], []):
        with pytest.raises(InvalidArgumentError, match="indptr: expected entries that ascend from 0 to num_bits=8"):
            segment_packbits(bits, torch.tensor(bounds, dtype=torch.int32))
