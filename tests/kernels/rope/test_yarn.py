# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from distributed_fi.config import RopeConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.rope import reference
from distributed_fi.rope import apply_rope_with_cos_sin_cache, make_cos_sin_cache, rope_frequencies, yarn_mscale

HEAD_DIM = 64
ROPES = {
    "qwen": RopeConfig(theta=1e6, scaling="yarn", factor=4.0, original_max_position=32768),
    "deepseek": RopeConfig(scaling="yarn", factor=40.0, original_max_position=4096, attention_factor=1.0),
    "gpt-oss": RopeConfig(theta=150_000.0, scaling="yarn", factor=32.0, original_max_position=4096, truncate=False),
    "short": RopeConfig(scaling="yarn", factor=2.0, original_max_position=256, beta_fast=8.0, beta_slow=2.0),
}


def of_transformers(rope: RopeConfig) -> tuple[torch.Tensor, float]:
    parameters = {
        "rope_type": "yarn",
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_max_position,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "truncate": rope.truncate,
        "attention_factor": rope.attention_factor,
    }
    reach = int(rope.original_max_position * rope.factor)
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=reach,
        rope_parameters=parameters,
    )
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config)
    return frequencies, attention_factor


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_equal_transformers_and_the_cases_of_the_paper(name: str) -> None:
    rope = ROPES[name]
    found = rope_frequencies(rope, HEAD_DIM)
    theirs, _ = of_transformers(rope)
    torch.testing.assert_close(found.float(), theirs, rtol=2e-6, atol=0)
    cases = torch.tensor([reference.frequency(rope, i, HEAD_DIM) for i in range(HEAD_DIM // 2)], dtype=torch.float64)
    torch.testing.assert_close(found, cases, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ROPES)
def test_cache_is_multiplied_by_the_attention_factor(name: str) -> None:
    rope = ROPES[name]
    frequencies, factor = of_transformers(rope)
    cache = make_cos_sin_cache(rope, HEAD_DIM, 64)
    angles = torch.arange(64.0)[:, None] * frequencies
    expected = torch.cat([angles.cos(), angles.sin()], -1) * factor
    torch.testing.assert_close(cache, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("is_neox", [True, False])
def test_rotates_part_of_a_head(is_neox: bool) -> None:
    rope, rotary_dim, positions = ROPES["qwen"], 24, torch.tensor([0, 5, 70_000])
    q = torch.randn(3, 4, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    cache = make_cos_sin_cache(rope, rotary_dim, 70_001)
    out, _ = apply_rope_with_cos_sin_cache(positions, q, q[:, :1], HEAD_DIM, cache, is_neox)
    expected = reference.rotate(q, positions, rope, rotary_dim, interleave=not is_neox)
    expected[..., :rotary_dim] *= 0.1 * math.log(4.0) + 1
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-6)


def test_mscale() -> None:
    assert yarn_mscale(1.0) == yarn_mscale(0.5) == 1.0
    assert yarn_mscale(40.0, 0.707) == pytest.approx(1 + 0.0707 * math.log(40))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"theta": 1.0}, "rope_theta: expected a number > 1 for yarn, got 1.0"),
        ({"factor": 0.0}, "rope_scale: expected a number > 0, got 0.0"),
        ({"beta_fast": 1.0}, r"beta_fast, beta_slow: expected beta_fast > beta_slow > 0, got \(1.0, 1.0\)"),
        ({"original_max_position": 0}, "original_max_position: expected an integer >= 1, got 0"),
        ({"attention_factor": 0.0}, "attention_factor: expected a number > 0, or None, got 0.0"),
    ],
)
def test_wrong_scaling(fields: dict[str, Any], message: str) -> None:
    rope = {"scaling": "yarn", "factor": 4.0} | fields
    with pytest.raises(InvalidArgumentError, match=message):
        make_cos_sin_cache(RopeConfig(**rope), HEAD_DIM, 8)
