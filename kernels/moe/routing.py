# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes to, and with what weight: the router's top-k in its three forms.

Experts of equal score are taken in the order of their ids, so that every rank and device chooses alike. Scores,
weights and their sums are float32, whatever the logits' dtype.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ScoringFunc = Literal["softmax", "sigmoid"]
# Keeps the quotient finite where every chosen sigmoid underflows, as DeepSeek-V3's model code does.
MIN_WEIGHT_SUM = 1e-20


def topk_softmax(
    router_logits: Tensor, top_k: int, *, renormalize: bool = True, routed_scaling_factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The top_k experts of each token by the softmax over all experts (Mixtral, Qwen-MoE).

    p = softmax(router_logits);  topk_idx = the top_k largest p;  topk_weights = routed_scaling_factor * p[topk_idx]
    (/ their sum)

    Args:
        router_logits: [num_tokens, num_experts], float32, bfloat16 or float16.
        top_k: experts per token, in [1, num_experts].
        renormalize: divide the chosen p by their sum.
        routed_scaling_factor: multiplies the weights, after renormalisation.
    Returns:
        (topk_weights, topk_idx): [num_tokens, top_k] float32 and int32, largest score first, equals by id.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit; top_k > num_experts.
    Notes: a token's result depends on its own row only; a row with a NaN gets NaN weights and ids in range.
        Current stream; graph-capturable; deterministic. Shazeer et al. 2017; Jiang et al. 2024, "Mixtral of Experts".
    """
    _check(router_logits, top_k)
    scores = router_logits.float().softmax(-1)
    return _take(scores, scores, top_k, renormalize, routed_scaling_factor)


def topk_sigmoid(
    router_logits: Tensor,
    top_k: int,
    *,
    bias: Tensor | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The top_k experts of each token by the sigmoid of their logits, chosen with a bias, weighted without.

    s = sigmoid(router_logits);  topk_idx = the top_k largest s + bias;  topk_weights = routed_scaling_factor *
    s[topk_idx] (/ their sum)

    Args:
        router_logits: [num_tokens, num_experts], float32, bfloat16 or float16.
        top_k: experts per token, in [1, num_experts].
        bias: [num_experts], float32, bfloat16 or float16, on the logits' device: the load-balancing correction.
        renormalize: divide the chosen s by their sum.
        routed_scaling_factor: multiplies the weights, after renormalisation.
    Returns:
        (topk_weights, topk_idx): [num_tokens, top_k] float32 and int32, largest s + bias first, equals by id.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit; top_k > num_experts.
    Notes: as `topk_softmax`. Wang et al. 2024, "Auxiliary-loss-free load balancing strategy for mixture-of-experts".
    """
    _check(router_logits, top_k, bias)
    scores = router_logits.float().sigmoid()
    choice = scores if bias is None else scores + bias.float()
    return _take(scores, choice, top_k, renormalize, routed_scaling_factor)


def grouped_topk(
    router_logits: Tensor,
    top_k: int,
    *,
    num_expert_group: int,
    topk_group: int,
    scoring_func: ScoringFunc = "sigmoid",
    bias: Tensor | None = None,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The top_k experts of each token out of its topk_group best groups of experts (DeepSeek-V2 and V3).

    s = scoring_func(router_logits);  a group's score = the sum of its two largest s + bias, or without a bias its
    largest s;  topk_idx = the top_k largest s + bias in the topk_group best groups;
    topk_weights = routed_scaling_factor * s[topk_idx] (/ their sum)

    Args:
        router_logits: [num_tokens, num_experts], float32, bfloat16 or float16.
        top_k: experts per token, in [1, experts of topk_group groups].
        num_expert_group: groups of consecutive experts, a divisor of num_experts.
        topk_group: groups that a token may use, in [1, num_expert_group].
        scoring_func: "sigmoid" (V3) or "softmax" over all experts (V2).
        bias: [num_experts], float32, bfloat16 or float16, on the logits' device; V3's e_score_correction_bias.
        renormalize: divide the chosen s by their sum (V3; V2 does not).
        routed_scaling_factor: multiplies the weights, after renormalisation.
    Returns:
        (topk_weights, topk_idx): [num_tokens, top_k] float32 and int32, largest s + bias first, equals by id.
    Raises:
        InvalidArgumentError: a shape, dtype or value that does not fit; more experts asked for than may be used.
    Notes: as `topk_softmax`. DeepSeek-AI 2024, "DeepSeek-V2" (device-limited routing) and "DeepSeek-V3".
    """
    num_experts = _check(router_logits, top_k, bias)
    group_size = _group_size(num_experts, num_expert_group, topk_group, top_k)
    if scoring_func not in ("softmax", "sigmoid"):
        raise InvalidArgumentError("scoring_func", scoring_func, "one of softmax, sigmoid")
    logits = router_logits.float()
    scores = logits.softmax(-1) if scoring_func == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias.float()
    groups = choice.unflatten(-1, (num_expert_group, group_size))  # [T, G, E / G]
    best = groups.amax(-1) if bias is None else groups.topk(min(2, group_size)).values.sum(-1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, _ranked(best)[:, :topk_group], True)
    choice = groups.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
    return _take(scores, choice, top_k, renormalize, routed_scaling_factor)


def _take(scores: Tensor, choice: Tensor, top_k: int, renormalize: bool, factor: float) -> tuple[Tensor, Tensor]:
    idx = _ranked(choice)[:, :top_k]
    weights = scores.gather(-1, idx)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + MIN_WEIGHT_SUM)
    return (weights if factor == 1.0 else weights * factor), idx.int()


def _ranked(scores: Tensor) -> Tensor:
    """Column ids by score, largest first, equals by id; torch.topk leaves the order of equals open."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def _check(router_logits: Tensor, top_k: int, bias: Tensor | None = None) -> int:
    dims = Dims()
    check_tensor("router_logits", router_logits, ("num_tokens", "num_experts"), dims, dtype=FLOATS)
    if bias is not None:
        check_tensor("bias", bias, ("num_experts",), dims, dtype=FLOATS, device=router_logits.device)
    if not isinstance(top_k, int) or not 1 <= top_k <= dims["num_experts"]:
        raise InvalidArgumentError("top_k", top_k, f"an integer in [1, num_experts={dims['num_experts']}]")
    return dims["num_experts"]


def _group_size(num_experts: int, num_expert_group: int, topk_group: int, top_k: int) -> int:
    if not isinstance(num_expert_group, int) or num_expert_group < 1 or num_experts % num_expert_group:
        raise InvalidArgumentError("num_expert_group", num_expert_group, f"a divisor of num_experts={num_experts}")
    if not isinstance(topk_group, int) or not 1 <= topk_group <= num_expert_group:
        expected = f"an integer in [1, num_expert_group={num_expert_group}]"
        raise InvalidArgumentError("topk_group", topk_group, expected)
    usable = topk_group * (num_experts // num_expert_group)
    if top_k > usable:
        raise InvalidArgumentError("top_k", top_k, f"at most {usable}, the experts of topk_group={topk_group} groups")
    return num_experts // num_expert_group
