# SPDX-License-Identifier: Apache-2.0
"""One layer of a decoder on one rank: weights and parts, chosen by the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distributed_fi.config import ModelConfig
from distributed_fi.models.decoder_weights import norm_names
from distributed_fi.models.mlp import DenseMlp, ExpertMlp, Mlp, gated_activation
from distributed_fi.models.norm import Norm, make_norm


@dataclass(frozen=True, eq=False, kw_only=True)
class DecoderLayer:
    """Weights of one layer on one rank, [out features, in features]; names as in `weight_specs`.

    Args:
        window_left: tokens before itself that a query sees, -1 for all.
        cos_sin_cache: [max_position, head_dim], of the layer's rotary embedding.
    """

    input_norm: Norm
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Norm | None
    k_norm: Norm | None
    o: Tensor
    attention_out_norm: Norm | None
    mlp_norm: Norm
    mlp: Mlp
    mlp_out_norm: Norm | None
    window_left: int
    cos_sin_cache: Tensor


def make_layer(config: ModelConfig, weights: Mapping[str, Tensor], i: int, cos_sin_cache: Tensor) -> DecoderLayer:
    """Layer `i` from the rank's parameters."""
    own = {name.removeprefix(f"layers.{i}."): w for name, w in weights.items() if name.startswith(f"layers.{i}.")}
    norms = {name: make_norm(config, own[name]) for name in norm_names(config)}
    qk_norms = {name: make_norm(config, own[name]) for name in ("q_norm", "k_norm") if config.has_qk_norm}
    return DecoderLayer(
        input_norm=norms["input_norm"],
        qkv=own["qkv"],
        qkv_bias=own.get("qkv_bias"),
        q_norm=qk_norms.get("q_norm"),
        k_norm=qk_norms.get("k_norm"),
        o=own["o"],
        attention_out_norm=norms.get("attention_out_norm"),
        mlp_norm=norms["mlp_norm"],
        mlp=_mlp(config, own),
        mlp_out_norm=norms.get("mlp_out_norm"),
        window_left=config.sliding_window - 1 if config.sliding_window and config.is_windowed(i) else -1,
        cos_sin_cache=cos_sin_cache,
    )


def _mlp(config: ModelConfig, own: Mapping[str, Tensor]) -> Mlp:
    activation = gated_activation(config)
    if config.experts is None or "router" not in own:
        return DenseMlp(own["gate_up"], own["down"], activation)
    num_experts = config.experts.num_experts
    return ExpertMlp(
        router=own["router"],
        gate_up=own["expert_gate_up"].unflatten(0, (num_experts, -1)),
        down=own["expert_down"].unflatten(0, (num_experts, -1)),
        activation=activation,
        top_k=config.experts.top_k,
        renormalize=config.experts.renormalize,
    )
