# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math
import pickle
import re

import pytest

from distributed_fi.config import EngineConfig, ModelConfig, SamplingParams
from distributed_fi.errors import InvalidArgumentError

SMALL_MODEL = {
    "architecture": "LlamaForCausalLM",
    "hidden_size": 36,
    "num_layers": 2,
    "num_qo_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 4,
    "intermediate_size": 50,
    "vocab_size": 101,
    "max_position": 64,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0},
        {"temperature": 2.5, "top_k": 2**31 - 1, "top_p": 1e-9, "min_p": 1},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"max_tokens": 1, "stop_token_ids": (2, 0), "ignore_eos": True},
    ],
)
def test_sampling_params_take_the_whole_range(fields: dict[str, object]):
    params = SamplingParams(**fields)
    assert {name: getattr(params, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -0.1, "a finite number >= 0"),
        ("temperature", math.inf, "a finite number >= 0"),
        ("temperature", math.nan, "a finite number >= 0"),
        ("temperature", "hot", "a finite number >= 0"),
        ("top_k", -1, "an integer in [0, 2^31) (0 keeps all)"),
        ("top_k", 2**31, "an integer in [0, 2^31) (0 keeps all)"),
        ("top_k", 1.5, "an integer in [0, 2^31) (0 keeps all)"),
        ("top_p", 0, "a number in (0, 1]"),
        ("top_p", 1.5, "a number in (0, 1]"),
        ("top_p", math.nan, "a number in (0, 1]"),
        ("min_p", -0.5, "a number in [0, 1]"),
        ("min_p", 1.01, "a number in [0, 1]"),
        ("max_tokens", 0, "an integer >= 1"),
        ("max_tokens", True, "an integer >= 1"),
        ("seed", -1, "an integer in [0, 2^63)"),
        ("seed", 2**63, "an integer in [0, 2^63)"),
    ],
)
def test_sampling_params_name_what_is_out_of_range(name: str, value: object, expected: str):
    with pytest.raises(InvalidArgumentError, match=re.escape(f"{name}: expected {expected}, got {value}")):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("name", [name for name in SMALL_MODEL if name != "architecture"])
@pytest.mark.parametrize("size", [0, -3, 1.0])
def test_model_config_names_a_size_that_is_no_positive_integer(name: str, size: object):
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected an integer >= 1, got {size}"):
        ModelConfig(**(SMALL_MODEL | {name: size}))


def test_model_config_names_query_heads_that_are_no_multiple_of_the_kv_heads():
    with pytest.raises(InvalidArgumentError, match="num_qo_heads: expected a multiple of num_kv_heads=3, got 8"):
        ModelConfig(**(SMALL_MODEL | {"num_qo_heads": 8}))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dtype", "int4", "one of auto, float32, bfloat16, float16"),
        ("load_format", "pickle", "one of auto, safetensors, gguf, dummy"),
        ("device", "tpu", "one of auto, cpu, cuda"),
        ("page_size", 0, "an integer >= 1"),
        ("max_num_seqs", -1, "an integer >= 1"),
        ("max_batch_tokens", 1.5, "an integer >= 1"),
        ("num_pages", 0, "an integer >= 1"),
        ("max_model_len", 0, "an integer >= 1"),
        ("run_ahead", 3, "1 or 2"),
        ("step_timeout_s", 0, "a number of seconds > 0"),
        ("collective_timeout_s", math.inf, "a number of seconds > 0"),
        ("start_timeout_s", -1, "a number of seconds > 0"),
    ],
)
def test_engine_config_names_what_is_out_of_range(name: str, value: object, expected: str):
    with pytest.raises(InvalidArgumentError, match=re.escape(f"{name}: expected {expected}, got {value}")):
        EngineConfig(model="somewhere", **{name: value})


def test_limits_that_are_left_open_are_none():
    config = EngineConfig(model="somewhere")
    assert (config.num_pages, config.max_model_len, config.ray_address) == (None, None, None)


@pytest.mark.parametrize("config", [SamplingParams(seed=4), ModelConfig(**SMALL_MODEL), EngineConfig(model="m")])
def test_configs_are_frozen_and_can_be_sent(config: object):
    assert pickle.loads(pickle.dumps(config)) == config
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, None)
