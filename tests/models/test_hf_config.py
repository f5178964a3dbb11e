# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig, MistralConfig

from distributed_fi.config import ExpertsConfig, ModelConfig, RopeConfig
from distributed_fi.errors import CorruptWeightsError, UnsupportedError
from distributed_fi.models.hf_config import read_hf_config

# Llama 2 7B's config.json as released, before transformers 5.
LLAMA2 = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
LLAMA31_SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
SERVED = (
    "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, "
    "MixtralForCausalLM, Qwen3MoeForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM"
)
# google/gemma-3-1b-it's config.json as released, before transformers 5, without what has no meaning here.
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}


def read(tmp_path: Path, values: dict[str, Any]) -> ModelConfig:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return read_hf_config(path)


def test_llama_2(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA2) == ModelConfig(
        architecture="LlamaForCausalLM",
        hidden_size=4096,
        num_layers=32,
        num_qo_heads=32,
        num_kv_heads=32,
        head_dim=128,
        intermediate_size=11008,
        vocab_size=32000,
        max_position=4096,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=10000.0),
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="float16",
    )


def test_llama_3_1_scales_its_rotary_frequencies(tmp_path: Path) -> None:
    expected = RopeConfig(
        theta=500000.0, scaling="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position=8192,
    )  # fmt: skip
    before = {**LLAMA2, "rope_theta": 500000.0, "rope_scaling": LLAMA31_SCALING}
    assert read(tmp_path, before).rope == expected
    since = {**LLAMA2, "rope_parameters": {**LLAMA31_SCALING, "rope_theta": 500000.0}}
    del since["rope_scaling"]
    assert read(tmp_path, since).rope == expected


def test_linear_scaling_under_its_old_key(tmp_path: Path) -> None:
    config = read(tmp_path, {**LLAMA2, "rope_scaling": {"type": "linear", "factor": 4.0}})
    assert config.rope == RopeConfig(theta=10000.0, scaling="linear", factor=4.0)


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    LlamaConfig(
        architectures=["LlamaForCausalLM"], num_attention_heads=8, num_key_value_heads=2, hidden_size=64, head_dim=16,
        rope_parameters={**LLAMA31_SCALING, "rope_theta": 300.0}, tie_word_embeddings=True, dtype="bfloat16",
    ).save_pretrained(tmp_path)  # fmt: skip
    config = read_hf_config(tmp_path / "config.json")
    assert (config.num_kv_heads, config.head_dim, config.tie_word_embeddings, config.dtype) == (2, 16, True, "bfloat16")
    assert (config.rope.scaling, config.rope.theta, config.rope.factor) == ("llama3", 300.0, 8.0)


@pytest.mark.parametrize("window, expected", [(4096, 4096), (None, None)])
def test_mistral_has_a_sliding_window_or_none(tmp_path: Path, window: int | None, expected: int | None) -> None:
    MistralConfig(architectures=["MistralForCausalLM"], sliding_window=window).save_pretrained(tmp_path)
    config = read_hf_config(tmp_path / "config.json")
    assert config.sliding_window == expected
    assert (config.architecture, config.num_kv_heads) == ("MistralForCausalLM", 8)


def test_a_mistral_that_says_nothing_has_its_familys_window(tmp_path: Path) -> None:
    config = read(tmp_path, {**LLAMA2, "architectures": ["MistralForCausalLM"]})
    assert config.sliding_window == MistralConfig().sliding_window == 4096


def test_a_llama_has_no_sliding_window(tmp_path: Path) -> None:
    assert read(tmp_path, {**LLAMA2, "sliding_window": 4096}).sliding_window is None


def test_gemma_3_as_released(tmp_path: Path) -> None:
    assert read(tmp_path, GEMMA3) == ModelConfig(
        architecture="Gemma3ForCausalLM",
        hidden_size=1152,
        num_layers=26,
        num_qo_heads=4,
        num_kv_heads=1,
        head_dim=256,
        intermediate_size=6912,
        vocab_size=262144,
        max_position=32768,
        rms_norm_eps=1e-6,
        rope=RopeConfig(theta=1e6),
        local_rope=RopeConfig(theta=1e4),
        tie_word_embeddings=True,
        sliding_window=512,
        global_layers=(5, 11, 17, 23),
        has_qk_norm=True,
        has_out_norms=True,
        norm_adds_one=True,
        activation="gelu_tanh",
        query_scale=1 / 16,
        embedding_scale=1152**0.5,
        bos_token_id=2,
        eos_token_ids=(1, 106),
        dtype="bfloat16",
    )


