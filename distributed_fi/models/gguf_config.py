# SPDX-License-Identifier: Apache-2.0
"""A model's config from the metadata of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed_fi.config import ModelConfig, RopeConfig
from distributed_fi.errors import CorruptWeightsError, InvalidArgumentError, UnsupportedError
from distributed_fi.kernels.rope.frequencies import rope_frequencies
from distributed_fi.models.loaders.gguf_header import GgufHeader

SUPPORTED_ARCHITECTURES = ("llama",)
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
FLOAT_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class _Metadata:
    """Typed access to the metadata; an error names the key."""

    header: GgufHeader

    def number(self, key: str, default: float | None = None) -> float:
        value = self.header.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CorruptWeightsError(str(self.header.path), f"its metadata lacks the number {key}")
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
        UnsupportedError: another architecture, experts, a partial rotary dimension, another rope scaling.
        CorruptWeightsError: a key is missing, is no number, or they contradict each other.
    """
    architecture = header.metadata.get("general.architecture")
    if architecture not in SUPPORTED_ARCHITECTURES:
        served = ", ".join(SUPPORTED_ARCHITECTURES)
        raise UnsupportedError("architecture", architecture, f"one of {served} in a GGUF file")
    metadata = _Metadata(header)
    experts = metadata.integer("llama.expert_count", 0)
    if experts:
        raise UnsupportedError("llama.expert_count", experts, "0, a dense model")
    ends = [metadata.integer(key) for key in END_KEYS if key in header.metadata]
    bos = header.metadata.get("tokenizer.ggml.bos_token_id")
    sizes = _sizes(header, metadata)
    rope = _rope(header, metadata, sizes["head_dim"], rope_factors)
    try:
        return ModelConfig(
            architecture="LlamaForCausalLM",
            **sizes,
            rms_norm_eps=metadata.number("llama.attention.layer_norm_rms_epsilon"),
            rope=rope,
            tie_word_embeddings="output.weight" not in header.tensors,
            sliding_window=metadata.integer("llama.attention.sliding_window", 0) or None,
            bos_token_id=bos if isinstance(bos, int) else None,
            eos_token_ids=tuple(dict.fromkeys(ends)),
            dtype=_dtype(header),
        )
    except InvalidArgumentError as error:
        raise CorruptWeightsError(str(header.path), f"its metadata is inconsistent: {error}") from error


def _sizes(header: GgufHeader, metadata: _Metadata) -> dict[str, Any]:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CorruptWeightsError(str(header.path), "lacks the tensor token_embd.weight")
    hidden, heads = metadata.integer("llama.embedding_length"), metadata.integer("llama.attention.head_count")
    head_dim = metadata.integer("llama.attention.key_length", hidden // max(heads, 1))
    rotary_dim = metadata.integer("llama.rope.dimension_count", head_dim)
    value_dim = metadata.integer("llama.attention.value_length", head_dim)
    for key, dim in (("llama.rope.dimension_count", rotary_dim), ("llama.attention.value_length", value_dim)):
        if dim != head_dim:
            raise UnsupportedError(key, dim, f"{head_dim}, the whole head")
    return {
        "hidden_size": hidden,
        "num_layers": metadata.integer("llama.block_count"),
        "num_qo_heads": heads,
        "num_kv_heads": metadata.integer("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": metadata.integer("llama.feed_forward_length"),
        "vocab_size": embedding.shape[0],
        "max_position": metadata.integer("llama.context_length"),
    }


def _rope(
    header: GgufHeader, metadata: _Metadata, head_dim: int, factors: npt.NDArray[np.float32] | None
) -> RopeConfig:
    theta = float(metadata.number("llama.rope.freq_base", 10000.0))
    scaling = header.metadata.get("llama.rope.scaling.type", "none")
    linear = float(metadata.number("llama.rope.scale_linear", 1.0))  # What older files have instead.
    if scaling == "linear" or (scaling == "none" and linear != 1.0):
        return RopeConfig(theta=theta, scaling="linear", factor=metadata.number("llama.rope.scaling.factor", linear))
    if scaling != "none":
        raise UnsupportedError("llama.rope.scaling.type", scaling, "none or linear")
    if factors is None:
        return RopeConfig(theta=theta)
    # Llama 3.1's scaling is stored as its result only: the lowest frequency's factor is the scaling
    # factor, and the rest must follow from it with the constants that family was released with.
    rope = RopeConfig(theta=theta, scaling="llama3", factor=round(float(factors.max()), 4))
    implied = (rope_frequencies(RopeConfig(theta=theta), head_dim) / rope_frequencies(rope, head_dim)).numpy()
    if factors.shape != implied.shape or not np.allclose(factors, implied, rtol=1e-3):
        raise UnsupportedError("rope_freqs.weight", factors.tolist(), "the factors of Llama 3.1's scaling")
    return rope


def _dtype(header: GgufHeader) -> str:
    types = {tensor.type.name for tensor in header.tensors.values() if len(tensor.shape) > 1}
    return next((name for kind, name in FLOAT_TYPES.items() if types <= set(FLOAT_TYPES) and kind in types), "bfloat16")
