# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from distributed_fi.mesh import Mesh
from distributed_fi.models.decoder_weights import weight_specs
from distributed_fi.models.loaders.checkpoint import Checkpoint
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.models.weights import WeightSlice, WeightSpec, load_weights
from distributed_fi.plan.sharding import RankShard, Span, shard_model


def shards(checkpoint: Checkpoint, tp: int) -> list[RankShard]:
    return [shard_model(checkpoint.config, Mesh(tp=tp), rank) for rank in range(tp)]


def load(checkpoint: Checkpoint, shard: RankShard, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return load_weights(checkpoint, weight_specs(checkpoint.config, shard), dtype=dtype, device="cpu")


def heads_once(ranks: list[RankShard], parts: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The ranks' KV heads, each replicated one only the first time."""
    seen = -1
    for shard, part in zip(ranks, parts, strict=True):
        if shard.heads.kv.start > seen:
            yield part
        seen = shard.heads.kv.start


def assemble(checkpoint: Checkpoint, tp: int, head_dim: int, num_layers: int) -> dict[str, torch.Tensor]:
    """The whole checkpoint from every rank's parameters, under its Hugging Face names."""
    ranks = shards(checkpoint, tp)
    loaded = [load(checkpoint, shard) for shard in ranks]

    def join(name: str, dim: int) -> torch.Tensor:
        return torch.cat([weights[name] for weights in loaded], dim)

    whole = {"model.embed_tokens.weight": join("embed_tokens", 0), "model.norm.weight": loaded[0]["norm"]}
    if not checkpoint.config.tie_word_embeddings:
        whole["lm_head.weight"] = join("lm_head", 0)
    for i in range(num_layers):
        qkv = [
            weights[f"layers.{i}.qkv"].split([len(s.heads.qo) * head_dim] + 2 * [len(s.heads.kv) * head_dim])
            for weights, s in zip(loaded, ranks, strict=True)
        ]
        gate_up = [weights[f"layers.{i}.gate_up"].chunk(2) for weights in loaded]
        layer = {
            "input_layernorm": loaded[0][f"layers.{i}.input_norm"],
            "self_attn.q_proj": torch.cat([q for q, _, _ in qkv]),
            "self_attn.k_proj": torch.cat(list(heads_once(ranks, [k for _, k, _ in qkv]))),
            "self_attn.v_proj": torch.cat(list(heads_once(ranks, [v for _, _, v in qkv]))),
            "self_attn.o_proj": join(f"layers.{i}.o", 1),
            "post_attention_layernorm": loaded[-1][f"layers.{i}.mlp_norm"],
            "mlp.gate_proj": torch.cat([gate for gate, _ in gate_up]),
            "mlp.up_proj": torch.cat([up for _, up in gate_up]),
            "mlp.down_proj": join(f"layers.{i}.down", 1),
        }
        whole |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    return whole


@pytest.mark.parametrize("tp", [1, 2, 3, 5])
@pytest.mark.parametrize("tied", [True, False])
def test_all_ranks_slices_make_the_whole_safetensors_checkpoint(make_hf, tp: int, tied: bool) -> None:
    folder, model = make_hf(tie_word_embeddings=tied)
    whole = assemble(open_checkpoint(str(folder)), tp, head_dim=8, num_layers=3)
    expected = dict(model.named_parameters())
    assert whole.keys() == expected.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, expected[name].data, rtol=0, atol=0)


@pytest.mark.parametrize("tp", [2, 3, 4])
@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_all_ranks_slices_make_the_whole_gguf_checkpoint(make_gguf, tp: int, kind: str) -> None:
    path, _ = make_gguf(kind)
    checkpoint = open_checkpoint(str(path))
    whole = assemble(checkpoint, 1, head_dim=16, num_layers=2)
    sharded = assemble(checkpoint, tp, head_dim=16, num_layers=2)
    assert whole.keys() == sharded.keys()
    for name, tensor in sharded.items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)


def test_dummy_weights_are_the_same_for_every_tp(make_hf) -> None:
    folder, _ = make_hf()
    checkpoint = open_checkpoint(str(folder), "dummy")
    whole, sharded = (assemble(checkpoint, tp, head_dim=8, num_layers=3) for tp in (1, 5))
    for name, tensor in sharded.items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0)


@pytest.mark.parametrize("tp", [2, 3, 5])
def test_a_rank_reads_the_bytes_of_its_parameters_and_no_more(make_hf, tp: int) -> None:
    folder, _ = make_hf()
    for shard in shards(open_checkpoint(str(folder)), tp):
        checkpoint = open_checkpoint(str(folder))
        weights = load(checkpoint, shard)
        assert checkpoint.bytes_read == sum(w.numel() * 4 for w in weights.values())


def test_a_rank_of_a_gguf_file_reads_its_rows_and_the_blocks_its_columns_touch(make_gguf) -> None:
    path, _ = make_gguf("Q8_0")
    checkpoint = open_checkpoint(str(path))
    load(checkpoint, shards(checkpoint, 2)[0])
    block = 34
    # Half of 4 + 2 + 2 heads of 16 rows and of the 2 x 96 rows of gate and up, each of 2 blocks; of o
    # (4 heads in 2 blocks a row) 1 block of 64 rows; of down (96 columns, 3 blocks a row) 2 blocks.
    layer = (64 + 96) * 2 * block + 64 * 1 * block + 64 * 2 * block + 2 * 64 * 4
    assert checkpoint.bytes_read == 2 * layer + 51 * 2 * block + 64 * 4


def test_progress_ends_at_the_total(make_hf) -> None:
    folder, _ = make_hf()
    checkpoint = open_checkpoint(str(folder))
    specs = weight_specs(checkpoint.config, shards(checkpoint, 2)[1])
    calls: list[tuple[int, int]] = []
    weights = load_weights(
        checkpoint, specs, dtype=torch.bfloat16, device="cpu", on_progress=lambda *call: calls.append(call)
    )
    total = sum(w.numel() * 2 for w in weights.values())
    assert calls[-1] == (total, total)
    assert {all_bytes for _, all_bytes in calls} == {total}
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(calls))
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}


def test_shapes_of_specs_and_slices() -> None:
    rows = WeightSlice("a", (10, 4), 0, Span(2, 5))
    assert rows.sliced_shape == (3, 4)
    assert WeightSlice("b", (10, 4), 1, Span(2, 3)).sliced_shape == (10, 1)
    assert WeightSlice.whole("c", (7,)).sliced_shape == (7,)
    assert WeightSpec("d", (rows, WeightSlice.whole("e", (10, 4)))).shape == (13, 4)
