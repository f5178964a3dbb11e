# SPDX-License-Identifier: Apache-2.0
"""A model's config from the config.json (and generation_config.json) of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from distributed_fi.config import ModelConfig
from distributed_fi.errors import CorruptWeightsError, InvalidArgumentError, UnsupportedError
from distributed_fi.models.hf_families import FAMILIES, SUPPORTED_ARCHITECTURES, Family
from distributed_fi.models.hf_fields import NUMBER, Fields, read_json

ARCHITECTURE_OF_TYPE = {family.model_type: name for name, family in FAMILIES.items()}
# What the model code does for no family: each setting with the one value that is served.
SERVED_SETTINGS = {
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
DTYPES = ("float32", "float16", "bfloat16")


def read_hf_config(config_path: Path) -> ModelConfig:
    """The shape of the model a config.json describes.

    End tokens are those of config.json and of the generation_config.json beside it.

    Raises:
        CorruptWeightsError: not JSON, or a field is missing, of a wrong type, or contradicts another.
        UnsupportedError: another architecture, or a setting that is not served.
    """
    fields = Fields(config_path, read_json(config_path))
    architecture = _architecture(fields)
    family = FAMILIES[architecture]
    _check_settings(fields, family)
    fields = Fields(config_path, {**family.defaults, **fields.values})
    heads = fields.number("num_attention_heads")
    hidden = fields.number("hidden_size")
    try:
        return ModelConfig(
            architecture=architecture,
            hidden_size=hidden,
            num_layers=fields.number("num_hidden_layers"),
            num_qo_heads=heads,
            num_kv_heads=fields.number("num_key_value_heads", heads),
            head_dim=_head_dim(fields, hidden, heads),
            intermediate_size=fields.number("intermediate_size"),
            vocab_size=fields.number("vocab_size"),
            max_position=fields.number("max_position_embeddings"),
            rms_norm_eps=float(fields.number("rms_norm_eps", 1e-6, kind=NUMBER)),
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            bos_token_id=fields.number("bos_token_id", None),
            eos_token_ids=_end_tokens(fields),
            dtype=_dtype(fields),
            **family.read(fields),
        )
    except InvalidArgumentError as error:
        if isinstance(error, UnsupportedError):
            raise
        raise CorruptWeightsError(str(config_path), f"is inconsistent: {error}") from error


def _architecture(fields: Fields) -> str:
    names = fields.values.get("architectures") or [ARCHITECTURE_OF_TYPE.get(fields.values.get("model_type", ""))]
    name = names[0] if isinstance(names, list) else names
    if name not in FAMILIES:
        found = name or fields.values.get("model_type")
        raise UnsupportedError("architecture", found, f"one of {', '.join(SUPPORTED_ARCHITECTURES)}")
    return str(name)


def _check_settings(fields: Fields, family: Family) -> None:
    for name, served in {**SERVED_SETTINGS, **family.settings}.items():
        value = fields.values.get(name, served)
        if value is not None and value != served:
            raise UnsupportedError(name, value, f"{served!r}, in config.json")


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if fields.values.get("head_dim") is None and (heads < 1 or hidden % heads != 0):
        raise CorruptWeightsError(str(fields.path), f"hidden_size={hidden} is no multiple of {heads} heads")
    return int(fields.number("head_dim", hidden // max(heads, 1)))


def _end_tokens(fields: Fields) -> tuple[int, ...]:
    generation_path = fields.path.with_name("generation_config.json")
    generation = read_json(generation_path) if generation_path.is_file() else {}
    ends: list[int] = []
    for path, values in ((fields.path, fields.values), (generation_path, generation)):
        tokens = values.get("eos_token_id")
        tokens = [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]
        if not all(isinstance(token, int) for token in tokens):
            raise CorruptWeightsError(str(path), f"eos_token_id must be an integer or a list of them, is {tokens!r}")
        ends += tokens
    return tuple(dict.fromkeys(ends))


def _dtype(fields: Fields) -> str:
    name = fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise UnsupportedError("dtype", name, f"one of {', '.join(DTYPES)}, in config.json")
    return str(name)
