# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.moe import reference
from distributed_fi.moe import grouped_topk, topk_sigmoid, topk_softmax

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_routed(found: tuple[torch.Tensor, torch.Tensor], expected: list[tuple[list[int], list[float]]]) -> None:
    weights, idx = found
    assert weights.dtype == torch.float32
    assert idx.dtype == torch.int32
    assert idx.tolist() == [chosen for chosen, _ in expected]
    torch.testing.assert_close(
        weights.double(), torch.tensor([w for _, w in expected], dtype=torch.float64), rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(7, 8, 2), (3, 61, 5), (1, 3, 3)])
def test_topk_softmax(num_tokens: int, num_experts: int, top_k: int, renormalize: bool, dtype: torch.dtype) -> None:
    logits = draw(num_tokens, num_experts).to(dtype)
    expected = []
    for row in logits.tolist():
        scores = reference.softmax(row)
        chosen = reference.ranked(scores)[:top_k]
        expected.append((chosen, reference.weights(scores, chosen, renormalize, 1.5)))
    found = topk_softmax(logits, top_k, renormalize=renormalize, routed_scaling_factor=1.5)
    assert_routed(found, expected)


@pytest.mark.parametrize("with_bias", [True, False])
def test_topk_sigmoid_chooses_with_the_bias_and_weighs_without(with_bias: bool) -> None:
    logits, bias = draw(9, 17), draw(17, seed=1)
    expected = []
    for row in logits.tolist():
        scores = reference.sigmoid(row)
        chosen = reference.ranked([s + b * with_bias for s, b in zip(scores, bias.tolist(), strict=True)])[:4]
        expected.append((chosen, reference.weights(scores, chosen, True, 1.0)))
    assert_routed(topk_sigmoid(logits, 4, bias=bias if with_bias else None), expected)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
def test_grouped_topk(scoring_func: Any, with_bias: bool, renormalize: bool) -> None:
    logits, bias = draw(11, 24), draw(24, seed=1) / 4
    score = {"sigmoid": reference.sigmoid, "softmax": reference.softmax}[scoring_func]
    expected = []
    for row in logits.tolist():
        scores = score(row)
        choice = [s + b * with_bias for s, b in zip(scores, bias.tolist(), strict=True)]
        usable = reference.best_groups(choice, num_groups=6, topk_group=2, summands=1 + with_bias)
        chosen = sorted(usable, key=lambda e: -choice[e])[:5]
        expected.append((chosen, reference.weights(scores, chosen, renormalize, 2.5)))
    found = grouped_topk(
        logits,
        5,
        num_expert_group=6,
        topk_group=2,
        scoring_func=scoring_func,
        bias=bias if with_bias else None,
        renormalize=renormalize,
        routed_scaling_factor=2.5,
    )
    assert_routed(found, expected)


def sorted_by_expert(weights: torch.Tensor, idx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    idx, order = idx.long().sort(dim=-1)
    return weights.gather(-1, order), idx


def test_mixtral_routes_alike() -> None:
    config = MixtralConfig(hidden_size=16, num_local_experts=8, num_experts_per_tok=2)
    router, x = MixtralTopKRouter(config), draw(33, 16)
    router.weight.data = draw(8, 16, seed=1)
    logits, weights, idx = router(x)
    torch.testing.assert_close(sorted_by_expert(*topk_softmax(logits, 2)), sorted_by_expert(weights, idx))


def test_deepseek_v3_routes_alike() -> None:
    config = DeepseekV3Config(
        hidden_size=16, n_routed_experts=32, num_experts_per_tok=4, n_group=8, topk_group=3, routed_scaling_factor=2.5
    )
    router, x = DeepseekV3TopkRouter(config), draw(33, 16)
    router.weight.data, router.e_score_correction_bias = draw(32, 16, seed=1), draw(32, seed=2) / 3
    logits, weights, idx = router(x)
    bias = router.e_score_correction_bias
    found = grouped_topk(logits, 4, num_expert_group=8, topk_group=3, bias=bias, routed_scaling_factor=2.5)
    torch.testing.assert_close(sorted_by_expert(*found), sorted_by_expert(weights, idx))


def test_deepseek_v2_routes_alike() -> None:
    config = DeepseekV2Config(
        hidden_size=16,
        num_attention_heads=2,
        n_routed_experts=20,
        num_experts_per_tok=3,
        n_group=5,
        topk_group=2,
        topk_method="group_limited_greedy",
        routed_scaling_factor=16.0,
    )
    router, x = DeepseekV2TopkRouter(config), draw(33, 16)
    router.weight.data = draw(20, 16, seed=1) / 4
    logits, weights, idx = router(x)
    limits = {"num_expert_group": 5, "topk_group": 2}
    found = grouped_topk(logits, 3, **limits, scoring_func="softmax", renormalize=False, routed_scaling_factor=16.0)
    torch.testing.assert_close(sorted_by_expert(*found), sorted_by_expert(weights, idx))


def test_equal_scores_go_to_the_smallest_ids() -> None:
    logits = torch.zeros(2, 8)
    for _, idx in (
        topk_softmax(logits, 3),
        topk_sigmoid(logits, 3),
        grouped_topk(logits, 3, num_expert_group=2, topk_group=1),
    ):
        assert idx.tolist() == [[0, 1, 2]] * 2


def test_logits_that_underflow_and_nan_stay_in_their_row() -> None:
    logits = torch.zeros(3, 4)
    logits[0], logits[1, 2] = -200.0, torch.nan
    weights, idx = topk_sigmoid(logits, 2)
    assert weights[0].tolist() == [0.0, 0.0]
    assert weights[1].isnan().any()
    assert weights[2].tolist() == [0.5, 0.5]
    assert int(idx.min()) >= 0
    assert int(idx.max()) < 4


def test_no_tokens() -> None:
    for weights, idx in (
        topk_softmax(torch.empty(0, 8), 2),
        grouped_topk(torch.empty(0, 8), 2, num_expert_group=2, topk_group=1),
    ):
        assert weights.shape == idx.shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 9}, r"top_k: expected an integer in \[1, num_experts=8\], got 9"),
        ({"top_k": 0}, r"top_k: expected an integer in \[1, num_experts=8\], got 0"),
        ({"num_expert_group": 3}, "num_expert_group: expected a divisor of num_experts=8, got 3"),
        ({"topk_group": 5}, r"topk_group: expected an integer in \[1, num_expert_group=4\], got 5"),
        ({"top_k": 3, "topk_group": 1}, "top_k: expected at most 2, the experts of topk_group=1 groups, got 3"),
        ({"scoring_func": "tanh"}, "scoring_func: expected one of softmax, sigmoid, got tanh"),
        ({"bias": torch.zeros(7)}, r"bias: expected \[num_experts=8\], got \[7\]"),
        ({"router_logits": torch.zeros(8)}, r"router_logits: expected \[num_tokens, num_experts\], got \[8\]"),
        ({"router_logits": torch.zeros(2, 8, dtype=torch.int32)}, "router_logits: expected dtype float32 or bfloat16"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    right = {"router_logits": torch.zeros(2, 8), "top_k": 2, "num_expert_group": 4, "topk_group": 2}
    with pytest.raises(InvalidArgumentError, match=message):
        grouped_topk(**(right | arguments))
