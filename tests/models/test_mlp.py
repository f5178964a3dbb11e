# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distributed_fi.config import ExpertsConfig, ModelConfig
from distributed_fi.errors import CorruptWeightsError, InvalidArgumentError
from distributed_fi.kernels.activation.silu_and_mul import silu_and_mul
from distributed_fi.mesh import Mesh
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.models.mlp import ExpertMlp
from distributed_fi.plan.sharding import shard_model

EXPERTS, HIDDEN, INTERMEDIATE, TOP_K = 5, 12, 7, 2


def experts(generator: torch.Generator, renormalize: bool) -> ExpertMlp:
    router = torch.randn(EXPERTS, HIDDEN, generator=generator)
    gate_up = torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, generator=generator)
    down = torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, generator=generator)
    return ExpertMlp(
        router=router, gate_up=gate_up, down=down, activation=silu_and_mul, top_k=TOP_K, renormalize=renormalize
    )


def token_by_token(mlp: ExpertMlp, hidden: Tensor) -> Tensor:
    """The mixture in float64: for each token its TOP_K most probable experts."""
    rows = []
    for x in hidden.double():
        probabilities = (mlp.router.double() @ x).softmax(0)
        best = sorted(range(EXPERTS), key=lambda e: -float(probabilities[e]))[:TOP_K]
        total = sum(float(probabilities[e]) for e in best) if mlp.renormalize else 1.0
        row = torch.zeros(HIDDEN, dtype=torch.float64)
        for e in best:
            gate, up = (mlp.gate_up[e].double() @ x).chunk(2)
            row += probabilities[e] / total * (mlp.down[e].double() @ (gate * gate.sigmoid() * up))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 23])
def test_a_token_gets_the_weighted_sum_of_its_experts(num_tokens: int, renormalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mlp = experts(generator, renormalize)
    hidden = torch.randn(num_tokens, HIDDEN, generator=generator)
    torch.testing.assert_close(mlp(hidden).double(), token_by_token(mlp, hidden), rtol=1e-4, atol=1e-4)


def test_no_tokens_give_none() -> None:
    mlp = experts(torch.Generator().manual_seed(0), True)
    assert mlp(torch.empty(0, HIDDEN)).shape == (0, HIDDEN)


@pytest.mark.parametrize("top_k", [0, 6])
def test_more_experts_for_a_token_than_there_are_is_refused(top_k: int) -> None:
    message = rf"experts\.top_k: expected an integer in \[1, num_experts=5\], got {top_k}"
    with pytest.raises(InvalidArgumentError, match=message):
        ExpertsConfig(num_experts=5, top_k=top_k, intermediate_size=7)


def test_an_expert_is_not_cut_into_more_parts_than_it_has(make_hf) -> None:
    folder, _ = make_hf(arch="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=2)
    config: ModelConfig = open_checkpoint(str(folder)).config
    with pytest.raises(InvalidArgumentError, match="tp: expected at most 2, an expert's intermediate size, got 3"):
        shard_model(config, Mesh(tp=3), 0)


@pytest.mark.parametrize("arch, name", [("mixtral", "block_sparse_moe.gate"), ("qwen3_moe", "mlp.experts.3.down_proj")])
def test_a_missing_tensor_of_the_experts_is_named(make_hf, arch: str, name: str) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = make_hf(arch=arch, num_local_experts=4, num_experts_per_tok=2, shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"model.layers.1.{name}.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptWeightsError, match=rf"lacks the tensor model\.layers\.1\.{name}\.weight"):
        open_checkpoint(str(folder))
