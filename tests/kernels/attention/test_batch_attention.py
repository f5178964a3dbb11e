# SPDX-License-Identifier: Apache-2.0
"""What BatchAttention computes, against float64 loops and against torch's attention with an explicit mask."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

import distributed_fi.attention
from distributed_fi.attention import BatchAttention
from distributed_fi.kernels.attention import torch_backend
from distributed_fi.kernels.attention.plan import TileBudget

Lens: TypeAlias = list[tuple[int, int]]  # (kv_len, qo_len) of each request
Variant: TypeAlias = dict[str, Any]
MakeBatch: TypeAlias = Callable[..., Any]  # the class PagedBatch of conftest.py

MIXES: dict[str, Lens] = {
    "one_prefill": [(146, 146)],
    "odd_prefill": [(67, 67)],
    "long_append": [(819, 79)],
    "decode": [(204, 1)] * 21,
    "two_appends": [(409, 12)] * 2,
    "decode_and_verify": [(60, 1)] * 13 + [(500, 3)] * 6,
    "decode_and_append": [(102, 1)] * 9 + [(819, 17)] * 2,
    "verify_and_prefill": [(76, 2)] * 7 + [(102, 51)],
    "more_queries_than_keys": [(2, 23), (1, 133)],
    "empty_requests": [(0, 1), (7, 1), (0, 3), (5, 0), (300, 1), (3, 1), (0, 0), (33, 5)],
}
VARIANTS: dict[str, Variant] = {
    "full": {},
    "causal": {"causal": True},
    "scaled": {"sm_scale": 0.31},
    "capped": {"causal": True, "logits_soft_cap": 5.0},
    "window": {"causal": True, "window_left": 40},
    "window_of_one": {"causal": True, "window_left": 0},
    "two_sided_window": {"window_left": 9},
}


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    sm_scale: float | None = None,
    window_left: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's attention of one request in float64, with the visible keys spelled out, and its lse by torch too."""
    qo_len, kv_len, group = len(q), len(k), q.shape[1] // k.shape[1]
    q, k, v = (t.double().transpose(0, 1) for t in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    position = torch.arange(qo_len)[:, None] + kv_len - qo_len
    visible = torch.ones(qo_len, kv_len, dtype=torch.bool)
    if causal:
        visible &= torch.arange(kv_len) <= position
    if window_left >= 0:
        visible &= torch.arange(kv_len) >= position - window_left
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=sm_scale)
    scale = q.shape[-1] ** -0.5 if sm_scale is None else sm_scale
    lse = (q @ k.mT * scale).masked_fill(~visible, -math.inf).logsumexp(-1) * math.log2(math.e)
    is_blind = ~visible.any(-1)
    return out.masked_fill(is_blind[:, None], 0).transpose(0, 1), lse.transpose(0, 1)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("lens", MIXES.values(), ids=MIXES)
def test_matches_float64_loops(paged_batch: MakeBatch, lens: Lens, variant: Variant) -> None:
    batch = paged_batch(lens)
    batch.assert_close(batch.run(**variant), batch.expected(**variant))


@pytest.mark.parametrize("name", ["full", "causal", "scaled", "window", "two_sided_window"])
@pytest.mark.parametrize("lens", MIXES.values(), ids=MIXES)
def test_matches_torch_attention_with_an_explicit_mask(paged_batch: MakeBatch, lens: Lens, name: str) -> None:
    batch = paged_batch(lens, page_size=5, seed=1)
    batch.assert_close(batch.run(**VARIANTS[name]), batch.expected(sdpa, **VARIANTS[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [40, 64, 128])
@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_heads_and_dtypes(paged_batch: MakeBatch, group: int, head_dim: int, dtype: torch.dtype) -> None:
    lens = [(33, 1), (20, 1), (17, 6)]
    sizes = {"num_qo_heads": group * 2, "head_dim_qk": head_dim, "head_dim_vo": head_dim, "dtype": dtype}
    batch = paged_batch(lens, **sizes)
    batch.assert_close(batch.run(causal=True), batch.expected(causal=True))


@pytest.mark.parametrize("is_combined", [False, True], ids=["tuple", "combined"])
@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 5, 8, 16])
def test_page_sizes_and_layouts(paged_batch: MakeBatch, page_size: int, kv_layout: str, is_combined: bool) -> None:
    lens = [(33, 1), (0, 1), (20, 1), (17, 6), (40, 40)]
    batch = paged_batch(lens, page_size=page_size, kv_layout=kv_layout, is_combined=is_combined)
    batch.assert_close(batch.run(causal=True), batch.expected(causal=True))


