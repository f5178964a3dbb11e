# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from distributed_fi.config import RopeConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.rope import reference
from distributed_fi.rope import (
    apply_rope_with_cos_sin_cache,
    apply_rope_with_cos_sin_cache_inplace,
    make_cos_sin_cache,
)

NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM = 9, 3, 64
ROPES = {
    "none": RopeConfig(theta=1e5),
    "linear": RopeConfig(scaling="linear", factor=4.0),
    "llama3": RopeConfig(theta=5e5, scaling="llama3", factor=32.0, original_max_position=8192),
}
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 6 * 2**-8, torch.float16: 6 * 2**-11}


def draw(num_tokens: int, num_heads: int, head_dim: int = HEAD_DIM, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, num_heads, head_dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scaling", ROPES)
def test_cache_holds_cosines_then_sines(scaling: str) -> None:
    rope, rotary_dim = ROPES[scaling], 16
    cache = make_cos_sin_cache(rope, rotary_dim, 100_001)
    assert cache.shape == (100_001, rotary_dim)
    assert cache.dtype == torch.float32
    for position in (0, 1, 8191, 100_000):
        angles = [position * reference.frequency(rope, i, rotary_dim) for i in range(rotary_dim // 2)]
        expected = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        torch.testing.assert_close(cache[position], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scaling", ROPES)
def test_equals_transformers(scaling: str) -> None:
    rope, positions = ROPES[scaling], torch.tensor([0, 1, 2, 63, 500])
    q, k = draw(5, NUM_QO_HEADS), draw(5, NUM_KV_HEADS, seed=1)
    parameters = {"rope_type": "default" if scaling == "none" else scaling, "rope_theta": rope.theta}
    if scaling != "none":
        parameters["factor"] = rope.factor
    if scaling == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(
        hidden_size=NUM_QO_HEADS * HEAD_DIM,
        num_attention_heads=NUM_QO_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    q_hf, k_hf = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)

    cache = make_cos_sin_cache(rope, HEAD_DIM, 512)
    q_out, k_out = apply_rope_with_cos_sin_cache(positions, q.flatten(1), k.flatten(1), HEAD_DIM, cache)
    # transformers forms angles in float32: at position 500 they are up to 500 * 2^-23 rad off.
    torch.testing.assert_close(q_out.view_as(q), q_hf[0].transpose(0, 1), rtol=0, atol=3e-4)
    torch.testing.assert_close(k_out.view_as(k), k_hf[0].transpose(0, 1), rtol=0, atol=3e-4)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("rotary_dim", [64, 20])
def test_equals_complex_rotation(rotary_dim: int, is_neox: bool, dtype: torch.dtype) -> None:
    rope, positions = ROPES["llama3"], torch.tensor([3, 0, 99_999], dtype=torch.int32)
    cache = make_cos_sin_cache(rope, rotary_dim, 100_000)
    q, k = draw(3, NUM_QO_HEADS).to(dtype), draw(3, NUM_KV_HEADS, seed=1).to(dtype)
    out = apply_rope_with_cos_sin_cache(positions, q, k, HEAD_DIM, cache, is_neox)
    for after, before in zip(out, (q, k), strict=True):
        expected = reference.rotate(before, positions, rope, rotary_dim, interleave=not is_neox)
        assert after.dtype == dtype
        torch.testing.assert_close(after.double(), expected, rtol=0, atol=ROUNDING[dtype])


def test_inplace_on_slices_of_a_fused_projection() -> None:
    rope, positions = ROPES["none"], torch.tensor([4, 5])
    qkv = draw(2, 5).flatten(1)  # 3 query heads, 1 key head, 1 value head
    before = qkv.clone()
    cache = make_cos_sin_cache(rope, HEAD_DIM, 8)
    apply_rope_with_cos_sin_cache_inplace(positions, qkv[:, :192], qkv[:, 192:256], HEAD_DIM, cache)
    expected = reference.rotate(before[:, :256].view(2, 4, 64), positions, rope, HEAD_DIM, interleave=False)
    torch.testing.assert_close(qkv[:, :256].double(), expected.flatten(1), rtol=0, atol=2e-6)
    assert torch.equal(qkv[:, 256:], before[:, 256:])


def test_no_tokens_and_no_positions() -> None:
    cache = make_cos_sin_cache(RopeConfig(), HEAD_DIM, 0)
    assert cache.shape == (0, HEAD_DIM)
    q, k = torch.empty(0, 128), torch.empty(0, 1, 64)
    out = apply_rope_with_cos_sin_cache(torch.empty(0, dtype=torch.int64), q, k, HEAD_DIM, cache)
    assert [x.shape for x in out] == [(0, 128), (0, 1, 64)]


@pytest.mark.parametrize(("positions", "worst"), [([0, 8], 8), ([-1, 3], -1), ([500, 9], 500)])
def test_position_outside_the_table_changes_nothing(positions: list[int], worst: int) -> None:
    cache = make_cos_sin_cache(RopeConfig(), HEAD_DIM, 8)
    q, k = draw(2, 2), draw(2, 1, seed=1)
    before = q.clone()
    with pytest.raises(InvalidArgumentError, match=rf"positions: expected positions in \[0, 8\), got {worst}$"):
        apply_rope_with_cos_sin_cache_inplace(torch.tensor(positions), q, k, HEAD_DIM, cache)
    assert torch.equal(q, before)


def test_wrong_tensors() -> None:
    cache, positions = make_cos_sin_cache(RopeConfig(), HEAD_DIM, 8), torch.tensor([0, 1])
    q, k = torch.ones(2, 128), torch.ones(2, 64)
    with pytest.raises(InvalidArgumentError, match=r"key: expected \[num_tokens=2, .*\], got \[3, 64\]"):
        apply_rope_with_cos_sin_cache(positions, q, torch.ones(3, 64), HEAD_DIM, cache)
    with pytest.raises(InvalidArgumentError, match=r"query: expected \[num_tokens, a multiple of head_size=64\]"):
        apply_rope_with_cos_sin_cache(positions, torch.ones(2, 100), k, HEAD_DIM, cache)
    with pytest.raises(InvalidArgumentError, match=r"rotary_dim even and in \[2, head_size=32\], got \[8, 64\]"):
        apply_rope_with_cos_sin_cache(positions, q, k, 32, cache)
    with pytest.raises(
        InvalidArgumentError,
        match=r"key: expected query's dtype and device, torch.float32 on cpu, got torch.float16 on cpu",
    ):
        apply_rope_with_cos_sin_cache(positions, q, k.half(), HEAD_DIM, cache)
    with pytest.raises(InvalidArgumentError, match="cos_sin_cache: expected dtype float32, got float16"):
        apply_rope_with_cos_sin_cache(positions, q, k, HEAD_DIM, cache.half())
    with pytest.raises(InvalidArgumentError, match=r"positions: expected \[num_tokens=2\], got \[1\]"):
        apply_rope_with_cos_sin_cache(positions[:1], q, k, HEAD_DIM, cache)
    with pytest.raises(InvalidArgumentError, match="head_size: expected an integer >= 1, got 0"):
        apply_rope_with_cos_sin_cache(positions, q, k, 0, cache)
    with pytest.raises(InvalidArgumentError, match=r"query: expected a torch.Tensor, got NoneType"):
        apply_rope_with_cos_sin_cache_inplace(positions, None, k, HEAD_DIM, cache)  # type: ignore[arg-type]


def test_wrong_table() -> None:
    with pytest.raises(InvalidArgumentError, match="rotary_dim: expected an even integer >= 2, got 7"):
        make_cos_sin_cache(RopeConfig(), 7, 8)
    with pytest.raises(InvalidArgumentError, match="max_position: expected an integer >= 0, got -1"):
        make_cos_sin_cache(RopeConfig(), 64, -1)
    with pytest.raises(
        InvalidArgumentError, match=r"rope.scaling: expected one of none, linear, llama3, yarn, got ntk"
    ):
        make_cos_sin_cache(RopeConfig(scaling="ntk"), 64, 8)  # type: ignore[arg-type]
