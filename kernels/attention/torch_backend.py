# SPDX-License-Identifier: Apache-2.0
"""Paged attention of plain torch operators, for the CPU and as the fallback on a GPU.

Each tile gathers keys and values by planned rows; each block of query rows is then one batched product,
an optional cap and mask, a softmax with base-2 exponentials in float32, and a second batched product.
Query heads that share a KV head are stacked as rows of one matrix. Only slots of visible keys are ever
read, so whatever lies in unused pages and tails (NaN included) cannot reach the output; a shorter
request's padding repeats its own last key under a mask of -inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from distributed_fi.kernels.attention.binder import BoundBlock, BoundTile, QueryRows, TileBinder
from distributed_fi.kernels.attention.cache_rows import CacheRows
from distributed_fi.kernels.attention.plan import AttentionBatch, AttentionPlan, TileBudget, plan_attention
from distributed_fi.kernels.attention.problem import AttentionProblem
from distributed_fi.kernels.kv_cache.page_table import check_page_bound

_LOG2_E = math.log2(math.e)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# On a CPU the gathered keys and the logits should stay in its caches.
_CPU_BUDGET = TileBudget(key_elems=2**19, score_elems=2**20, padding_elems=2**15)
# A GPU wants few, large launches; what they need for a time is bounded by this. Keys and values of a 16-bit cache take
# 12 bytes per key element (gathered, and as float32; 8 for a float32 cache), a logit 4: 192 MiB for a tile of several
# requests, and 64 MiB for a block of rows. One request's keys are gathered whole whatever their number, and a block
# has 16 rows at least: 8 KV heads of 128 pass 192 MiB beyond 16 Ki keys of one request.
_CUDA_BUDGET = TileBudget(key_elems=2**24, score_elems=2**24, padding_elems=2**22)


def why_not(problem: AttentionProblem) -> str | None:
    """The reason why this backend does not serve a problem."""
    for name in ("dtype_q", "dtype_kv", "dtype_o"):
        if getattr(problem, name) not in _DTYPES:
            return f"{name} {str(getattr(problem, name)).removeprefix('torch.')} is not float32, bfloat16 or float16"
    return None


class TorchAttention:
    """One planned batch: `plan` holds the tiles that cover it, `bind` fits them to a cache."""

    def __init__(self, batch: AttentionBatch, *, device_type: str):
        self.plan: AttentionPlan = plan_attention(batch, _CPU_BUDGET if device_type == "cpu" else _CUDA_BUDGET)
        self._page_size: int | None = None
        if batch.page_size is not None:
            self._locate(batch.page_size)

    def bind(self, k: torch.Tensor, v: torch.Tensor) -> BoundAttention:
        """Row indices and masks for caches of this shape, stride and device: made once, shared by all layers.

        Raises:
            InvalidArgumentError: the plan's pages do not fit the cache.
        """
        if k.shape[1] != self._page_size:
            self._locate(k.shape[1])
        check_page_bound(self.plan.batch.table_name, self._max_page, k.shape[0])
        rows = CacheRows.of(k), CacheRows.of(v)
        problem = self.plan.batch.problem
        binder = TileBinder(problem, *rows, k.device)
        tiles = tuple(binder.bind(tile, *places) for tile, places in zip(self.plan.tiles, self._places, strict=True))
        per_logit = 1 / problem.logits_soft_cap if problem.logits_soft_cap else _LOG2_E
        return BoundAttention(
            plan=self.plan,
            k_rows=rows[0],
            v_rows=rows[1],
            tiles=tiles,
            logit_scale=torch.full((), problem.scale * per_logit, dtype=torch.float32, device=k.device),
        )

    def _locate(self, page_size: int) -> None:
        """Page and offset of each tile's keys, [num_requests, num_keys]."""
        table = self.plan.batch.page_table(page_size)
        self._places = [table.locate(*tile.key_positions()) for tile in self.plan.tiles]
        self._max_page = max((int(page.max()) for page, _ in self._places), default=-1)
        self._page_size = page_size


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundAttention:
    """A plan on the device, for caches of one geometry.

    `logit_scale` is sm_scale / logits_soft_cap where there is a cap, else sm_scale * log2(e): a
    0-dimensional tensor, because multiplying by a Python number makes one each time.
    """

    plan: AttentionPlan
    k_rows: CacheRows
    v_rows: CacheRows
    tiles: tuple[BoundTile, ...]
    logit_scale: torch.Tensor

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor | None, lse: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill out [num_tokens, num_qo_heads, head_dim_vo] and lse [num_tokens, num_qo_heads], made here where None."""
        problem = self.plan.batch.problem
        q, k, v = (t.detach() if t.requires_grad else t for t in (q, k, v))  # no_grad() costs more
        flat = self.k_rows.view(k), self.v_rows.view(v)
        if out is None and lse is None and self._is_one_block:
            # The whole batch in one block, as in most decode steps: its result is the output, uncopied.
            out, lse = self._attend(q, *_gather(self.tiles[0], *flat), self.tiles[0].blocks[0])
            return _as_dtype(out, problem.dtype_o).contiguous(), lse.contiguous()
        rows = (self.plan.batch.num_tokens, problem.num_qo_heads)
        out = q.new_empty((*rows, problem.head_dim_vo), dtype=problem.dtype_o) if out is None else out
        lse = q.new_empty(rows, dtype=torch.float32) if lse is None else lse
        if self.plan.has_empty_rows:
            out.zero_()
            lse.fill_(-math.inf)
        for tile in self.tiles:
            gathered = _gather(tile, *flat)
            for block in tile.blocks:
                block_out, block_lse = self._attend(_take_rows(q, block.q_rows), *gathered, block)
                _put_rows(out, block.q_rows, block_out)
                _put_rows(lse, block.q_rows, block_lse)
        return out, lse

    @cached_property
    def _is_one_block(self) -> bool:
        return len(self.tiles) == 1 and len(self.tiles[0].blocks) == 1 and not self.plan.has_empty_rows

    def _attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block: BoundBlock
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense float32 attention of q [n * rows, Hq, Dqk] over keys [n * Hkv, keys, Dqk]; each row sees a key.

        Returns out [n * rows, Hq, Dvo] and lse [n * rows, Hq].
        """
        problem, num_rows = self.plan.batch.problem, block.num_rows
        if block.keys is not None:
            keys, values = keys[:, block.keys], values[:, block.keys]
        # The rows of a KV head's group of query heads are stacked, so that K and V are read once for all of them.
        num_heads, depth = problem.num_qo_heads, problem.group_size * num_rows
        if num_rows > 1:
            q = q.view(-1, num_rows, num_heads, problem.head_dim_qk).transpose(1, 2)
        stacked = _as_dtype(q.reshape(-1, depth, problem.head_dim_qk), torch.float32)
        logits = torch.bmm(stacked * self.logit_scale, keys.transpose(1, 2))  # [n * Hkv, group * rows, keys]
        if problem.logits_soft_cap:
            logits.tanh_().mul_(problem.logits_soft_cap * _LOG2_E)
        if block.mask is not None:
            width = block.mask.shape[-1]
            masked = logits.narrow(-1, logits.shape[-1] - width, width)
            masked.view(-1, num_heads, num_rows, width).add_(block.mask)
        top = logits.amax(-1, keepdim=True)
        weights = logits.sub_(top).exp2_()
        total = weights.sum(-1, keepdim=True)
        out = torch.bmm(weights, values).div_(total)
        lse = total.log2_().add_(top)
        if num_rows == 1:
            return out.view(-1, num_heads, problem.head_dim_vo), lse.view(-1, num_heads)
        by_head = (-1, num_heads, num_rows)
        out = out.view(*by_head, problem.head_dim_vo).transpose(1, 2).flatten(0, 1)
        return out, lse.view(by_head).transpose(1, 2).flatten(0, 1)


def _gather(tile: BoundTile, k_flat: torch.Tensor, v_flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [n * Hkv, keys, Dqk] and values [n * Hkv, keys, Dvo] in float32."""
    keys = k_flat.index_select(0, tile.k_rows).view(-1, tile.num_keys, k_flat.shape[1])
    values = v_flat.index_select(0, tile.v_rows).view(-1, tile.num_keys, v_flat.shape[1])
    return _as_dtype(keys, torch.float32), _as_dtype(values, torch.float32)


def _as_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _take_rows(tensor: torch.Tensor, rows: QueryRows) -> torch.Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def _put_rows(tensor: torch.Tensor, rows: QueryRows, values: torch.Tensor) -> None:
    if isinstance(rows, slice):
        tensor[rows].copy_(values)
    else:
        tensor.index_copy_(0, rows, values.to(tensor.dtype))
