# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distributed_fi.config import ModelConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.mesh import Mesh
from distributed_fi.plan.sharding import HeadShard, Span, shard_heads, shard_model, split_contiguous

PROPERTY = settings(deadline=None, derandomize=True, max_examples=300)


def indices(*spans: Span) -> list[int]:
    """The indices of all spans, one span after the other."""
    return [index for span in spans for index in range(span.start, span.stop)]


def model(**sizes: int) -> ModelConfig:
    small = {"hidden_size": 36, "num_layers": 2, "num_qo_heads": 9, "num_kv_heads": 3, "head_dim": 4}
    small |= {"intermediate_size": 50, "vocab_size": 101, "max_position": 64}
    return ModelConfig(architecture="LlamaForCausalLM", **(small | sizes))


@PROPERTY
@given(st.integers(0, 200), st.integers(1, 20))
def test_spans_cover_the_range_once_in_order_and_evenly(size: int, parts: int):
    spans = split_contiguous(size, parts)
    assert indices(*spans) == list(range(size))
    lengths = [len(span) for span in spans]
    assert len(spans) == parts
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


@PROPERTY
@given(num_kv_heads=st.integers(1, 12), group=st.integers(1, 8), data=st.data())
def test_every_query_head_has_one_rank_that_holds_its_kv_head(num_kv_heads: int, group: int, data):
    num_qo_heads = num_kv_heads * group
    tp = data.draw(st.integers(1, num_qo_heads))
    shards = shard_heads(num_qo_heads, num_kv_heads, tp)
    assert len(shards) == tp
    assert indices(*(shard.qo for shard in shards)) == list(range(num_qo_heads))
    for shard in shards:
        assert {qo_head // group for qo_head in indices(shard.qo)} == set(indices(shard.kv))
        assert len(shard.qo) % len(shard.kv) == 0
    # Within a rank, local query head i reads local KV head i // (len(qo) // len(kv)), as attention kernels index them.
    for shard in shards:
        local_group = len(shard.qo) // len(shard.kv)
        assert all(shard.kv.start + i // local_group == qo_head // group for i, qo_head in enumerate(indices(shard.qo)))


@PROPERTY
@given(num_kv_heads=st.integers(1, 12), group=st.integers(1, 8), data=st.data())
def test_kv_heads_are_replicated_only_beyond_one_rank_each(num_kv_heads: int, group: int, data):
    tp = data.draw(st.integers(1, num_kv_heads * group))
    shards = shard_heads(num_kv_heads * group, num_kv_heads, tp)
    num_held = sum(len(shard.kv) for shard in shards)
    assert num_held == max(num_kv_heads, tp)


def test_nine_query_and_three_kv_heads_over_two_ranks():
    assert shard_heads(9, 3, 2) == [HeadShard(Span(0, 6), Span(0, 2)), HeadShard(Span(6, 9), Span(2, 3))]


def test_nine_query_and_three_kv_heads_over_four_ranks_share_the_first_kv_head():
    shards = shard_heads(9, 3, 4)
    assert [indices(shard.qo) for shard in shards] == [[0, 1], [2], [3, 4, 5], [6, 7, 8]]
    assert [indices(shard.kv) for shard in shards] == [[0], [0], [1], [2]]


@PROPERTY
@given(dp=st.integers(1, 3), tp=st.integers(1, 9), vocab_size=st.integers(1, 300), intermediate_size=st.integers(1, 99))
def test_ranks_of_each_tp_group_partition_the_model(dp: int, tp: int, vocab_size: int, intermediate_size: int):
    assume(tp <= min(vocab_size, intermediate_size))
    config, mesh = model(vocab_size=vocab_size, intermediate_size=intermediate_size), Mesh(dp=dp, tp=tp)
    for ranks in mesh.tp_groups():
        shards = [shard_model(config, mesh, rank) for rank in ranks]
        assert [shard.tp_rank for shard in shards] == list(range(tp))
        assert indices(*(shard.vocab for shard in shards)) == list(range(vocab_size))
        assert indices(*(shard.intermediate for shard in shards)) == list(range(intermediate_size))
        assert all(len(shard.vocab) and len(shard.intermediate) and len(shard.heads.qo) for shard in shards)


def test_more_ranks_than_query_heads_are_refused():
    with pytest.raises(InvalidArgumentError, match="tp: expected 1 <= tp <= 9, the model's query heads, got 10"):
        shard_heads(9, 3, 10)


def test_query_heads_that_are_no_multiple_are_refused():
    with pytest.raises(InvalidArgumentError, match="num_qo_heads: expected a multiple of num_kv_heads=3 >= 1, got 8"):
        shard_heads(8, 3, 1)
    with pytest.raises(InvalidArgumentError, match="num_kv_heads=0 >= 1"):
        shard_heads(8, 0, 1)


@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size"])
def test_more_ranks_than_an_axis_has_parts_are_refused(name: str):
    with pytest.raises(InvalidArgumentError, match=f"tp: expected at most {name}=2, got 3"):
        shard_model(model(**{name: 2}), Mesh(tp=3), 0)


@pytest.mark.parametrize(("size", "parts", "name"), [(-1, 2, "size"), (4, 0, "parts")])
def test_a_split_of_nothing_is_refused(size: int, parts: int, name: str):
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected an integer >="):
        split_contiguous(size, parts)
