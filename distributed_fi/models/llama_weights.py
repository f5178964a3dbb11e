# SPDX-License-Identifier: Apache-2.0
"""The tensors of a Llama checkpoint under their Hugging Face names, and which slices a rank reads."""

from __future__ import annotations

from collections.abc import Iterator

from distributed_fi.config import ModelConfig
from distributed_fi.models.weights import WeightSlice, WeightSpec
from distributed_fi.plan.sharding import RankShard, Span

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


def iter_tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the checkpoint; weights are [out features, in features]."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_qo_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield EMBEDDING, (config.vocab_size, hidden)
    yield FINAL_NORM, (hidden,)
    if not config.tie_word_embeddings:
        yield LM_HEAD, (config.vocab_size, hidden)
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q_size, hidden),
        "self_attn.k_proj": (kv_size, hidden),
        "self_attn.v_proj": (kv_size, hidden),
        "self_attn.o_proj": (hidden, q_size),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    for i in range(config.num_layers):
        for name, shape in layer.items():
            yield f"model.layers.{i}.{name}.weight", shape


def llama_weight_specs(config: ModelConfig, shard: RankShard) -> list[WeightSpec]:
    """What one rank reads of the checkpoint, in the order it is read.

    Per layer `input_norm` [H], `qkv` [(Hq + 2 Hkv) * D, H], `o` [H, Hq * D], `post_norm` [H],
    `gate_up` [2 I, H] and `down` [H, I], under `layers.N.`; besides `embed_tokens` [V, H], `norm` [H]
    and, unless the embeddings are tied, `lm_head` [V, H]. Hq, Hkv, I and V are the rank's own.
    """
    shapes = dict(iter_tensor_shapes(config))

    def rows(name: str, span: Span) -> WeightSlice:
        return WeightSlice(name, shapes[name], 0, span)

    def whole(name: str) -> WeightSlice:
        return WeightSlice.whole(name, shapes[name])

    specs = [WeightSpec("embed_tokens", (rows(EMBEDDING, shard.vocab),))]
    for i in range(config.num_layers):
        specs += _layer_specs(i, shapes, shard, config.head_dim)
    specs.append(WeightSpec("norm", (whole(FINAL_NORM),)))
    if not config.tie_word_embeddings:
        specs.append(WeightSpec("lm_head", (rows(LM_HEAD, shard.vocab),)))
    return specs


def _layer_specs(i: int, shapes: dict[str, tuple[int, ...]], shard: RankShard, head_dim: int) -> list[WeightSpec]:
    def part(name: str, span: Span | None = None, dim: int = 0) -> WeightSlice:
        full = f"model.layers.{i}.{name}.weight"
        return WeightSlice(full, shapes[full], dim, span or Span(0, shapes[full][dim]))

    qo = Span(shard.heads.qo.start * head_dim, shard.heads.qo.stop * head_dim)
    kv = Span(shard.heads.kv.start * head_dim, shard.heads.kv.stop * head_dim)
    fused_qkv = (part("self_attn.q_proj", qo), part("self_attn.k_proj", kv), part("self_attn.v_proj", kv))
    parameters = {
        "input_norm": (part("input_layernorm"),),
        "qkv": fused_qkv,
        "o": (part("self_attn.o_proj", qo, 1),),
        "post_norm": (part("post_attention_layernorm"),),
        "gate_up": (part("mlp.gate_proj", shard.intermediate), part("mlp.up_proj", shard.intermediate)),
        "down": (part("mlp.down_proj", shard.intermediate, 1),),
    }
    return [WeightSpec(f"layers.{i}.{name}", slices) for name, slices in parameters.items()]
