# SPDX-License-Identifier: Apache-2.0
"""A model's config from the config.json (and generation_config.json) of a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_fi.config import ModelConfig, RopeConfig
from distributed_fi.errors import CorruptWeightsError, InvalidArgumentError, UnsupportedError
from distributed_fi.models.llama_weights import SUPPORTED_ARCHITECTURES

ARCHITECTURE_OF_TYPE = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# What the model code does not do: each setting with the one value that is served.
SERVED_SETTINGS = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
MISTRAL_SLIDING_WINDOW = 4096  # Where a Mistral config says nothing; null there means none.
DTYPES = ("float32", "float16", "bfloat16")
REQUIRED = object()


@dataclass(frozen=True)
class _Fields:
    """Typed access to config.json; an error names the file and the field."""

    path: Path
    values: dict[str, Any]

    def number(self, name: str, default: Any = REQUIRED, *, kind: type | tuple[type, ...] = int) -> Any:
        value = self.values.get(name)
        if value is None:
            if default is REQUIRED:
                raise CorruptWeightsError(str(self.path), f"lacks the field {name}")
            return default
        if isinstance(value, bool) or not isinstance(value, kind):
            expected = "an integer" if kind is int else "a number"
            raise CorruptWeightsError(str(self.path), f"{name} must be {expected}, is {value!r}")
        return value

    def nested(self, name: str) -> _Fields:
        value = self.values.get(name)
        if not isinstance(value, (dict, type(None))):
            raise CorruptWeightsError(str(self.path), f"{name} must be an object, is {value!r}")
        return _Fields(self.path, value or {})


def read_hf_config(config_path: Path) -> ModelConfig:
    """The shape of the model a config.json describes.

    End tokens are those of config.json and of the generation_config.json beside it.

    Raises:
        CorruptWeightsError: not JSON, or a field is missing, of a wrong type, or contradicts another.
        UnsupportedError: another architecture, or a setting that is not served.
    """
    fields = _Fields(config_path, _read_json(config_path))
    architecture = _architecture(fields)
    _check_settings(fields)
    heads = fields.number("num_attention_heads")
    hidden = fields.number("hidden_size")
    is_mistral = architecture == "MistralForCausalLM"
    try:
        return ModelConfig(
            architecture=architecture,
            hidden_size=hidden,
            num_layers=fields.number("num_hidden_layers"),
            num_qo_heads=heads,
            num_kv_heads=fields.number("num_key_value_heads", 8 if is_mistral else heads),
            head_dim=_head_dim(fields, hidden, heads),
            intermediate_size=fields.number("intermediate_size"),
            vocab_size=fields.number("vocab_size"),
            max_position=fields.number("max_position_embeddings"),
            rms_norm_eps=float(fields.number("rms_norm_eps", 1e-6, kind=(int, float))),
            rope=_rope(fields),
            tie_word_embeddings=bool(fields.values.get("tie_word_embeddings", False)),
            sliding_window=_sliding_window(fields) if is_mistral else None,
            bos_token_id=fields.number("bos_token_id", None),
            eos_token_ids=_end_tokens(fields),
            dtype=_dtype(fields),
        )
    except InvalidArgumentError as error:
        if isinstance(error, UnsupportedError):
            raise
        raise CorruptWeightsError(str(config_path), f"is inconsistent: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptWeightsError(str(path), f"is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptWeightsError(str(path), "is not a JSON object")
    return values


def _architecture(fields: _Fields) -> str:
    names = fields.values.get("architectures") or [ARCHITECTURE_OF_TYPE.get(fields.values.get("model_type", ""))]
    name = names[0] if isinstance(names, list) else names
    if name not in SUPPORTED_ARCHITECTURES:
        found = name or fields.values.get("model_type")
        raise UnsupportedError("architecture", found, f"one of {', '.join(SUPPORTED_ARCHITECTURES)}")
    return str(name)


def _check_settings(fields: _Fields) -> None:
    for name, served in SERVED_SETTINGS.items():
        value = fields.values.get(name, served)
        if value is not None and value != served:
            raise UnsupportedError(name, value, f"{served!r}, in config.json")


def _head_dim(fields: _Fields, hidden: int, heads: int) -> int:
    if fields.values.get("head_dim") is None and (heads < 1 or hidden % heads != 0):
        raise CorruptWeightsError(str(fields.path), f"hidden_size={hidden} is no multiple of {heads} heads")
    return int(fields.number("head_dim", hidden // max(heads, 1)))


def _sliding_window(fields: _Fields) -> int | None:
    if "sliding_window" not in fields.values:
        return MISTRAL_SLIDING_WINDOW
    window: int | None = fields.number("sliding_window", None)
    return window


def _rope(fields: _Fields) -> RopeConfig:
    """transformers 5 writes `rope_parameters`, with the base inside; before, `rope_scaling` beside `rope_theta`."""
    scaling = fields.nested("rope_parameters")
    if not scaling.values:
        scaling = fields.nested("rope_scaling")
    number = (int, float)
    theta = float(scaling.number("rope_theta", fields.number("rope_theta", 10000.0, kind=number), kind=number))
    rotated = scaling.number("partial_rotary_factor", 1.0, kind=number)
    if rotated != 1:
        raise UnsupportedError("partial_rotary_factor", rotated, "1.0, the whole head")
    kind = scaling.values.get("rope_type", scaling.values.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, scaling="linear", factor=float(scaling.number("factor", kind=number)))
    if kind != "llama3":
        raise UnsupportedError("rope_type", kind, "one of default, linear, llama3")
    return RopeConfig(
        theta=theta,
        scaling="llama3",
        factor=float(scaling.number("factor", kind=number)),
        low_freq_factor=float(scaling.number("low_freq_factor", kind=number)),
        high_freq_factor=float(scaling.number("high_freq_factor", kind=number)),
        original_max_position=scaling.number("original_max_position_embeddings"),
    )


def _end_tokens(fields: _Fields) -> tuple[int, ...]:
    generation_path = fields.path.with_name("generation_config.json")
    generation = _read_json(generation_path) if generation_path.is_file() else {}
    ends: list[int] = []
    for path, values in ((fields.path, fields.values), (generation_path, generation)):
        tokens = values.get("eos_token_id")
        tokens = [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]
        if not all(isinstance(token, int) for token in tokens):
            raise CorruptWeightsError(str(path), f"eos_token_id must be an integer or a list of them, is {tokens!r}")
        ends += tokens
    return tuple(dict.fromkeys(ends))


def _dtype(fields: _Fields) -> str:
    name = fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise UnsupportedError("dtype", name, f"one of {', '.join(DTYPES)}, in config.json")
    return str(name)
