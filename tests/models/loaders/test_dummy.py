# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed_fi.config import ModelConfig
from distributed_fi.models.loaders.dummy import DummyCheckpoint
from distributed_fi.models.weights import WeightSlice
from distributed_fi.plan.sharding import Span

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM", hidden_size=48, num_layers=1, num_qo_heads=6, num_kv_heads=3, head_dim=8,
    intermediate_size=77, vocab_size=101, max_position=64,
)  # fmt: skip
EMBEDDING, SHAPE = "model.embed_tokens.weight", (300, 48)


def read(name: str, dim: int, span: Span, *, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    piece = WeightSlice(name, shape, dim, span)
    out = torch.full(piece.sliced_shape, torch.nan)
    DummyCheckpoint(Path("."), CONFIG, seed).read(piece, out)
    return out


@pytest.mark.parametrize("dim, span", [(0, Span(0, 1)), (0, Span(63, 130)), (0, Span(299, 300)), (1, Span(5, 17))])
def test_a_slice_is_the_whole_tensors(dim: int, span: Span) -> None:
    whole = read(EMBEDDING, 0, Span(0, 300))
    torch.testing.assert_close(read(EMBEDDING, dim, span), whole.narrow(dim, span.start, len(span)), rtol=0, atol=0)


def test_values_are_normal_and_blocks_differ() -> None:
    whole = read(EMBEDDING, 0, Span(0, 300))
    assert abs(whole.mean()) < 1e-3
    assert abs(whole.std() - 0.02) < 1e-3
    assert not torch.equal(whole[:64], whole[64:128])


def test_tensors_and_seeds_differ_and_a_seed_repeats() -> None:
    draw = read(EMBEDDING, 0, Span(0, 64))
    assert torch.equal(draw, read(EMBEDDING, 0, Span(0, 64)))
    assert not torch.equal(draw, read("lm_head.weight", 0, Span(0, 64)))
    assert not torch.equal(draw, read(EMBEDDING, 0, Span(0, 64), seed=1))


def test_norms_are_one() -> None:
    assert torch.equal(read("model.norm.weight", 0, Span(0, 48), shape=(48,)), torch.ones(48))
