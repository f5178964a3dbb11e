# SPDX-License-Identifier: Apache-2.0
"""Lengths and pages of a batch, and the work tiles that cover it: host arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.attention.problem import AttentionProblem
from distributed_fi.kernels.kv_cache.host_array import IntArray
from distributed_fi.kernels.kv_cache.page_table import PageTable

_MIN_BLOCK_ROWS = 16
_MAX_WINDOW_ROWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionBatch:
    """One batch of requests: query offsets, KV lengths and the pages that hold the keys.

    Args:
        qo_offsets: [batch_size + 1], query rows of request r are qo_offsets[r] .. qo_offsets[r + 1].
        kv_lens: [batch_size], in tokens.
        block_table: [batch_size, max_pages], padded; or one-dimensional, packed.
        kv_indptr: [batch_size + 1], where each request's pages start in a packed table; None: they
            follow from kv_lens and the page size.
        page_size: in tokens; None: that of the cache at the first run.
        table_name: what the caller calls the block table, for messages.
    """

    problem: AttentionProblem
    qo_offsets: IntArray
    kv_lens: IntArray
    block_table: IntArray
    kv_indptr: IntArray | None
    page_size: int | None
    table_name: str

    @property
    def batch_size(self) -> int:
        return len(self.kv_lens)

    @property
    def num_tokens(self) -> int:
        return int(self.qo_offsets[-1])

    def page_table(self, page_size: int) -> PageTable:
        """Which pages each request owns, once the page size is known."""
        table = self.block_table
        if table.ndim == 2:
            first = np.arange(self.batch_size) * table.shape[1]
            count = np.full(self.batch_size, table.shape[1])
        else:
            owned = -(-self.kv_lens // page_size) if self.kv_indptr is None else np.diff(self.kv_indptr)
            indptr = np.concatenate([[0], np.cumsum(owned)])
            first, count = indptr[:-1], owned
            if self.kv_indptr is None and len(table) != indptr[-1]:
                expected = f"{indptr[-1]} pages, the sum of ceil(kv_len / {page_size})"
                raise InvalidArgumentError(self.table_name, f"{len(table)} pages", expected)
        pages = PageTable(
            page_indices=table.reshape(-1), first_page=first, num_pages=count, page_size=page_size, name=self.table_name
        )
        pages.check_lens(self.kv_lens)
        return pages


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Query rows [q_start, q_stop) of one request over its keys [kv_start, kv_stop), positions in the request.

    `q_pos` is the first row's position among the keys; row i stands at q_pos + i. It is negative where
    a request has more queries than keys.
    """

    q_start: int
    q_stop: int
    q_pos: int
    kv_start: int
    kv_stop: int

    @property
    def num_rows(self) -> int:
        return self.q_stop - self.q_start


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeTile:
    """Requests of one query row each, side by side; all are padded to the longest, `num_keys`.

    request[i] has query row q_row[i] and reads kv_count[i] keys from position kv_start[i] on.
    """

    request: IntArray
    q_row: IntArray
    kv_start: IntArray
    kv_count: IntArray

    @property
    def num_keys(self) -> int:
        return int(self.kv_count.max())

    @property
    def num_rows(self) -> int:
        return len(self.q_row)

    def key_positions(self) -> tuple[IntArray, IntArray]:
        """Request and position of each key, broadcast to [num_requests, num_keys]; padding repeats the last key."""
        key = np.minimum(np.arange(self.num_keys), self.kv_count[:, None] - 1)
        return self.request[:, None], self.kv_start[:, None] + key

    def __str__(self) -> str:
        return f"{self.num_rows} requests of 1 row x {self.num_keys} keys"


@dataclass(frozen=True, kw_only=True)
class PrefillTile:
    """One request: its keys [kv_start, kv_stop) are gathered once and its rows taken block by block."""

    request: int
    kv_start: int
    kv_stop: int
    blocks: tuple[RowBlock, ...]

    @property
    def num_keys(self) -> int:
        return self.kv_stop - self.kv_start

    @property
    def num_rows(self) -> int:
        return sum(block.num_rows for block in self.blocks)

    def key_positions(self) -> tuple[IntArray, IntArray]:
        """Request and position of each key, broadcast to [1, num_keys]."""
        return np.array([[self.request]]), np.arange(self.kv_start, self.kv_stop)[None]

    def __str__(self) -> str:
        return f"request {self.request}: {self.num_rows} rows in {len(self.blocks)} blocks x {self.num_keys} keys"


WorkTile: TypeAlias = DecodeTile | PrefillTile


