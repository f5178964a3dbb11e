# SPDX-License-Identifier: Apache-2.0
"""The compiled page append on a GPU, against a loop over tokens."""

from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.dispatch.candidates import explain
from distributed_fi.kernels.kv_cache.append import append_with_slots
from distributed_fi.kernels.kv_cache.reference import append_reference

NUM_PAGES, NUM_HEADS = 40, 3

pytestmark = pytest.mark.gpu


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def draw_slots(num_tokens: int, page_size: int) -> torch.Tensor:
    return torch.randperm(NUM_PAGES * page_size, generator=torch.Generator().manual_seed(3))[:num_tokens].cuda()


def expected_of(cache: torch.Tensor, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Each token is a request's only one, at its place in that request's only page."""
    page_size = cache.shape[1]
    pages = [[slot // page_size] for slot in slots.tolist()]
    places = [slot % page_size for slot in slots.tolist()]
    return append_reference(cache, tokens, range(len(pages)), places, pages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kv_layout", ["NHD", "HND"])
@pytest.mark.parametrize(("head_dim_qk", "head_dim_vo"), [(128, 128), (64, 40), (33, 7)])
@pytest.mark.parametrize(("num_tokens", "page_size"), [(1, 16), (90, 16), (21, 1), (30, 5)])
def test_tokens_land_in_their_slots_and_nothing_else_changes(
    num_tokens: int, page_size: int, head_dim_qk: int, head_dim_vo: int, kv_layout: str, dtype: torch.dtype
) -> None:
    slots = draw_slots(num_tokens, page_size)
    caches, tokens, expected = [], [], []
    for seed, head_dim in enumerate((head_dim_qk, head_dim_vo)):
        cache = draw(NUM_PAGES, page_size, NUM_HEADS, head_dim, dtype=dtype, seed=seed)
        tokens.append(draw(num_tokens, NUM_HEADS, head_dim, dtype=dtype, seed=seed + 10))
        expected.append(expected_of(cache, tokens[-1], slots))
        caches.append(cache.transpose(1, 2).contiguous() if kv_layout == "HND" else cache)
    append_with_slots(tokens[0], tokens[1], slots, (caches[0], caches[1]), kv_layout, backend="cuda")
    for cache, wanted in zip(caches, expected, strict=True):
        assert torch.equal(cache.transpose(1, 2) if kv_layout == "HND" else cache, wanted)


def test_slices_of_a_fused_projection_and_a_combined_cache() -> None:
    qkv, slots = draw(11, 12, 64, dtype=torch.bfloat16), draw_slots(11, 16)
    _, k, v = qkv.split([6, NUM_HEADS, NUM_HEADS], dim=1)
    cache = draw(NUM_PAGES, 2, 16, NUM_HEADS, 64, dtype=torch.bfloat16, seed=4)
    expected = [expected_of(cache[:, 0], k, slots), expected_of(cache[:, 1], v, slots)]
    append_with_slots(k, v, slots, cache, backend="cuda")
    assert torch.equal(cache, torch.stack(expected, dim=1))


def test_no_tokens_and_what_auto_takes() -> None:
    cache = draw(NUM_PAGES, 16, NUM_HEADS, 64, dtype=torch.float32)
    before, none = cache.clone(), cache.new_empty(0, NUM_HEADS, 64)
    append_with_slots(none, none, draw_slots(0, 16), (cache, cache.clone()), backend="cuda")
    assert torch.equal(cache, before)
    assert explain("append_with_slots", cache).chosen == "cuda"
    assert explain("append_with_slots", cache.double()).chosen == "torch"


def test_a_captured_graph_replays_on_new_values() -> None:
    cache = torch.zeros(NUM_PAGES, 16, NUM_HEADS, 64, device="cuda")
    tokens, slots = draw(5, NUM_HEADS, 64, dtype=torch.float32), draw_slots(5, 16)
    append_with_slots(tokens, tokens, slots, (cache, cache.clone()))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        append_with_slots(tokens, tokens, slots, (cache, torch.zeros_like(cache)))
    tokens.copy_(draw(5, NUM_HEADS, 64, dtype=torch.float32, seed=9))
    slots.add_(1).remainder_(NUM_PAGES * 16)
    expected = expected_of(cache, tokens, slots)
    graph.replay()
    assert torch.equal(cache, expected)


def test_wrong_tensors_are_named() -> None:
    cache, tokens, slots = torch.zeros(4, 16, 3, 64).cuda(), torch.zeros(2, 3, 64).cuda(), torch.arange(2).cuda()
    cases = [
        ("append_value: expected dtype float32, got float16", tokens, tokens.half(), slots),
        (
            r"append_key: expected \[nnz, num_kv_heads=3, head_dim_qk=64\], got \[2, 3, 32\]",
            tokens[..., :32],
            tokens,
            slots,
        ),
        (r"slots: expected \[nnz=2\], got \[1\]", tokens, tokens, slots[:1]),
        ("slots: expected dtype int64, got int32", tokens, tokens, slots.int()),
        ("slots: expected a tensor on cuda:0, got cpu", tokens, tokens, slots.cpu()),
    ]
    for message, k, v, at in cases:
        with pytest.raises(InvalidArgumentError, match=message):
            append_with_slots(k, v, at, (cache, cache.clone()))
