# SPDX-License-Identifier: Apache-2.0
"""The tensors of a decoder's checkpoint under their Hugging Face names, and which slices a rank reads."""

from __future__ import annotations

from collections.abc import Iterator

from distributed_fi.config import ModelConfig
from distributed_fi.models.weights import WeightSlice, WeightSpec
from distributed_fi.plan.sharding import RankShard, Span

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
MLP_NAMES = ("gate_proj", "up_proj", "down_proj")


def iter_tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the checkpoint; weights are [out features, in features]."""
    yield EMBEDDING, (config.vocab_size, config.hidden_size)
    yield FINAL_NORM, (config.hidden_size,)
    if not config.tie_word_embeddings:
        yield LM_HEAD, (config.vocab_size, config.hidden_size)
    for i in range(config.num_layers):
        for name, shape in _layer_shapes(config, i):
            yield f"model.layers.{i}.{name}", shape


def weight_specs(config: ModelConfig, shard: RankShard) -> list[WeightSpec]:
    """What one rank reads of the checkpoint, in the order it is read.

    Per layer, under `layers.N.`: `input_norm` [H], `qkv` [(Hq + 2 Hkv) * D, H], `o` [H, Hq * D], `mlp_norm` [H],
    `gate_up` [2 I, H] and `down` [H, I]; where the config has them, `qkv_bias` [(Hq + 2 Hkv) * D], `q_norm` and
    `k_norm` [D], `attention_out_norm` and `mlp_out_norm` [H]. With experts, instead of `gate_up` and `down`,
    `router` [E, H], `expert_gate_up` [E * 2 I, H] and `expert_down` [E * H, I], expert by expert. Besides these
    `embed_tokens` [V, H], `norm` [H] and, unless the embeddings are tied, `lm_head` [V, H]. Hq, Hkv, I and V are
    the rank's own.
    """
    head_shape = (config.vocab_size, config.hidden_size)
    specs = [WeightSpec("embed_tokens", (WeightSlice(EMBEDDING, head_shape, 0, shard.vocab),))]
    for i in range(config.num_layers):
        specs += _layer_specs(config, shard, i)
    specs.append(WeightSpec("norm", (WeightSlice.whole(FINAL_NORM, (config.hidden_size,)),)))
    if not config.tie_word_embeddings:
        specs.append(WeightSpec("lm_head", (WeightSlice(LM_HEAD, head_shape, 0, shard.vocab),)))
    return specs


def norm_names(config: ModelConfig) -> dict[str, str]:
    """A layer's norms: the name a rank keeps each under, and its Hugging Face name.

    `post_attention_layernorm` stands before the MLP in Llama, and behind the attention where a layer has four norms.
    """
    names = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.has_out_norms:
        names["attention_out_norm"] = "post_attention_layernorm"
        names["mlp_norm"] = "pre_feedforward_layernorm"
        names["mlp_out_norm"] = "post_feedforward_layernorm"
    return names


def expert_names(config: ModelConfig) -> tuple[str, tuple[str, str, str]]:
    """Where a layer's router and experts are, and how an expert's gate, up and down are called."""
    if config.architecture == "MixtralForCausalLM":
        return "block_sparse_moe", ("w1", "w3", "w2")
    return "mlp", MLP_NAMES


def _layer_shapes(config: ModelConfig, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head_dim = config.hidden_size, config.head_dim
    q_size, kv_size = config.num_qo_heads * head_dim, config.num_kv_heads * head_dim
    for name in norm_names(config).values():
        yield f"{name}.weight", (hidden,)
    for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
        yield f"self_attn.{name}_proj.weight", (size, hidden)
        if config.has_qkv_bias:
            yield f"self_attn.{name}_proj.bias", (size,)
    if config.has_qk_norm:
        yield "self_attn.q_norm.weight", (head_dim,)
        yield "self_attn.k_norm.weight", (head_dim,)
    yield "self_attn.o_proj.weight", (hidden, q_size)
    if config.experts is None or not config.has_experts(i):
        yield from _mlp_shapes("mlp.", hidden, config.intermediate_size, MLP_NAMES)
        return
    prefix, names = expert_names(config)
    yield f"{prefix}.gate.weight", (config.experts.num_experts, hidden)
    for e in range(config.experts.num_experts):
        yield from _mlp_shapes(f"{prefix}.experts.{e}.", hidden, config.experts.intermediate_size, names)


def _mlp_shapes(
    prefix: str, hidden: int, intermediate: int, names: tuple[str, str, str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    gate, up, down = names
    yield f"{prefix}{gate}.weight", (intermediate, hidden)
    yield f"{prefix}{up}.weight", (intermediate, hidden)
    yield f"{prefix}{down}.weight", (hidden, intermediate)


def _layer_specs(config: ModelConfig, shard: RankShard, i: int) -> Iterator[WeightSpec]:
    shapes = dict(_layer_shapes(config, i))

    def part(name: str, span: Span | None = None, dim: int = 0) -> WeightSlice:
        return WeightSlice(f"model.layers.{i}.{name}", shapes[name], dim, span or Span(0, shapes[name][dim]))

    def spec(name: str, *slices: WeightSlice) -> WeightSpec:
        return WeightSpec(f"layers.{i}.{name}", slices)

    head_dim = config.head_dim
    qo = Span(shard.heads.qo.start * head_dim, shard.heads.qo.stop * head_dim)
    kv = Span(shard.heads.kv.start * head_dim, shard.heads.kv.stop * head_dim)
    for name, stored in norm_names(config).items():
        yield spec(name, part(f"{stored}.weight"))
    for name, kind in (("qkv", "weight"), ("qkv_bias", "bias"))[: 1 + config.has_qkv_bias]:
        yield spec(name, *(part(f"self_attn.{x}_proj.{kind}", s) for x, s in (("q", qo), ("k", kv), ("v", kv))))
    if config.has_qk_norm:
        yield spec("q_norm", part("self_attn.q_norm.weight"))
        yield spec("k_norm", part("self_attn.k_norm.weight"))
    yield spec("o", part("self_attn.o_proj.weight", qo, 1))
    if config.experts is None or not config.has_experts(i):
        gate, up, down = (f"mlp.{name}.weight" for name in MLP_NAMES)
        yield spec("gate_up", part(gate, shard.intermediate), part(up, shard.intermediate))
        yield spec("down", part(down, shard.intermediate, 1))
        return
    prefix, names = expert_names(config)
    own = shard.expert_intermediate
    experts = [[f"{prefix}.experts.{e}.{name}.weight" for name in names] for e in range(config.experts.num_experts)]
    yield spec("router", part(f"{prefix}.gate.weight"))
    yield spec("expert_gate_up", *(part(name, own) for gate, up, _ in experts for name in (gate, up)))
    yield spec("expert_down", *(part(down, own, 1) for _, _, down in experts))
