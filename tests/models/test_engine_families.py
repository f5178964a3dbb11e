# SPDX-License-Identifier: Apache-2.0
"""What a family needs of the runner, through the whole stack: a plan for each window, experts over the ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from distributed_fi.config import EngineConfig, SamplingParams
from distributed_fi.coordinator.engine import Engine
from distributed_fi.mesh import Mesh

pytestmark = pytest.mark.ray

PROMPTS = ((3, 14, 15, 92, 65, 35, 89, 79), (26, 5), (43, 38, 32, 79, 50), (1, 2, 3))
NUM_TOKENS = 12
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3": {"sliding_window": 4, "sliding_window_pattern": 2},
    "qwen3_moe": {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 19, "mlp_only_layers": [1],
        "shard_size": "1GB",
    },
}  # fmt: skip


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: tuple[int, ...]) -> list[int]:
    tokens = list(prompt)
    for _ in range(NUM_TOKENS):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("arch", FAMILIES)
def test_greedy_tokens_are_those_of_transformers_with_requests_arriving_mid_batch(
    local_ray: None, make_hf, arch: str
) -> None:
    folder, reference = make_hf(arch=arch, **FAMILIES[arch])
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    config = EngineConfig(model=str(folder), mesh=Mesh(tp=2), dtype="float32", device="cpu", page_size=4)
    with Engine(config) as engine:
        prompts = {engine.add_request(prompt, params): prompt for prompt in PROMPTS[:2]}
        late = list(PROMPTS[2:])
        while engine.has_work or late:
            events = engine.step()
            if late and events and max(event.index for event in events) >= 3:
                prompt = late.pop(0)
                prompts[engine.add_request(prompt, params)] = prompt
        completions = dict(engine.completions)
    assert len(completions) == len(PROMPTS)
    for request_id, prompt in prompts.items():
        assert completions[request_id].token_ids == greedy(reference, prompt)