def test_a_qwen_2_ignores_its_window_unless_told_to_use_it(tmp_path: Path) -> None:
    qwen2 = {**LLAMA2, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "max_window_layers": 30}
    config = read(tmp_path, {**qwen2, "use_sliding_window": False})
    assert (config.sliding_window, config.global_layers, config.has_qkv_bias) == (None, (), True)
    config = read(tmp_path, {**qwen2, "use_sliding_window": True})
    assert (config.sliding_window, config.global_layers) == (8, tuple(range(30)))


@pytest.mark.parametrize(
    "kinds, error, problem",
    [
        (["full_attention"], CorruptWeightsError, "layer_types must be a list of 26 names"),
        (["chunked_attention"] * 26, UnsupportedError, "layer_types: expected full_attention or sliding_attention"),
    ],
)
def test_layer_types_that_cannot_be_are_named(
    tmp_path: Path, kinds: list[str], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        read(tmp_path, {**GEMMA3, "layer_types": kinds})


def test_a_qwen_3_moe_names_its_dense_layers_in_two_ways(tmp_path: Path) -> None:
    moe = {**LLAMA2, "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 6, "head_dim": 128}
    moe |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True}
    config = read(tmp_path, {**moe, "mlp_only_layers": [3], "decoder_sparse_step": 2})
    assert config.experts == ExpertsConfig(
        num_experts=128, top_k=8, intermediate_size=768, renormalize=True, dense_layers=(0, 2, 3, 4)
    )
    assert [config.has_experts(i) for i in range(6)] == [False, True, False, False, False, True]


def test_end_tokens_of_both_files_are_joined(tmp_path: Path) -> None:
    GenerationConfig(eos_token_id=[2, 128009]).save_pretrained(tmp_path)
    assert read(tmp_path, LLAMA2).eos_token_ids == (2, 128009)


def test_missing_optional_fields_have_the_familys_defaults(tmp_path: Path) -> None:
    optional = ("num_key_value_heads", "rms_norm_eps", "torch_dtype", "bos_token_id", "eos_token_id", "architectures")
    config = read(tmp_path, {k: v for k, v in LLAMA2.items() if k not in optional})
    assert (config.num_kv_heads, config.rms_norm_eps, config.dtype) == (32, 1e-6, "float32")
    assert (config.architecture, config.bos_token_id, config.eos_token_ids) == ("LlamaForCausalLM", None, ())


@pytest.mark.parametrize(
    "text, problem", [("{", "is not JSON"), ("\x00", "is not JSON"), ("[]", "is not a JSON object")]
)
def test_a_file_that_is_not_a_json_object_is_corrupt(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CorruptWeightsError, match=problem):
        read_hf_config(path)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(CorruptWeightsError, match=f"config.json: lacks the field {field}$"):
        read(tmp_path, {k: v for k, v in LLAMA2.items() if k != field})


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"num_hidden_layers": "32"}, "num_hidden_layers must be an integer, is '32'"),
        ({"vocab_size": 32000.5}, "vocab_size must be an integer, is 32000.5"),
        ({"vocab_size": True}, "vocab_size must be an integer, is True"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number, is 'small'"),
        ({"rope_scaling": "llama3"}, "rope_scaling must be an object, is 'llama3'"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer or a list of them"),
        ({"num_hidden_layers": 0}, "is inconsistent: num_layers: expected an integer >= 1, got 0"),
        ({"num_attention_heads": 33}, "hidden_size=4096 is no multiple of 33 heads"),
        ({"num_key_value_heads": 5}, "num_qo_heads: expected a multiple of num_kv_heads=5, got 32"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks the field low_freq_factor"),
    ],
)
def test_a_field_that_cannot_be_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorruptWeightsError) as caught:
        read(tmp_path, {**LLAMA2, **change})
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attention_bias": True}, "attention_bias: expected False, in config.json, got True"),
        ({"mlp_bias": True}, "mlp_bias: expected False, in config.json, got True"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', in config.json, got gelu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0, in config.json, got 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected None, in config.json, got {'bits': 4}"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type: expected one of default, linear, llama3, got yarn"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor: expected 1.0, the whole head, got 0.5",
        ),
        ({"torch_dtype": "int8"}, "dtype: expected one of float32, float16, bfloat16, in config.json, got int8"),
        ({"architectures": ["GPT2LMHeadModel"]}, f"architecture: expected one of {SERVED}, got GPT2LMHeadModel"),
        ({"architectures": None, "model_type": "gpt2"}, f"architecture: expected one of {SERVED}, got gpt2"),
    ],
)
def test_a_setting_that_is_not_served_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read(tmp_path, {**LLAMA2, **change})
    assert str(caught.value) == message
