# SPDX-License-Identifier: Apache-2.0
"""A random batch in a paged cache whose every unused slot is NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from distributed_fi.kernels.attention.batch_attention import BatchAttention
from distributed_fi.kernels.attention.reference import attention_reference


@dataclass
class PagedBatch:
    """Requests of (kv_len, qo_len); k and v are dense per request, the caches hold them in shuffled pages."""

    lens: list[tuple[int, int]]
    page_size: int = 16
    num_qo_heads: int = 6
    num_kv_heads: int = 2
    head_dim_qk: int = 64
    head_dim_vo: int = 64
    dtype: torch.dtype = torch.float32
    kv_layout: str = "NHD"
    is_combined: bool = False
    seed: int = 0
    pages: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        counts = [-(-kv_len // self.page_size) for kv_len, _ in self.lens]
        self.num_pages = sum(counts) + 3
        order = iter(torch.randperm(self.num_pages, generator=rng).tolist())
        self.pages = [[next(order) for _ in range(count)] for count in counts]
        self.q = self._draw(rng, sum(qo_len for _, qo_len in self.lens), self.num_qo_heads, self.head_dim_qk)
        self.k = [self._draw(rng, kv_len, self.num_kv_heads, self.head_dim_qk) for kv_len, _ in self.lens]
        self.v = [self._draw(rng, kv_len, self.num_kv_heads, self.head_dim_vo) for kv_len, _ in self.lens]

    def _draw(self, rng: torch.Generator, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng).to(self.dtype)

    @property
    def qo_offsets(self) -> torch.Tensor:
        return torch.tensor([0] + [qo_len for _, qo_len in self.lens], dtype=torch.int32).cumsum(0).int()

    @property
    def kv_lens(self) -> torch.Tensor:
        return torch.tensor([kv_len for kv_len, _ in self.lens], dtype=torch.int32)

    @property
    def padded_table(self) -> torch.Tensor:
        """[batch_size, max_pages + 1], padded with -1."""
        width = max(map(len, self.pages), default=0) + 1
        rows = [pages + [-1] * (width - len(pages)) for pages in self.pages]
        return torch.tensor(rows, dtype=torch.int32).reshape(-1, width)

    @property
    def packed_table(self) -> torch.Tensor:
        return torch.tensor([page for pages in self.pages for page in pages], dtype=torch.int32)

    @property
    def kv_indptr(self) -> torch.Tensor:
        return torch.tensor([0] + [len(pages) for pages in self.pages], dtype=torch.int32).cumsum(0).int()

    @property
    def kv_cache(self) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        caches = []
        for dense, head_dim in ((self.k, self.head_dim_qk), (self.v, self.head_dim_vo)):
            shape = (self.num_pages, self.page_size, self.num_kv_heads, head_dim)
            cache = torch.full(shape, float("nan"), dtype=self.dtype)
            for tokens, pages in zip(dense, self.pages, strict=True):
                for page, part in zip(pages, tokens.split(self.page_size), strict=bool(pages)):
                    if page >= 0:
                        cache[page, : len(part)] = part
            caches.append(cache.transpose(1, 2).contiguous() if self.kv_layout == "HND" else cache)
        return torch.stack(caches, dim=1) if self.is_combined else (caches[0], caches[1])

    def plan(self, attention: BatchAttention, **variant: object) -> None:
        """Block-table form with a padded table."""
        attention.plan(self.qo_offsets, self.kv_lens, self.padded_table, *self.sizes, dtype_q=self.dtype, **variant)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.num_qo_heads, self.num_kv_heads, self.head_dim_qk, self.head_dim_vo

    def run(self, **variant: object) -> tuple[torch.Tensor, torch.Tensor]:
        attention = BatchAttention(self.kv_layout, device="cpu")
        self.plan(attention, **variant)
        return attention.run(self.q, self.kv_cache)

    def expected(
        self, second_form: Callable[..., tuple[torch.Tensor, torch.Tensor]] = attention_reference, **variant: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each request by itself on its dense keys and values."""
        queries = self.q.split([qo_len for _, qo_len in self.lens])
        parts = [second_form(*qkv, **variant) for qkv in zip(queries, self.k, self.v, strict=True)]
        empty = torch.empty(0, self.num_qo_heads, self.head_dim_vo, dtype=torch.float64)
        outs, lses = zip(*parts, strict=True) if parts else ((empty,), (empty[:, :, 0],))
        return torch.cat(outs), torch.cat(lses)

    def assert_close(self, got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
        """The output is float32 arithmetic (1e-5 over these lengths) rounded once to the dtype."""
        assert got[0].dtype == self.dtype
        assert got[1].dtype == torch.float32
        rtol = max(torch.finfo(self.dtype).eps, 1e-5)
        torch.testing.assert_close(got[0].double(), expected[0], rtol=rtol, atol=2e-5)
        torch.testing.assert_close(got[1].double(), expected[1], rtol=1e-5, atol=2e-5)


@pytest.fixture
def paged_batch() -> type[PagedBatch]:
    return PagedBatch
