# SPDX-License-Identifier: Apache-2.0
"""What each family of models does differently from Llama, as its config.json says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed_fi.config import ExpertsConfig, RopeConfig
from distributed_fi.errors import CorruptWeightsError, UnsupportedError
from distributed_fi.models.hf_fields import NUMBER, Fields

MISTRAL_SLIDING_WINDOW = 4096  # Where a Mistral config says nothing; null there means none.
GEMMA2_PERIOD, GEMMA3_PERIOD = 2, 6  # Every so many layers one sees all tokens.


@dataclass(frozen=True)
class Family:
    """How to read one architecture's config.json.

    Args:
        model_type: its name in `model_type`.
        read: from the fields to the arguments of ModelConfig in which the family differs from Llama.
        settings: settings of which only one value is served, with that value.
        defaults: what fields that config.json leaves out mean.
    """

    model_type: str
    read: Callable[[Fields], dict[str, Any]]
    settings: Mapping[str, object] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


def read_rope(fields: Fields, default_theta: float = 10000.0) -> RopeConfig:
    """transformers 5 writes `rope_parameters`, with the base inside; before, `rope_scaling` beside `rope_theta`."""
    scaling = fields.nested("rope_parameters")
    if not scaling.values:
        scaling = fields.nested("rope_scaling")
    return _scaled_rope(scaling, fields.number("rope_theta", default_theta, kind=NUMBER))


def _scaled_rope(scaling: Fields, default_theta: float) -> RopeConfig:
    theta = float(scaling.number("rope_theta", default_theta, kind=NUMBER))
    rotated = scaling.number("partial_rotary_factor", 1.0, kind=NUMBER)
    if rotated != 1:
        raise UnsupportedError("partial_rotary_factor", rotated, "1.0, the whole head")
    kind = scaling.values.get("rope_type", scaling.values.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, scaling="linear", factor=float(scaling.number("factor", kind=NUMBER)))
    if kind != "llama3":
        raise UnsupportedError("rope_type", kind, "one of default, linear, llama3")
    return RopeConfig(
        theta=theta,
        scaling="llama3",
        factor=float(scaling.number("factor", kind=NUMBER)),
        low_freq_factor=float(scaling.number("low_freq_factor", kind=NUMBER)),
        high_freq_factor=float(scaling.number("high_freq_factor", kind=NUMBER)),
        original_max_position=scaling.number("original_max_position_embeddings"),
    )


def _llama(fields: Fields) -> dict[str, Any]:
    return {"rope": read_rope(fields)}


def _mistral(fields: Fields) -> dict[str, Any]:
    default = None if "sliding_window" in fields.values else MISTRAL_SLIDING_WINDOW
    return {"rope": read_rope(fields), "sliding_window": fields.number("sliding_window", default)}


def _qwen2(fields: Fields) -> dict[str, Any]:
    return {"has_qkv_bias": True, "rope": read_rope(fields), **_qwen_windows(fields)}


def _qwen3(fields: Fields) -> dict[str, Any]:
    return {"has_qk_norm": True, "rope": read_rope(fields), **_qwen_windows(fields)}


def _qwen_windows(fields: Fields) -> dict[str, Any]:
    if not fields.flag("use_sliding_window"):
        return {}
    first_windowed, num_layers = fields.number("max_window_layers", 28), fields.number("num_hidden_layers")
    default = ["full_attention" if i < first_windowed else "sliding_attention" for i in range(num_layers)]
    return _windows(fields, default, default_window=4096)


def _mixtral(fields: Fields) -> dict[str, Any]:
    experts = ExpertsConfig(
        num_experts=fields.number("num_local_experts", 8),
        top_k=fields.number("num_experts_per_tok", 2),
        intermediate_size=fields.number("intermediate_size"),
        renormalize=True,
    )
    return {"rope": read_rope(fields, 1e6), "sliding_window": fields.number("sliding_window", None), "experts": experts}


def _qwen3_moe(fields: Fields) -> dict[str, Any]:
    num_layers, step = fields.number("num_hidden_layers"), fields.number("decoder_sparse_step", 1)
    dense = fields.values.get("mlp_only_layers") or []
    if step < 1 or not isinstance(dense, list):
        raise CorruptWeightsError(str(fields.path), f"decoder_sparse_step={step} or mlp_only_layers={dense!r} is wrong")
    experts = ExpertsConfig(
        # transformers 5 writes the first name, older files have the second.
        num_experts=fields.number("num_local_experts", fields.number("num_experts", 128)),
        top_k=fields.number("num_experts_per_tok", 8),
        intermediate_size=fields.number("moe_intermediate_size", 768),
        renormalize=fields.flag("norm_topk_prob"),
        dense_layers=tuple(i for i in range(num_layers) if i in dense or (i + 1) % step != 0),
    )
    window = fields.number("sliding_window", 4096) if fields.flag("use_sliding_window") else None
    return {"has_qk_norm": True, "rope": read_rope(fields), "sliding_window": window, "experts": experts}


def _gemma2(fields: Fields) -> dict[str, Any]:
    return {
        **_gemma(fields, period=GEMMA2_PERIOD),
        "rope": read_rope(fields),
        "attention_soft_cap": _soft_cap(fields, "attn_logit_softcapping", 50.0),
        "logit_soft_cap": _soft_cap(fields, "final_logit_softcapping", 30.0),
    }


def _gemma3(fields: Fields) -> dict[str, Any]:
    ropes = fields.nested("rope_parameters")
    if "full_attention" in ropes.values:
        rope = _scaled_rope(ropes.nested("full_attention"), 1e6)
        local_rope = _scaled_rope(ropes.nested("sliding_attention"), 1e4)
    else:
        rope = read_rope(fields, 1e6)
        local_rope = RopeConfig(theta=float(fields.number("rope_local_base_freq", 1e4, kind=NUMBER)))
    return {
        **_gemma(fields, period=fields.number("sliding_window_pattern", GEMMA3_PERIOD)),
        "has_qk_norm": True,
        "rope": rope,
        "local_rope": local_rope,
        "attention_soft_cap": _soft_cap(fields, "attn_logit_softcapping", None),
        "logit_soft_cap": _soft_cap(fields, "final_logit_softcapping", None),
    }


def _gemma(fields: Fields, *, period: int) -> dict[str, Any]:
    default = [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention"
        for i in range(fields.number("num_hidden_layers"))
    ]
    return {
        "has_out_norms": True,
        "norm_adds_one": True,
        "activation": "gelu_tanh",
        "query_scale": float(fields.number("query_pre_attn_scalar", 256, kind=NUMBER)) ** -0.5,
        "embedding_scale": math.sqrt(fields.number("hidden_size")),
        **_windows(fields, default, default_window=4096),
    }


def _soft_cap(fields: Fields, name: str, default: float | None) -> float | None:
    cap = fields.number(name, None if name in fields.values else default, kind=NUMBER)
    return None if cap is None else float(cap)


def _windows(fields: Fields, default: list[str], *, default_window: int) -> dict[str, Any]:
    kinds = fields.values.get("layer_types") or default
    num_layers = fields.number("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise CorruptWeightsError(str(fields.path), f"layer_types must be a list of {num_layers} names, is {kinds!r}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedError("layer_types", kind, "full_attention or sliding_attention")
    window = fields.number("sliding_window", None if "sliding_window" in fields.values else default_window)
    if window is None or "sliding_attention" not in kinds:
        return {}
    full = tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    return {"sliding_window": window, "global_layers": full}


SILU: dict[str, object] = {"hidden_act": "silu"}
GEMMA_SETTINGS: dict[str, object] = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False}
FAMILIES = {
    "LlamaForCausalLM": Family("llama", _llama, SILU),
    "MistralForCausalLM": Family("mistral", _mistral, SILU, {"num_key_value_heads": 8}),
    "Qwen2ForCausalLM": Family("qwen2", _qwen2, SILU),
    "Qwen3ForCausalLM": Family("qwen3", _qwen3, SILU, {"head_dim": 128}),
    "MixtralForCausalLM": Family("mixtral", _mixtral, SILU, {"num_key_value_heads": 8}),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", _qwen3_moe, SILU),
    "Gemma2ForCausalLM": Family("gemma2", _gemma2, GEMMA_SETTINGS, {"head_dim": 256, "tie_word_embeddings": True}),
    "Gemma3ForCausalLM": Family("gemma3_text", _gemma3, GEMMA_SETTINGS, {"head_dim": 256, "tie_word_embeddings": True}),
}
SUPPORTED_ARCHITECTURES = tuple(FAMILIES)