@pytest.mark.parametrize("num_kv_heads", [1, 3])
@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
def test_value_head_dim_may_differ(paged_batch: MakeBatch, kv_layout: str, num_kv_heads: int) -> None:
    sizes = {"num_kv_heads": num_kv_heads, "head_dim_qk": 48, "head_dim_vo": 32}
    batch = paged_batch([(33, 1), (17, 6)], kv_layout=kv_layout, **sizes)
    batch.assert_close(batch.run(causal=True), batch.expected(causal=True))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_cut_into_tiles_does_not_matter(
    paged_batch: MakeBatch, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = TileBudget(key_elems=2**14, score_elems=2**9, padding_elems=0)
    monkeypatch.setattr(torch_backend, "_CPU_BUDGET", tiny)
    batch = paged_batch([(150, 1), (31, 1), (30, 1), (146, 90), (20, 35), (200, 50)])
    batch.assert_close(batch.run(**variant), batch.expected(**variant))


def test_windows_longer_than_a_row_block(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(700, 600)], num_qo_heads=1, num_kv_heads=1, head_dim_qk=16, head_dim_vo=16)
    for causal in (True, False):
        variant = {"causal": causal, "window_left": 300}
        batch.assert_close(batch.run(**variant), batch.expected(sdpa, **variant))


def test_pages_behind_every_window_may_be_gone(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(160, 1), (100, 5)])
    expected = batch.expected(causal=True, window_left=30)
    batch.pages[0][:8] = [-1] * 8  # keys 129.. of 160 are visible
    batch.pages[1][:4] = [-1] * 4  # keys 65.. of 100
    attention = BatchAttention(device="cpu")
    batch.plan(attention, causal=True, window_left=30, page_size=16)
    batch.assert_close(attention.run(batch.q, batch.kv_cache), expected)


def test_rows_that_see_no_key_are_zero_with_lse_minus_infinity(paged_batch: MakeBatch) -> None:
    out, lse = paged_batch([(0, 2), (3, 5)]).run(causal=True)
    blind = [0, 1, 2, 3]  # both rows of the first request, 5 - 3 rows of the second
    assert (out[blind] == 0).all()
    assert (lse[blind] == -math.inf).all()
    assert lse[4:].isfinite().all()


def test_lse_is_base_two(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(8, 1)])
    batch.q.zero_()
    torch.testing.assert_close(batch.run()[1], torch.full((1, 6), 3.0))  # log2 of 8 equal weights


@pytest.mark.parametrize("lens", [[], [(5, 0)], [(0, 0), (0, 0)]], ids=str)
def test_no_query_rows(paged_batch: MakeBatch, lens: Lens) -> None:
    out, lse = paged_batch(lens).run(causal=True)
    assert out.shape == (0, 6, 64)
    assert lse.shape == (0, 6)


def test_the_forms_of_a_plan_agree(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(33, 1), (0, 1), (17, 6), (16, 1)], is_combined=True)
    expected = batch.expected(causal=True)
    attention = BatchAttention(device="cpu")
    tables = {"padded": batch.padded_table, "packed": batch.packed_table, "numpy": batch.packed_table.numpy()}
    for table in tables.values():
        for page_size in (16, None):
            variant = {"causal": True, "page_size": page_size, "dtype_q": torch.float32}
            attention.plan(batch.qo_offsets, batch.kv_lens, table, *batch.sizes, **variant)
            batch.assert_close(attention.run(batch.q, batch.kv_cache), expected)
    indptr_form = (batch.qo_offsets, batch.kv_indptr, batch.packed_table, batch.kv_lens, *batch.sizes, 16, True)
    attention.plan(*indptr_form, q_data_type=torch.float32, kv_data_type="float32")
    batch.assert_close(attention.run(batch.q, batch.kv_cache), expected)


