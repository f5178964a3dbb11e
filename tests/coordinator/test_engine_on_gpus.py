# SPDX-License-Identifier: Apache-2.0
"""The same engine on two GPUs: NCCL, torch operators, one GPU visible to each actor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed_fi.config import EngineConfig, SamplingParams
from distributed_fi.coordinator.engine import Engine
from distributed_fi.mesh import Mesh

pytestmark = [pytest.mark.multi_gpu, pytest.mark.ray]
PROMPTS = ([3, 14, 15, 92, 65], list(range(100, 140)), [7] * 17)


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 query and 3 KV heads, so tp=2 is uneven, and an odd vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=4999,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("small_llama")
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def generate(model: Path, mesh: Mesh, device: str, params: SamplingParams) -> tuple[list[list[int]], Engine]:
    config = EngineConfig(model=str(model), mesh=mesh, dtype="float32", device=device, max_model_len=512)
    with Engine(config) as engine:
        return [completion.token_ids for completion in engine.generate(PROMPTS, params)], engine


def test_two_gpus_give_the_tokens_of_one_gpu_and_of_the_cpu(local_ray: None, small_llama: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    on_cpu, _ = generate(small_llama, Mesh(tp=1), "cpu", params)
    on_one, _ = generate(small_llama, Mesh(tp=1), "cuda", params)
    on_two, engine = generate(small_llama, Mesh(tp=2), "cuda", params)
    assert on_one == on_cpu
    assert on_two == on_cpu
    assert len({info.gpu_uuid for info in engine.gang.infos}) == 2


def test_seeded_sampling_is_the_same_on_one_and_two_gpus(local_ray: None, small_llama: Path) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95, top_k=100, seed=5, max_tokens=24, ignore_eos=True)
    on_one, _ = generate(small_llama, Mesh(tp=1), "cuda", params)
    on_two, _ = generate(small_llama, Mesh(tp=2), "cuda", params)
    assert on_two == on_one


def test_replicas_on_two_gpus_give_the_tokens_of_one(local_ray: None, small_llama: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    on_one, _ = generate(small_llama, Mesh(tp=1), "cuda", params)
    on_two, _ = generate(small_llama, Mesh(dp=2), "cuda", params)
    assert on_two == on_one
