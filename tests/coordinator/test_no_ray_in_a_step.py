# SPDX-License-Identifier: Apache-2.0
"""No Ray call is made inside a step: Ray's API is patched to raise there, in the coordinator and in every rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_fi.config import EngineConfig, SamplingParams
from distributed_fi.coordinator.engine import Engine
from distributed_fi.errors import RankError
from distributed_fi.mesh import Mesh

pytestmark = [pytest.mark.model, pytest.mark.ray]
GUARD = Path(__file__).with_name("ray_guard.py")


def generate_under(hook: str, model: Path) -> list[int]:
    config = EngineConfig(
        model=str(model), load_format="dummy", mesh=Mesh(tp=2), max_model_len=128, step_hook=f"{GUARD}:{hook}"
    )
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=6, ignore_eos=True)
    with Engine(config) as engine:
        return engine.generate([[1, 2, 3, 4]], params)[0].token_ids


def test_steps_run_with_rays_api_patched_to_raise(local_ray: None, smollm2_gguf: Path) -> None:
    assert len(generate_under("forbid_ray", smollm2_gguf)) == 6


def test_a_call_planted_in_a_rank_is_found(local_ray: None, smollm2_gguf: Path) -> None:
    with pytest.raises(RankError, match="rank 1: AssertionError: Ray was called inside a step"):
        generate_under("call_ray_in_rank_1", smollm2_gguf)


def test_a_call_planted_in_the_coordinator_is_found(local_ray: None, smollm2_gguf: Path) -> None:
    with pytest.raises(AssertionError, match="Ray was called inside a step"):
        generate_under("call_ray_in_the_coordinator", smollm2_gguf)
