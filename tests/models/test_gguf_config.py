# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from distributed_fi.config import RopeConfig
from distributed_fi.errors import CorruptWeightsError, UnsupportedError
from distributed_fi.models.loaders.open import open_checkpoint

HEAD_DIM = 16


def test_every_field_comes_from_the_metadata_or_the_tensors(make_gguf) -> None:
    path, _ = make_gguf("Q8_0")
    config = open_checkpoint(str(path)).config
    assert (config.hidden_size, config.num_layers, config.intermediate_size) == (64, 2, 96)
    assert (config.num_qo_heads, config.num_kv_heads, config.head_dim) == (4, 2, HEAD_DIM)
    assert (config.vocab_size, config.max_position) == (101, 64)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert config.rope == RopeConfig(theta=500.0)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2, 7)
    assert config.sliding_window is None


def test_a_file_with_an_output_tensor_is_untied(make_gguf) -> None:
    path, _ = make_gguf(extra={"output.weight": np.ones((101, 64), dtype=np.float32)})
    assert not open_checkpoint(str(path)).config.tie_word_embeddings


@pytest.mark.parametrize(
    "kind, dtype", [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q4_0", "bfloat16")]
)
def test_dtype_is_that_of_the_matrices(make_gguf, kind: str, dtype: str) -> None:
    path, _ = make_gguf(kind)
    assert open_checkpoint(str(path)).config.dtype == dtype


def test_a_sliding_window_and_linear_scaling_are_taken(make_gguf) -> None:
    metadata = {"attention.sliding_window": 8, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path, _ = make_gguf(metadata=metadata)
    config = open_checkpoint(str(path)).config
    assert config.sliding_window == 8
    assert config.rope == RopeConfig(theta=500.0, scaling="linear", factor=4.0)


def llama3_factors(theta: float, factor: float, original: int) -> np.ndarray:
    """What a converter stores: by what each frequency of Llama 3.1 is divided, case by case."""
    factors = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * theta ** (i / HEAD_DIM)
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original:
            factors.append(factor)
        else:
            smooth = (original / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def test_the_frequency_factors_of_llama_3_1_are_recognised(make_gguf) -> None:
    factors = llama3_factors(500000.0, 8.0, 8192)
    assert 1 < factors[4] < 8  # one frequency, at least, is interpolated
    path, _ = make_gguf(metadata={"rope.freq_base": 500000.0}, extra={"rope_freqs.weight": factors})
    rope = open_checkpoint(str(path)).config.rope
    assert rope == RopeConfig(theta=500000.0, scaling="llama3", factor=8.0)


@pytest.mark.parametrize("factors", [llama3_factors(500000.0, 8.0, 4096), np.ones(3, dtype=np.float32)])
def test_other_frequency_factors_are_refused(make_gguf, factors: np.ndarray) -> None:
    path, _ = make_gguf(metadata={"rope.freq_base": 500000.0}, extra={"rope_freqs.weight": factors})
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight: expected the factors of Llama 3\.1's scaling"):
        open_checkpoint(str(path))


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"expert_count": 8}, r"llama\.expert_count: expected 0, a dense model, got 8"),
        ({"rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type: expected none or linear, got yarn"),
        ({"rope.dimension_count": 8}, r"llama\.rope\.dimension_count: expected 16, the whole head, got 8"),
        ({"attention.value_length": 8}, r"llama\.attention\.value_length: expected 16, the whole head, got 8"),
    ],
)
def test_a_feature_that_is_not_served_is_named(make_gguf, metadata: dict, message: str) -> None:
    path, _ = make_gguf(metadata=metadata)
    with pytest.raises(UnsupportedError, match=message):
        open_checkpoint(str(path))


def test_another_architecture_is_refused_with_those_served(make_gguf) -> None:
    path, _ = make_gguf(arch="gpt2")
    expected = "architecture: expected one of llama, qwen2, qwen3, gemma2, gemma3 in a GGUF file, got gpt2"
    with pytest.raises(UnsupportedError, match=expected):
        open_checkpoint(str(path))


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.layer_norm_rms_epsilon"])
def test_a_missing_key_is_named(make_gguf, key: str) -> None:
    path, _ = make_gguf(metadata={key: None})
    with pytest.raises(CorruptWeightsError, match=f"its metadata lacks the number llama.{key}$"):
        open_checkpoint(str(path))


def test_a_key_of_a_wrong_type_is_named(make_gguf) -> None:
    path, _ = make_gguf(metadata={"block_count": "two"})
    with pytest.raises(CorruptWeightsError, match=r"its metadata lacks the number llama\.block_count$"):
        open_checkpoint(str(path))


def test_heads_that_do_not_divide_are_refused(make_gguf) -> None:
    path, _ = make_gguf(metadata={"attention.head_count_kv": 3})
    with pytest.raises(CorruptWeightsError, match="inconsistent: num_qo_heads: expected a multiple of num_kv_heads=3"):
        open_checkpoint(str(path))


def test_a_file_without_an_embedding_is_corrupt(make_gguf) -> None:
    path, _ = make_gguf(drop=("token_embd.weight",))
    with pytest.raises(CorruptWeightsError, match=r"lacks the tensor token_embd\.weight"):
        open_checkpoint(str(path))
