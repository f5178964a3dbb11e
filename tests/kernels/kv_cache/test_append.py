# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import doctest
import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import distributed_fi.page
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.kv_cache import append
from distributed_fi.kernels.kv_cache.reference import append_reference, gather_reference
from distributed_fi.page import (
    append_paged_kv_cache,
    append_with_slots,
    get_batch_indices_positions,
    get_seq_lens,
    plan_append,
)

NUM_KV_HEADS, HEAD_DIM = 3, 8


def pages_of(lens: list[int], page_size: int, seed: int = 0) -> tuple[list[list[int]], int]:
    """Shuffled pages of each request, and the number of pages of a pool with some to spare."""
    counts = [-(-n // page_size) for n in lens]
    order = np.random.default_rng(seed).permutation(sum(counts) + 3).tolist()
    ends = np.cumsum(counts)
    return [order[end - count : end] for end, count in zip(ends, counts, strict=True)], sum(counts) + 3


def indptr_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def as_cache(k: torch.Tensor, v: torch.Tensor, kv_layout: str, is_combined: bool) -> tuple[Any, Any]:
    """NHD tensors as the cache a caller would hold, and views of it to read back in NHD order."""
    if kv_layout == "HND":
        k, v = (t.transpose(1, 2).contiguous() for t in (k, v))
    cache = torch.stack([k, v], dim=1) if is_combined else (k.clone(), v.clone())
    views = (cache[:, 0], cache[:, 1]) if is_combined else cache
    return cache, tuple(t.transpose(1, 2) for t in views) if kv_layout == "HND" else views


@pytest.mark.parametrize("is_combined", [False, True], ids=["tuple", "combined"])
@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
@pytest.mark.parametrize("page_size", [1, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_append_writes_the_tokens_and_nothing_else(
    dtype: torch.dtype, page_size: int, kv_layout: str, is_combined: bool
) -> None:
    seq_lens, appended = [45, 8, 0, 17, 400], [45, 1, 0, 3, 16]
    pages, num_pages = pages_of(seq_lens, page_size)
    kv_indptr = indptr_of([len(p) for p in pages])
    kv_indices = torch.tensor(list(itertools.chain.from_iterable(pages)), dtype=torch.int32)
    last_page_len = torch.tensor([(n - 1) % page_size + 1 if n else 0 for n in seq_lens], dtype=torch.int32)
    lens = get_seq_lens(kv_indptr, last_page_len, page_size)
    assert lens.tolist() == seq_lens
    batch_indices, positions = get_batch_indices_positions(indptr_of(appended), lens, nnz=sum(appended))

    before = draw(2, num_pages, page_size, NUM_KV_HEADS, HEAD_DIM, dtype=dtype)
    key, value = draw(2, sum(appended), NUM_KV_HEADS, HEAD_DIM, dtype=dtype, seed=1)
    cache, (k, v) = as_cache(*before, kv_layout, is_combined)
    append_paged_kv_cache(key, value, batch_indices, positions, cache, kv_indices, kv_indptr, last_page_len, kv_layout)

    places = (batch_indices.tolist(), positions.tolist(), pages)
    assert torch.equal(k, append_reference(before[0], key, *places))
    assert torch.equal(v, append_reference(before[1], value, *places))
    first_request = gather_reference(k, pages[0], seq_lens[0])
    assert torch.equal(first_request, key[: seq_lens[0]])


def test_slots_planned_once_serve_every_layer() -> None:
    pages, num_pages = pages_of([20, 9], page_size=8)
    indptr, indices = indptr_of([3, 2]), list(itertools.chain.from_iterable(pages))
    slots = plan_append([0, 1, 1], [19, 7, 8], indices, indptr, 8, num_pages)
    assert slots.dtype == torch.int64
    assert slots.tolist() == [pages[0][2] * 8 + 3, pages[1][0] * 8 + 7, pages[1][1] * 8]
    for layer in range(2):
        key, value = draw(2, 3, NUM_KV_HEADS, HEAD_DIM, seed=layer)
        k, v = torch.zeros(2, num_pages, 8, NUM_KV_HEADS, HEAD_DIM)
        append_with_slots(key, value, slots, (k, v))
        assert torch.equal(k.flatten(0, 1)[slots], key)
        assert torch.equal(v.flatten(0, 1)[slots], value)


def test_key_and_value_head_dims_may_differ_and_tokens_may_be_strided() -> None:
    k, v = torch.zeros(4, 2, NUM_KV_HEADS, 8), torch.zeros(4, 2, NUM_KV_HEADS, 6)
    fused = draw(5, NUM_KV_HEADS, 14).requires_grad_()
    slots = torch.tensor([7, 0, 3, 4, 2])
    append_with_slots(fused[..., :8], fused[..., 8:], slots, (k, v))
    assert torch.equal(k.flatten(0, 1)[slots], fused[..., :8])
    assert torch.equal(v.flatten(0, 1)[slots], fused[..., 8:])
    assert not k.requires_grad


def test_nothing_to_append() -> None:
    cache, (k, _) = as_cache(*torch.ones(2, 4, 2, NUM_KV_HEADS, HEAD_DIM), "NHD", False)
    nothing = torch.empty(0, NUM_KV_HEADS, HEAD_DIM)
    append_paged_kv_cache(nothing, nothing, [], [], cache, [], [0], [])
    assert (k == 1).all()


def test_positions_of_appended_tokens_are_the_last_ones() -> None:
    batch_indices, positions = get_batch_indices_positions(indptr_of([2, 0, 3]), torch.tensor([5, 4, 3]), nnz=5)
    assert batch_indices.dtype == positions.dtype == torch.int32
    assert batch_indices.tolist() == [0, 0, 2, 2, 2]
    assert positions.tolist() == [3, 4, 0, 1, 2]


PLACES: dict[str, Any] = {
    "batch_indices": [0, 1],
    "positions": [19, 7],
    "kv_indices": [3, 0, 4, 2],
    "kv_indptr": [0, 3, 4],
    "page_size": 8,
    "num_pages": 5,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_indices": [0, 2]}, r"batch_indices: expected values in \[0, 2\), got 2"),
        ({"batch_indices": [-1, 0]}, r"batch_indices: expected values in \[0, 2\), got -1"),
        ({"positions": [19, -7]}, "positions: expected values >= 0, got -7"),
        ({"positions": [19]}, "positions: expected 2 values, one per token, got 1 values"),
        ({"positions": [19, 8]}, "kv_indices: expected at least 2 pages of 8 tokens for request 1, got 1 pages"),
        ({"kv_indices": [3, 0, 4]}, r"kv_indices: expected at least kv_indptr\[-1\]=4 pages, got 3 pages"),
        ({"kv_indices": [3, 0, -4, 2]}, "kv_indices: expected page indices >= 0 for the tokens of request 0, got -4"),
        ({"num_pages": 4}, "kv_indices: expected page indices < num_pages=4, got page index 4"),
        ({"kv_indptr": [1, 3, 4]}, r"kv_indptr: expected a prefix sum that starts at 0 .*, got \[1, 3, 4\]"),
        ({"page_size": 0}, "page_size: expected an integer >= 1, got 0"),
    ],
)
def test_plan_append_refuses_what_lies_outside(changes: dict[str, Any], message: str) -> None:
    assert plan_append(**PLACES).tolist() == [4 * 8 + 3, 2 * 8 + 7]
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        plan_append(**PLACES | changes)


def test_a_refused_append_writes_nothing() -> None:
    cache, (k, v) = as_cache(*torch.ones(2, 4, 2, NUM_KV_HEADS, HEAD_DIM), "NHD", False)
    tokens = torch.zeros(2, NUM_KV_HEADS, HEAD_DIM)
    with pytest.raises(InvalidArgumentError, match=r"^kv_indices: expected page indices < num_pages=4, got .*$"):
        append_paged_kv_cache(tokens, tokens, [0, 1], [0, 0], cache, [3, 4], [0, 1, 2], [1, 1])
    with pytest.raises(InvalidArgumentError, match=r"^kv_last_page_len: expected values <= page_size=2, got \[1, 3\]$"):
        append_paged_kv_cache(tokens, tokens, [0, 1], [0, 0], cache, [3, 1], [0, 1, 2], [1, 3])
    assert (k == 1).all()
    assert (v == 1).all()


def test_tensors_of_the_wrong_shape_or_dtype_are_refused() -> None:
    cache, _ = as_cache(*torch.ones(2, 4, 2, NUM_KV_HEADS, HEAD_DIM), "NHD", False)
    slots, tokens = torch.tensor([0, 5]), torch.zeros(2, NUM_KV_HEADS, HEAD_DIM)
    with pytest.raises(
        InvalidArgumentError, match=r"^append_key: expected \[nnz, num_kv_heads=3, .*\], got \[2, 2, 8\]$"
    ):
        append_with_slots(tokens[:, :2], tokens, slots, cache)
    with pytest.raises(
        InvalidArgumentError, match=r"^append_value: expected \[nnz=2, num_kv_heads=3, .*\], got \[1, 3, 8\]$"
    ):
        append_with_slots(tokens, tokens[:1], slots, cache)
    with pytest.raises(InvalidArgumentError, match=r"^append_key: expected dtype float32, got bfloat16$"):
        append_with_slots(tokens.bfloat16(), tokens, slots, cache)
    with pytest.raises(InvalidArgumentError, match=r"^slots: expected dtype int64, got int32$"):
        append_with_slots(tokens, tokens, slots.int(), cache)
    with pytest.raises(InvalidArgumentError, match=r"^kv_layout: expected NHD or HND, got nhd$"):
        append_with_slots(tokens, tokens, slots, cache, "nhd")


class Call(NamedTuple):
    """The tensors of an append: two tokens into four pages of two."""

    k: torch.Tensor = torch.zeros(4, 2, NUM_KV_HEADS, HEAD_DIM)
    v: torch.Tensor = torch.zeros(4, 2, NUM_KV_HEADS, HEAD_DIM)
    append_key: torch.Tensor = torch.zeros(2, NUM_KV_HEADS, HEAD_DIM)
    append_value: torch.Tensor = torch.zeros(2, NUM_KV_HEADS, HEAD_DIM)
    slots: Any = torch.tensor([0, 5])


BASE = Call()
WIDER = torch.zeros(4, 2, NUM_KV_HEADS, 2 * HEAD_DIM)
UNFIT: dict[str, tuple[Call, str]] = {
    "dtype_of_v": (
        BASE._replace(v=BASE.v.bfloat16(), append_value=BASE.append_value.bfloat16()),
        "v_cache: expected dtype float32, got bfloat16",
    ),
    "strided_head": (BASE._replace(k=WIDER[..., ::2]), "k_cache: expected the head dimension contiguous, got .*"),
    "empty_pages": (BASE._replace(k=BASE.k[:, :0], v=BASE.v[:, :0]), "page_size: expected an integer >= 1, got 0"),
    "page_sizes": (BASE._replace(v=BASE.v[:, :1]), r"v_cache: expected \[num_pages=4, page_size=2, .*\], got .*"),
    "heads": (BASE._replace(v=BASE.v[:, :, :1]), r"v_cache: expected .*num_kv_heads=3.*, got \[4, 2, 1, 8\]"),
    "key_dtype": (BASE._replace(append_key=BASE.append_key.half()), "append_key: expected dtype float32, got float16"),
    "key_head_dim": (BASE._replace(append_key=BASE.append_key[..., :4]), r"append_key: expected .*, got \[2, 3, 4\]"),
    "value_count": (BASE._replace(append_value=BASE.append_value[:1]), r"append_value: expected .*, got \[1, 3, 8\]"),
    "slots_0d": (BASE._replace(slots=torch.tensor(0)), r"slots: expected \[nnz=2\], got \[\]"),
    "slots_list": (BASE._replace(slots=[0, 5]), "slots: expected a torch.Tensor, got list"),
    "slots_int32": (BASE._replace(slots=BASE.slots.int()), "slots: expected dtype int64, got int32"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_the_quick_look_passes_nothing_that_the_check_refuses(name: str) -> None:
    call, message = UNFIT[name]
    assert not append._surely_fit(*call)
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        append_with_slots(call.append_key, call.append_value, call.slots, (call.k, call.v))


@pytest.mark.parametrize("head_dim_vo", [HEAD_DIM, 5])
def test_the_quick_look_passes_what_a_step_appends(head_dim_vo: int) -> None:
    call = BASE._replace(v=BASE.v[..., :head_dim_vo], append_value=BASE.append_value[..., :head_dim_vo])
    assert append._surely_fit(*call)
    append._check(*call, "NHD")


def test_index_arithmetic_refuses_what_does_not_fit() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^nnz: expected append_indptr\[-1\]=3, got 4$"):
        get_batch_indices_positions([0, 3], [5], nnz=4)
    with pytest.raises(InvalidArgumentError, match=r"^seq_lens: expected at least the appended \[3\], got \[2\]$"):
        get_batch_indices_positions([0, 3], [2], nnz=3)
    with pytest.raises(InvalidArgumentError, match=r"^kv_last_page_len: expected \[2\], got \[3\]$"):
        get_seq_lens(torch.tensor([0, 1, 2]), torch.tensor([1, 1, 1]), 16)


def test_the_example_of_the_public_module_runs() -> None:
    results = doctest.testmod(distributed_fi.page)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.gpu
def test_cuda_tensors() -> None:
    k, v = torch.zeros(2, 4, 8, NUM_KV_HEADS, HEAD_DIM, device="cuda")
    key, value = draw(2, 3, NUM_KV_HEADS, HEAD_DIM).cuda()
    slots = plan_append([0, 1, 1], [9, 0, 1], [3, 0, 2], [0, 2, 3], 8, 4, "cuda")
    append_with_slots(key, value, slots, (k, v))
    assert torch.equal(k[[0, 2, 2], [1, 0, 1]], key)
    assert torch.equal(v[[0, 2, 2], [1, 0, 1]], value)
