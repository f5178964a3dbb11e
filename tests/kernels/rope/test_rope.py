# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from distributed_fi.config import RopeConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.rope import reference
from distributed_fi.rope import (
    apply_llama31_rope,
    apply_llama31_rope_inplace,
    apply_llama31_rope_pos_ids,
    apply_llama31_rope_pos_ids_inplace,
    apply_rope,
    apply_rope_inplace,
    apply_rope_pos_ids,
    apply_rope_pos_ids_inplace,
)

NUM_QO_HEADS, NUM_KV_HEADS = 9, 3
LLAMA31 = RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_position=8192)
# Entries stay below 6; one rounding to the tensors' type.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 6 * 2**-8, torch.float16: 6 * 2**-11}


def draw_qk(num_tokens: int, head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(num_tokens, NUM_QO_HEADS, head_dim, generator=generator)
    k = torch.randn(num_tokens, NUM_KV_HEADS, head_dim, generator=generator)
    return q.to(dtype), k.to(dtype)


def assert_rotated(
    out: tuple[torch.Tensor, ...], qk: tuple[torch.Tensor, ...], pos: torch.Tensor, rope: RopeConfig, **layout: Any
) -> None:
    for after, before in zip(out, qk, strict=True):
        expected = reference.rotate(before, pos, rope, layout.get("rotary_dim", before.shape[-1]), layout["interleave"])
        assert after.dtype == before.dtype
        torch.testing.assert_close(after.double(), expected, rtol=0, atol=ROUNDING[before.dtype])


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (64, 16), (6, 2)])
def test_apply_rope_pos_ids(head_dim: int, rotary_dim: int, interleave: bool, dtype: torch.dtype) -> None:
    q, k = draw_qk(5, head_dim, dtype)
    pos_ids = torch.tensor([0, 7, 7, 1023, 100_000], dtype=torch.int32)
    out = apply_rope_pos_ids(q, k, pos_ids, rotary_dim, interleave)
    assert_rotated(out, (q, k), pos_ids, RopeConfig(), rotary_dim=rotary_dim, interleave=interleave)


def test_linear_scaling() -> None:
    q, k = draw_qk(3, 64)
    pos_ids = torch.tensor([1, 50, 99_999])
    out = apply_rope_pos_ids(q, k, pos_ids, rope_scale=4, rope_theta=1e6)
    assert_rotated(out, (q, k), pos_ids, RopeConfig(theta=1e6, scaling="linear", factor=4), interleave=False)


@pytest.mark.parametrize("interleave", [False, True])
def test_apply_llama31_rope_pos_ids(interleave: bool) -> None:
    q, k = draw_qk(4, 128)
    pos_ids = torch.tensor([0, 3, 8192, 100_000])
    out = apply_llama31_rope_pos_ids(q, k, pos_ids, interleave=interleave)
    assert_rotated(out, (q, k), pos_ids, LLAMA31, interleave=interleave)


def test_segments_start_at_their_offsets() -> None:
    q, k = draw_qk(6, 64)
    indptr = torch.tensor([0, 2, 2, 6], dtype=torch.int32)  # the second segment is empty
    offsets = torch.tensor([10, 500, 0], dtype=torch.int32)
    pos_ids = torch.tensor([10, 11, 0, 1, 2, 3])
    assert_rotated(apply_rope(q, k, indptr, offsets), (q, k), pos_ids, RopeConfig(), interleave=False)
    assert_rotated(apply_llama31_rope(q, k, indptr, offsets), (q, k), pos_ids, LLAMA31, interleave=False)


def test_inplace_forms_overwrite_and_the_others_do_not() -> None:
    pos_ids, indptr, offsets = torch.tensor([4, 5]), torch.tensor([0, 2]), torch.tensor([4])
    for inplace, where, rope in [
        (apply_rope_pos_ids_inplace, (pos_ids,), RopeConfig()),
        (apply_llama31_rope_pos_ids_inplace, (pos_ids,), LLAMA31),
        (apply_rope_inplace, (indptr, offsets), RopeConfig()),
        (apply_llama31_rope_inplace, (indptr, offsets), LLAMA31),
    ]:
        q, k = draw_qk(2, 64)
        before = q.clone(), k.clone()
        inplace(q, k, *where)
        assert_rotated((q, k), before, pos_ids, rope, interleave=False)
    q, k = before[0].clone(), before[1].clone()
    apply_rope_pos_ids(q, k, pos_ids)
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


def test_slices_of_a_fused_projection() -> None:
    qkv = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    before, pos_ids = qkv.clone(), torch.tensor([1, 2, 3])
    apply_rope_pos_ids_inplace(qkv[:, :3], qkv[:, 3:4], pos_ids)
    assert_rotated((qkv[:, :4],), (before[:, :4],), pos_ids, RopeConfig(), interleave=False)
    assert torch.equal(qkv[:, 4], before[:, 4])


def test_no_tokens() -> None:
    q, k = draw_qk(0, 64)
    none = torch.empty(0, dtype=torch.int32)
    assert apply_rope_pos_ids(q, k, none)[0].shape == (0, NUM_QO_HEADS, 64)
    assert apply_rope(q, k, torch.zeros(1, dtype=torch.int32), none)[1].shape == (0, NUM_KV_HEADS, 64)
    assert apply_rope(q, k, torch.zeros(3, dtype=torch.int32), none.new_zeros(2))[1].shape == (0, NUM_KV_HEADS, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pos_ids": torch.tensor([1])}, r"pos_ids: expected \[num_tokens=2\], got \[1\]"),
        ({"pos_ids": torch.tensor([1.0, 2.0])}, "pos_ids: expected dtype int32 or int64, got float32"),
        ({"k": torch.ones(3, 3, 64)}, r"k: expected \[num_tokens=2, num_kv_heads, head_dim=64\], got \[3, 3, 64\]"),
        ({"q": "queries"}, "q: expected a torch.Tensor, got str"),
        ({"rotary_dim": 66}, r"rotary_dim: expected an even integer in \[2, head_dim=64\], got 66"),
        ({"rotary_dim": 3}, r"rotary_dim: expected an even integer in \[2, head_dim=64\], got 3"),
        ({"rope_theta": 0.0}, "rope_theta: expected a number > 0, got 0.0"),
        ({"rope_scale": -1.0}, "rope_scale: expected a number > 0, got -1.0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    q, k = draw_qk(2, 64)
    with pytest.raises(InvalidArgumentError, match=message):
        apply_rope_pos_ids(**{"q": q, "k": k, "pos_ids": torch.tensor([0, 1]), **arguments})


def test_wrong_llama31_factors() -> None:
    q, k = draw_qk(2, 64)
    with pytest.raises(InvalidArgumentError, match="high_freq_factor: expected more than low_freq_factor=4, got 4"):
        apply_llama31_rope_pos_ids(q, k, torch.tensor([0, 1]), low_freq_factor=4, high_freq_factor=4)


@pytest.mark.parametrize("indptr", [[0, 1], [1, 2], [0, 3, 2]])
def test_wrong_indptr(indptr: list[int]) -> None:
    q, k = draw_qk(2, 64)
    with pytest.raises(InvalidArgumentError, match="indptr: expected ascending from 0 to num_tokens=2, got"):
        apply_rope(q, k, torch.tensor(indptr), torch.zeros(len(indptr) - 1, dtype=torch.int64))
    with pytest.raises(InvalidArgumentError, match=r"offsets: expected \[1\], got \[2\]"):
        apply_rope(q, k, torch.tensor([0, 2]), torch.tensor([0, 0]))
