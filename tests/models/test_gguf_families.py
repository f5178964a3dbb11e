# SPDX-License-Identifier: Apache-2.0
"""GGUF files of each architecture, written from transformers' weights as llama.cpp's converter does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from distributed_fi.errors import CorruptWeightsError, UnsupportedError
from distributed_fi.models.decoder_weights import iter_tensor_shapes
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.models.weights import WeightSlice

PLAIN = {"post_attention_layernorm": "ffn_norm"}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
# What transformers is told, and what a converter then writes besides the sizes.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2": ({}, {}),
    "qwen3": ({}, {}),
    "gemma2": (
        {"sliding_window": 5, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 40.0},
        {"attention.sliding_window": 5, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": ({"sliding_window": 5, "query_pre_attn_scalar": 8}, {"attention.sliding_window": 5}),
}


def write(path: Path, arch: str, model: PreTrainedModel, extra: dict[str, Any], drop: str = "") -> Path:
    writer = gguf.GGUFWriter(path, arch)
    config = model.config
    metadata = {
        "block_count": config.num_hidden_layers, "context_length": 64, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": 1e6 if arch == "gemma3" else 1e4, **extra,
    }  # fmt: skip
    for key, value in metadata.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{arch}.{key}", value)
    names = NAMES | (GEMMA if arch.startswith("gemma") else PLAIN)
    for full_name, tensor in model.named_parameters():
        name = full_name
        for theirs, stored in names.items():
            name = name.replace(theirs + ".", stored + ".")
        adds_one = arch.startswith("gemma") and name.endswith("norm.weight")
        if name != drop:
            writer.add_tensor(name, (tensor.detach() + adds_one).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_gguf_file_is_the_safetensors_folder_it_was_made_of(make_hf, tmp_path: Path, arch: str) -> None:
    settings, extra = FAMILIES[arch]
    folder, model = make_hf(arch=arch, num_hidden_layers=7, **settings)
    theirs = open_checkpoint(str(folder))
    ours = open_checkpoint(str(write(tmp_path / "model.gguf", arch, model, extra)))
    assert ours.config.rms_norm_eps == pytest.approx(theirs.config.rms_norm_eps)  # float32 in the file
    unstored = {name: getattr(theirs.config, name) for name in ("rms_norm_eps", "bos_token_id", "eos_token_ids")}
    assert replace(ours.config, **unstored) == theirs.config
    for name, shape in iter_tensor_shapes(theirs.config):
        parts = torch.empty(2, *shape)
        for checkpoint, part in zip((ours, theirs), parts, strict=True):
            checkpoint.read(WeightSlice.whole(name, shape), part)
        torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=3e-7)


def test_the_widest_gemma_2_scales_queries_by_its_hidden_size(make_hf, tmp_path: Path) -> None:
    _, model = make_hf(arch="gemma2", num_hidden_layers=46, head_dim=4)
    path = write(tmp_path / "model.gguf", "gemma2", model, FAMILIES["gemma2"][1])
    assert open_checkpoint(str(path)).config.query_scale == (48 / 6) ** -0.5


def test_an_irregular_pattern_of_windows_is_refused(make_hf, tmp_path: Path) -> None:
    _, model = make_hf(arch="gemma3")
    path = write(tmp_path / "model.gguf", "gemma3", model, {"attention.sliding_window_pattern": 0})
    with pytest.raises(
        UnsupportedError, match=r"gemma3\.attention\.sliding_window_pattern: expected a number of layers"
    ):
        open_checkpoint(str(path))


@pytest.mark.parametrize("arch, name", [("qwen2", "blk.1.attn_k.bias"), ("gemma2", "blk.2.post_ffw_norm.weight")])
def test_a_missing_tensor_is_named_as_in_the_file(make_hf, tmp_path: Path, arch: str, name: str) -> None:
    _, model = make_hf(arch=arch)
    path = write(tmp_path / "model.gguf", arch, model, FAMILIES[arch][1], drop=name)
    with pytest.raises(CorruptWeightsError, match=f"lacks the tensor {name}$"):
        open_checkpoint(str(path))