def test_a_plan_serves_many_layers_and_then_another_plan_replaces_it(paged_batch: MakeBatch) -> None:
    attention = BatchAttention(device="cpu")
    first = paged_batch([(33, 1), (17, 6)])
    first.plan(attention, causal=True)
    other_layer = paged_batch([(33, 1), (17, 6)], seed=7)
    other_layer.pages = first.pages
    for layer in (first, other_layer):
        layer.assert_close(attention.run(layer.q, layer.kv_cache), layer.expected(causal=True))
    second = paged_batch([(17, 6), (33, 1)], seed=8)  # tensors of the same shapes
    second.plan(attention, causal=True)
    second.assert_close(attention.run(second.q, second.kv_cache), second.expected(causal=True))


def test_later_changes_to_the_planned_arrays_do_not_matter(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(33, 1), (17, 6)])
    table = batch.padded_table.numpy().astype(np.int64)
    attention = BatchAttention(device="cpu")
    attention.plan(batch.qo_offsets, batch.kv_lens, table, *batch.sizes, dtype_q=torch.float32)
    table.fill(0)
    batch.assert_close(attention.run(batch.q, batch.kv_cache), batch.expected())


@pytest.mark.parametrize("lens", [[(33, 1), (20, 1)], [(33, 1), (17, 6)], [(2, 5)]], ids=str)
def test_given_outputs_are_filled(paged_batch: MakeBatch, lens: Lens) -> None:
    batch = paged_batch(lens)
    attention = BatchAttention(device="cpu")
    batch.plan(attention, causal=True)
    out, lse = torch.full_like(batch.q, math.nan), torch.full(batch.q.shape[:2], math.nan)
    returned = attention.run(batch.q, batch.kv_cache, out=out, lse=lse)
    assert returned[0] is out
    assert returned[1] is lse
    batch.assert_close((out, lse), batch.expected(causal=True))


def test_dtype_of_output_and_cache_may_differ_from_the_query(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(33, 1), (17, 6)], dtype=torch.bfloat16)
    attention = BatchAttention(device="cpu")
    dtypes = {"dtype_q": torch.float32, "dtype_kv": torch.bfloat16, "dtype_o": torch.float16}
    attention.plan(batch.qo_offsets, batch.kv_lens, batch.padded_table, *batch.sizes, **dtypes)
    out, _ = attention.run(batch.q.float(), batch.kv_cache)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), batch.expected()[0], rtol=1e-3, atol=2e-5)


def test_queries_may_be_a_strided_slice(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(33, 1), (20, 1), (17, 6)])
    expected = batch.expected(causal=True)
    batch.q = torch.cat([batch.q, torch.full_like(batch.q, math.nan)], dim=1)[:, :6]
    batch.assert_close(batch.run(causal=True), expected)


def test_queries_that_require_gradients_are_served_without(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(33, 1), (17, 6)])
    batch.q.requires_grad_()
    assert not batch.run(causal=True)[0].requires_grad


def test_the_default_dtype_does_not_matter(paged_batch: MakeBatch) -> None:
    batch = paged_batch([(33, 1), (17, 6)])
    expected = batch.expected(causal=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        batch.assert_close(batch.run(causal=True), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_example_of_the_public_module_runs() -> None:
    results = doctest.testmod(distributed_fi.attention)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cuda", None])
def test_cuda_tensors(paged_batch: MakeBatch, device: str | None, dtype: torch.dtype) -> None:
    batch = paged_batch(MIXES["empty_requests"] + MIXES["decode_and_append"], dtype=dtype)
    attention = BatchAttention(device=device)
    batch.plan(attention, causal=True, window_left=300, page_size=16)
    cache = tuple(t.cuda() for t in batch.kv_cache)
    for _ in range(2):
        out, lse = attention.run(batch.q.cuda(), cache)
        batch.assert_close((out.cpu(), lse.cpu()), batch.expected(causal=True, window_left=300))
