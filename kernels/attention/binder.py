# SPDX-License-Identifier: Apache-2.0
"""Work tiles as tensors on a device: rows to gather, and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from distributed_fi.kernels.attention.cache_rows import CacheRows
from distributed_fi.kernels.attention.plan import DecodeTile, PrefillTile, RowBlock, WorkTile
from distributed_fi.kernels.attention.problem import AttentionProblem
from distributed_fi.kernels.kv_cache.host_array import IntArray
from distributed_fi.kernels.upload import upload

QueryRows: TypeAlias = slice | torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundBlock:
    """num_rows query rows of each of the tile's requests.

    Args:
        q_rows: their rows in q and out: a slice where they are neighbours, else an index tensor.
        keys: the range of the tile's gathered keys that some row sees; None: all.
        mask: 0 or -inf, float32, for the last mask.shape[-1] of these keys, broadcast over
            [num_requests, num_qo_heads, num_rows, num_keys]; None: all rows see all keys.
    """

    num_rows: int
    q_rows: QueryRows
    keys: slice | None
    mask: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundTile:
    """Keys and values gathered together: k_rows and v_rows are [num_requests * num_kv_heads * num_keys]."""

    num_keys: int
    k_rows: torch.Tensor
    v_rows: torch.Tensor
    blocks: tuple[BoundBlock, ...]


class TileBinder:
    """Turns tiles into tensors; blocks whose masks are equal share one."""

    def __init__(self, problem: AttentionProblem, k_rows: CacheRows, v_rows: CacheRows, device: torch.device):
        self._problem, self._k_rows, self._v_rows, self._device = problem, k_rows, v_rows, device
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}

    def bind(self, tile: WorkTile, page: IntArray, offset: IntArray) -> BoundTile:
        """`page` and `offset` of the tile's keys are [num_requests, num_keys]."""
        k_rows = self._to_device(self._k_rows.of_tokens(page, offset))
        is_same = self._v_rows == self._k_rows
        v_rows = k_rows if is_same else self._to_device(self._v_rows.of_tokens(page, offset))
        if isinstance(tile, DecodeTile):
            blocks: tuple[BoundBlock, ...] = (self._decode_block(tile),)
        else:
            blocks = tuple(self._row_block(block, tile) for block in tile.blocks)
        return BoundTile(num_keys=tile.num_keys, k_rows=k_rows, v_rows=v_rows, blocks=blocks)

    def _decode_block(self, tile: DecodeTile) -> BoundBlock:
        first, stop = int(tile.q_row[0]), int(tile.q_row[-1]) + 1
        is_range = stop - first == len(tile.q_row)
        mask = None
        if (shortest := int(tile.kv_count.min())) < tile.num_keys:
            hidden = np.arange(shortest, tile.num_keys) >= tile.kv_count[:, None, None, None]
            mask = self._to_device(_additive(hidden))
        q_rows = slice(first, stop) if is_range else self._to_device(tile.q_row)
        return BoundBlock(num_rows=1, q_rows=q_rows, keys=None, mask=mask)

    def _row_block(self, block: RowBlock, tile: PrefillTile) -> BoundBlock:
        keys = slice(block.kv_start - tile.kv_start, block.kv_stop - tile.kv_start)
        return BoundBlock(
            num_rows=block.num_rows,
            q_rows=slice(block.q_start, block.q_stop),
            keys=None if keys == slice(0, tile.num_keys) else keys,
            mask=self._visibility(block),
        )

    def _visibility(self, block: RowBlock) -> torch.Tensor | None:
        """The mask over the block's last keys, from the first one that some row does not see."""
        causal, window = self._problem.causal, self._problem.window_left
        last_pos = block.q_pos + block.num_rows - 1
        if 0 <= window < last_pos - block.kv_start:
            first = block.kv_start
        else:
            first = min(block.q_pos + 1, block.kv_stop) if causal else block.kv_stop
        shape = (block.num_rows, block.kv_stop - first, block.q_pos - first)
        if shape[1] == 0:
            return None
        if shape not in self._masks:
            position = np.arange(shape[0])[:, None] + shape[2]
            key = np.arange(shape[1])
            hidden = (causal & (key > position)) | ((window >= 0) & (key < position - window))
            self._masks[shape] = self._to_device(_additive(hidden))
        return self._masks[shape]

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return upload(array, self._device)


def _additive(hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden, np.float32(-np.inf), np.float32(0))
