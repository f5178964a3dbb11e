# SPDX-License-Identifier: Apache-2.0
"""The cut into tiles: every visible key of every row is covered once, within the budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_fi.kernels.attention.arguments import batch_from_block_table
from distributed_fi.kernels.attention.cache_rows import CacheRows
from distributed_fi.kernels.attention.plan import AttentionBatch, AttentionPlan, DecodeTile, TileBudget, plan_attention
from distributed_fi.kernels.attention.torch_backend import TorchAttention

ROOMY = TileBudget(key_elems=2**30, score_elems=2**30, padding_elems=2**30)
KEY_ELEMS = 2 * 8  # of one token, with the heads below


def batch_of(lens: list[tuple[int, int]], **variant: Any) -> AttentionBatch:
    """A batch of (kv_len, qo_len) over pages of one token."""
    qo_offsets = np.cumsum([0, *(qo_len for _, qo_len in lens)])
    kv_lens = [kv_len for kv_len, _ in lens]
    return batch_from_block_table("NHD", qo_offsets, kv_lens, np.arange(sum(kv_lens)), 4, 2, 8, 8, **variant)


def covered(plan: AttentionPlan) -> Iterator[tuple[int, int, int]]:
    """(row, first key, end of keys) of every row that some tile holds."""
    for tile in plan.tiles:
        if isinstance(tile, DecodeTile):
            yield from zip(tile.q_row, tile.kv_start, tile.kv_start + tile.kv_count, strict=True)
        else:
            for block in tile.blocks:
                assert tile.kv_start <= block.kv_start < block.kv_stop <= tile.kv_stop
                yield from ((row, block.kv_start, block.kv_stop) for row in range(block.q_start, block.q_stop))


@settings(deadline=None, max_examples=60)
@given(
    lens=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8),
    causal=st.booleans(),
    window_left=st.integers(-1, 70),
    budget=st.builds(TileBudget, key_elems=st.integers(0, 4000), score_elems=st.integers(0, 4000),
                     padding_elems=st.integers(0, 4000)),
)  # fmt: skip
def test_each_row_with_keys_is_covered_once_by_a_range_that_holds_its_keys(
    lens: list[tuple[int, int]], causal: bool, window_left: int, budget: TileBudget
) -> None:
    plan = plan_attention(batch_of(lens, causal=causal, window_left=window_left), budget)
    ranges = {row: (start, stop) for row, start, stop in covered(plan)}
    assert len(ranges) == len(list(covered(plan)))
    row = 0
    for kv_len, qo_len in lens:
        for i in range(qo_len):
            pos = kv_len - qo_len + i
            visible = range(max(0, pos - window_left) if window_left >= 0 else 0, pos + 1 if causal else kv_len)
            if visible:
                start, stop = ranges.pop(row)
                assert start <= visible.start
                assert visible.stop <= stop <= kv_len
            row += 1
    assert not ranges
    assert plan.has_empty_rows == (sum(1 for _ in covered(plan)) < row)


def test_decode_rows_of_like_length_share_a_tile() -> None:
    plan = plan_attention(batch_of([(100, 1), (7, 3), (98, 1), (99, 1)]), ROOMY)
    tile, prefill = plan.tiles
    assert tile.request.tolist() == [0, 2, 3]
    assert tile.q_row.tolist() == [0, 4, 5]
    assert (tile.num_keys, prefill.request) == (100, 1)


def test_lengths_that_differ_wildly_do_not_share_a_tile() -> None:
    budget = TileBudget(key_elems=2**30, score_elems=2**30, padding_elems=10 * KEY_ELEMS)
    plan = plan_attention(batch_of([(1000, 1), (10, 1), (990, 1), (11, 1)]), budget)
    assert [tile.request.tolist() for tile in plan.tiles] == [[0, 2], [1, 3]]


def test_the_budget_bounds_a_decode_tile() -> None:
    budget = TileBudget(key_elems=3 * 50 * KEY_ELEMS, score_elems=2**30, padding_elems=0)
    plan = plan_attention(batch_of([(50, 1)] * 7), budget)
    assert [tile.num_rows for tile in plan.tiles] == [3, 3, 1]


def test_the_budget_bounds_the_logits_of_a_row_block() -> None:
    budget = TileBudget(key_elems=2**30, score_elems=4 * 100 * 32, padding_elems=0)  # 4 heads, 100 keys, 32 rows
    (tile,) = plan_attention(batch_of([(100, 70)], causal=True), budget).tiles
    assert [block.num_rows for block in tile.blocks] == [32, 32, 6]
    assert [block.kv_stop for block in tile.blocks] == [62, 94, 100]


@pytest.mark.parametrize("layout", ["NHD", "HND", "combined", "one_page", "padded_heads", "strided_pages"])
def test_cache_rows_find_each_token_in_any_stride(layout: str) -> None:
    num_pages, page_size, heads, dim = 5, 4, 3, 8
    size = (num_pages, page_size, heads, dim)
    cache = {
        "NHD": lambda: torch.randn(size),
        "HND": lambda: torch.randn(num_pages, heads, page_size, dim).transpose(1, 2),
        "combined": lambda: torch.randn(num_pages, 2, page_size, heads, dim)[:, 1],
        "one_page": lambda: torch.randn(7, page_size, heads, dim)[3:4],
        "padded_heads": lambda: torch.randn(num_pages, page_size, heads, 12)[..., 2:10],
        "strided_pages": lambda: torch.randn(10, page_size, 2 * heads, dim)[::2, :, heads:],
    }[layout]()
    rows = CacheRows.of(cache)
    page = np.array([[0, cache.shape[0] - 1, 0]])
    offset = np.array([[3, 2, 0]])
    gathered = rows.view(cache)[torch.from_numpy(rows.of_tokens(page, offset))].view(heads, 3, dim)
    expected = torch.stack([cache[p, o] for p, o in zip(page[0], offset[0], strict=True)], dim=1)
    assert torch.equal(gathered, expected)


def test_the_stride_of_a_dimension_of_size_one_does_not_split_the_rows() -> None:
    cache = torch.randn(1, 4, 3, 8).as_strided((1, 4, 3, 8), (5, 24, 8, 1))
    assert CacheRows.of(cache).row_stride == 8


@pytest.mark.parametrize(("num_requests", "kv_len"), [(64, 4096), (512, 100), (7, 16384)])
def test_a_tile_on_a_gpu_takes_256_mib_at_most(num_requests: int, kv_len: int) -> None:
    batch = batch_from_block_table(
        "NHD", range(num_requests + 1), [kv_len] * num_requests, np.arange(num_requests * kv_len), 32, 8, 128, 128
    )
    plan = TorchAttention(batch, device_type="cuda").plan
    for tile in plan.tiles:
        # keys and values in 2 and 4 bytes, logits in 4
        key_elems, logits = tile.num_rows * tile.num_keys * 8 * 128, tile.num_rows * tile.num_keys * 32
        assert 2 * key_elems * (2 + 4) + 4 * logits <= 2**28