@dataclass(frozen=True, kw_only=True)
class TileBudget:
    """How large the pieces of a plan may grow: requests are cut into rows, their keys are not.

    Args:
        key_elems: gathered key elements of a decode tile of several requests. The keys of one request are always
            gathered whole, in a tile of its own where they exceed this.
        score_elems: logits of a row block; at least 16 rows, whatever their keys.
        padding_elems: padded key elements of a decode tile that cost less than one tile more.
    """

    key_elems: int
    score_elems: int
    padding_elems: int


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionPlan:
    """A batch and the tiles that cover it; rows in no tile see no key. Printable, reused by every layer."""

    batch: AttentionBatch
    tiles: tuple[WorkTile, ...]

    @cached_property
    def has_empty_rows(self) -> bool:
        return sum(tile.num_rows for tile in self.tiles) < self.batch.num_tokens

    def __str__(self) -> str:
        batch = self.batch
        head = f"{batch.batch_size} requests, {batch.num_tokens} query rows, {int(batch.kv_lens.sum())} keys"
        return "\n  ".join([f"AttentionPlan: {head}", *map(str, self.tiles)])


def plan_attention(batch: AttentionBatch, budget: TileBudget) -> AttentionPlan:
    """Cover the batch: requests of one row share padded tiles, each other request is a tile of its own."""
    qo_lens = np.diff(batch.qo_offsets)
    decode = np.flatnonzero((qo_lens == 1) & (batch.kv_lens > 0))
    prefill = np.flatnonzero((qo_lens > 1) & (batch.kv_lens > 0))
    tiles: list[WorkTile] = list(_decode_tiles(batch, decode, budget))
    tiles.extend(_prefill_tile(batch, request, budget) for request in prefill.tolist())
    return AttentionPlan(batch=batch, tiles=tuple(tiles))


def _decode_tiles(batch: AttentionBatch, requests: IntArray, budget: TileBudget) -> Iterator[DecodeTile]:
    problem, kv_lens = batch.problem, batch.kv_lens[requests]
    window = problem.window_left
    kv_start = np.maximum(kv_lens - 1 - window, 0) if window >= 0 else np.zeros_like(kv_lens)
    kv_count = kv_lens - kv_start
    order = np.argsort(-kv_count, kind="stable")
    for start, stop in _similar_runs(kv_count[order].tolist(), problem.num_kv_heads * problem.head_dim_qk, budget):
        at = np.sort(order[start:stop])  # back in batch order, so that neighbours in q stay neighbours
        q_row = batch.qo_offsets[requests[at]]
        yield DecodeTile(request=requests[at], q_row=q_row, kv_start=kv_start[at], kv_count=kv_count[at])


def _similar_runs(counts: list[int], key_elems: int, budget: TileBudget) -> Iterator[tuple[int, int]]:
    """Cut falling key counts into runs of bounded size, whose padding is small beside their work."""
    start, padding = 0, 0
    for i, count in enumerate(counts):
        longest, rows = counts[start], i - start + 1
        padding += longest - count
        is_wasteful = padding * key_elems > max(budget.padding_elems, rows * longest * key_elems // 4)
        if i > start and (is_wasteful or rows * longest * key_elems > budget.key_elems):
            yield start, i
            start, padding = i, 0
    if counts:
        yield start, len(counts)


def _prefill_tile(batch: AttentionBatch, request: int, budget: TileBudget) -> PrefillTile:
    problem, kv_len = batch.problem, int(batch.kv_lens[request])
    first_row, end_row = batch.qo_offsets[request : request + 2].tolist()
    qo_len, window = end_row - first_row, problem.window_left
    step = _rows_per_block(problem, kv_len, budget)
    blocks = []
    # Under a causal mask the first qo_len - kv_len rows see no key: no block holds them.
    for start in range(max(0, qo_len - kv_len) if problem.causal else 0, qo_len, step):
        stop, q_pos = min(start + step, qo_len), kv_len - qo_len + start
        kv_start = max(0, q_pos - window) if window >= 0 else 0
        kv_stop = kv_len - qo_len + stop if problem.causal else kv_len
        blocks.append(
            RowBlock(
                q_start=first_row + start, q_stop=first_row + stop, q_pos=q_pos, kv_start=kv_start, kv_stop=kv_stop
            )
        )
    return PrefillTile(request=request, kv_start=blocks[0].kv_start, kv_stop=kv_len, blocks=tuple(blocks))


def _rows_per_block(problem: AttentionProblem, kv_len: int, budget: TileBudget) -> int:
    window = problem.window_left
    num_keys = kv_len if window < 0 else min(kv_len, window + _MAX_WINDOW_ROWS)
    rows = max(_MIN_BLOCK_ROWS, budget.score_elems // (problem.num_qo_heads * num_keys))
    return rows if window < 0 else min(rows, _MAX_WINDOW_ROWS)
