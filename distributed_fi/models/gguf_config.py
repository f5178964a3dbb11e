# SPDX-License-Identifier: Apache-2.0
"""A model's config from the metadata of a GGUF file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed_fi.config import ModelConfig, RopeConfig
from distributed_fi.errors import CorruptWeightsError, InvalidArgumentError, UnsupportedError
from distributed_fi.kernels.rope.frequencies import rope_frequencies
from distributed_fi.models.loaders.gguf_header import GgufHeader, MetadataValue

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
# Of these the file says neither the scale of queries nor the period of layers that see all tokens.
WIDE_QUERY_LAYERS = {"gemma2": 46, "gemma3": 62}  # The 27B models scale by hidden_size / heads, the others by head_dim.
GLOBAL_PERIOD = {"gemma2": 2, "gemma3": 6}
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
FLOAT_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class _Metadata:
    """Typed access to the metadata; an error names the key."""

    header: GgufHeader
    arch: str

    def name(self, key: str) -> str:
        return f"{self.arch}.{key}"

    def get(self, key: str, default: MetadataValue = None) -> MetadataValue:
        return self.header.metadata.get(self.name(key), default)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CorruptWeightsError(str(self.header.path), f"its metadata lacks the number {self.name(key)}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self.number(key, default))


def gguf_config(header: GgufHeader, rope_factors: npt.NDArray[np.float32] | None = None) -> ModelConfig:
    """The shape of the model a GGUF file holds.

    `dtype` is the widest type of its matrices; bfloat16 where they are quantised.

    Args:
        header: its metadata and tensor table.
        rope_factors: [head_dim / 2], the tensor rope_freqs.weight, by which frequencies are divided.
    Raises:
        UnsupportedError: another architecture, experts, an irregular pattern of windows, a partial rotary
            dimension, another rope scaling.
        CorruptWeightsError: a key is missing, is no number, or they contradict each other.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UnsupportedError("architecture", architecture, f"one of {', '.join(ARCHITECTURES)} in a GGUF file")
    metadata = _Metadata(header, architecture)
    experts = metadata.integer("expert_count", 0)
    if experts:
        raise UnsupportedError(metadata.name("expert_count"), experts, "0, a dense model")
    tokens = _Metadata(header, "tokenizer.ggml")
    ends = [tokens.integer(key) for key in END_KEYS if tokens.get(key) is not None]
    bos = tokens.get("bos_token_id")
    sizes = _sizes(header, metadata)
    rope = _rope(metadata, sizes["head_dim"], rope_factors)
    family = _family(metadata, sizes)
    try:
        return ModelConfig(
            architecture=ARCHITECTURES[architecture],
            **sizes,
            rms_norm_eps=metadata.number("attention.layer_norm_rms_epsilon"),
            rope=rope,
            tie_word_embeddings="output.weight" not in header.tensors,
            bos_token_id=bos if isinstance(bos, int) else None,
            eos_token_ids=tuple(dict.fromkeys(ends)),
            dtype=_dtype(header),
            **family,
        )
    except InvalidArgumentError as error:
        raise CorruptWeightsError(str(header.path), f"its metadata is inconsistent: {error}") from error


def _family(metadata: _Metadata, sizes: dict[str, Any]) -> dict[str, Any]:
    """In what the architecture differs from Llama."""
    window = metadata.integer("attention.sliding_window", 0) or None
    if metadata.arch == "llama":
        return {"sliding_window": window}
    if metadata.arch in ("qwen2", "qwen3"):
        return {"has_qkv_bias": metadata.arch == "qwen2", "has_qk_norm": metadata.arch == "qwen3"}
    period = metadata.get("attention.sliding_window_pattern", GLOBAL_PERIOD[metadata.arch])
    if not isinstance(period, int) or period < 1:
        raise UnsupportedError(metadata.name("attention.sliding_window_pattern"), period, "a number of layers")
    is_wide = sizes["num_layers"] == WIDE_QUERY_LAYERS[metadata.arch]
    query_size = sizes["hidden_size"] / sizes["num_qo_heads"] if is_wide else sizes["head_dim"]
    is_gemma3 = metadata.arch == "gemma3"
    caps = {"attention_soft_cap": "attn_logit_softcapping", "logit_soft_cap": "final_logit_softcapping"}
    return {
        "sliding_window": window,
        "global_layers": tuple(range(period - 1, sizes["num_layers"], period)),
        "has_qk_norm": is_gemma3,
        "has_out_norms": True,
        "norm_adds_one": True,
        "activation": "gelu_tanh",
        "query_scale": metadata.number("attention.scale", query_size**-0.5),
        "embedding_scale": math.sqrt(sizes["hidden_size"]),
        "local_rope": RopeConfig(theta=float(metadata.number("rope.freq_base_swa", 1e4))) if is_gemma3 else None,
        **{name: metadata.number(key) for name, key in caps.items() if not is_gemma3 or metadata.get(key)},
    }


def _sizes(header: GgufHeader, metadata: _Metadata) -> dict[str, Any]:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CorruptWeightsError(str(header.path), "lacks the tensor token_embd.weight")
    hidden, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    head_dim = metadata.integer("attention.key_length", hidden // max(heads, 1))
    rotary_dim = metadata.integer("rope.dimension_count", head_dim)
    value_dim = metadata.integer("attention.value_length", head_dim)
    for key, dim in (("rope.dimension_count", rotary_dim), ("attention.value_length", value_dim)):
        if dim != head_dim:
            raise UnsupportedError(metadata.name(key), dim, f"{head_dim}, the whole head")
    return {
        "hidden_size": hidden,
        "num_layers": metadata.integer("block_count"),
        "num_qo_heads": heads,
        "num_kv_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "vocab_size": embedding.shape[0],
        "max_position": metadata.integer("context_length"),
    }


def _rope(metadata: _Metadata, head_dim: int, factors: npt.NDArray[np.float32] | None) -> RopeConfig:
    theta = float(metadata.number("rope.freq_base", 1e6 if metadata.arch == "gemma3" else 1e4))
    scaling = metadata.get("rope.scaling.type", "none")
    linear = float(metadata.number("rope.scale_linear", 1.0))  # What older files have instead.
    if scaling == "linear" or (scaling == "none" and linear != 1.0):
        return RopeConfig(theta=theta, scaling="linear", factor=metadata.number("rope.scaling.factor", linear))
    if scaling != "none":
        raise UnsupportedError(metadata.name("rope.scaling.type"), scaling, "none or linear")
    if factors is None:
        return RopeConfig(theta=theta)
    # Llama 3.1's scaling is stored as its result only: the lowest frequency's factor is the scaling
    # factor, and the rest must follow from it with the constants that family was released with.
    rope = RopeConfig(theta=theta, scaling="llama3", factor=round(float(factors.max()), 4))
    refusal = UnsupportedError("rope_freqs.weight", factors.tolist(), "the factors of Llama 3.1's scaling")
    if factors.shape != (head_dim // 2,):  # looked at before anything of a header's size is made
        raise refusal
    implied = (rope_frequencies(RopeConfig(theta=theta), head_dim) / rope_frequencies(rope, head_dim)).numpy()
    if not np.allclose(factors, implied, rtol=1e-3):
        raise refusal
    return rope


def _dtype(header: GgufHeader) -> str:
    types = {tensor.type.name for tensor in header.tensors.values() if len(tensor.shape) > 1}
    return next((name for kind, name in FLOAT_TYPES.items() if types <= set(FLOAT_TYPES) and kind in types), "bfloat16")
