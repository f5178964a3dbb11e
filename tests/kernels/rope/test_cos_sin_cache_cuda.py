# SPDX-License-Identifier: Apache-2.0
"""The compiled rotary embedding on a GPU, against complex numbers in float64."""

from __future__ import annotations

import pytest
import torch

from distributed_fi.config import RopeConfig
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.dispatch.candidates import explain
from distributed_fi.kernels.rope import reference
from distributed_fi.rope import apply_rope_with_cos_sin_cache_inplace, make_cos_sin_cache

ROPE, MAX_POSITION = RopeConfig(theta=1e5), 5000
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 6 * 2**-8, torch.float16: 6 * 2**-11}

pytestmark = pytest.mark.gpu


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def draw_positions(num_tokens: int, dtype: torch.dtype = torch.int64, seed: int = 0) -> torch.Tensor:
    positions = torch.randint(MAX_POSITION, (num_tokens,), generator=torch.Generator().manual_seed(seed))
    return positions.to("cuda", dtype)


def table(rotary_dim: int) -> torch.Tensor:
    return make_cos_sin_cache(ROPE, rotary_dim, MAX_POSITION, device="cuda")


def rotated(x: torch.Tensor, positions: torch.Tensor, rotary_dim: int, interleave: bool = False) -> torch.Tensor:
    return reference.rotate(x.cpu(), positions.cpu(), ROPE, rotary_dim, interleave).cuda()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("is_neox", [True, False])
# A Llama head; partly rotated; halves no vector fits in; a head of odd size.
@pytest.mark.parametrize(("head_size", "rotary_dim"), [(128, 128), (64, 32), (64, 20), (33, 18)])
@pytest.mark.parametrize("num_tokens", [1, 7, 300])
def test_queries_and_keys_turn(
    num_tokens: int, head_size: int, rotary_dim: int, is_neox: bool, dtype: torch.dtype
) -> None:
    positions = draw_positions(num_tokens)
    q, k = draw(num_tokens, 9, head_size, dtype=dtype), draw(num_tokens, 3, head_size, dtype=dtype, seed=1)
    expected = [rotated(x, positions, rotary_dim, not is_neox) for x in (q, k)]
    apply_rope_with_cos_sin_cache_inplace(positions, q, k, head_size, table(rotary_dim), is_neox, backend="cuda")
    for x, wanted in zip((q, k), expected, strict=True):
        torch.testing.assert_close(x.double(), wanted, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_slices_of_a_fused_projection_leave_the_values_alone(index_dtype: torch.dtype) -> None:
    qkv, positions = draw(50, 14, 64, dtype=torch.bfloat16), draw_positions(50, index_dtype)
    before = qkv.clone()
    q, k, v = qkv.split([8, 3, 3], dim=1)
    apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, table(64), backend="cuda")
    expected = rotated(before[:, :11], positions, 64)
    torch.testing.assert_close(qkv[:, :11].double(), expected, rtol=6 * 2**-8, atol=6 * 2**-8)
    assert torch.equal(v, before[:, 11:])


def test_flat_heads_and_one_head() -> None:
    q, k = draw(5, 4 * 32, dtype=torch.float32), draw(5, 32, dtype=torch.float32, seed=1)
    positions = draw_positions(5)
    expected = [rotated(x.view(5, -1, 32), positions, 32) for x in (q, k)]
    apply_rope_with_cos_sin_cache_inplace(positions, q, k, 32, table(32), backend="cuda")
    for x, wanted in zip((q, k), expected, strict=True):
        torch.testing.assert_close(x.view(5, -1, 32).double(), wanted, rtol=2e-6, atol=2e-6)


def test_no_tokens_and_what_auto_takes() -> None:
    q = draw(4, 2, 64, dtype=torch.float32)
    assert explain("apply_rope_with_cos_sin_cache_inplace", q).chosen == "cuda"
    apply_rope_with_cos_sin_cache_inplace(draw_positions(0), q[:0], q[:0], 64, table(64), backend="cuda")


def test_a_captured_graph_replays_on_new_values() -> None:
    q, k, cache = draw(3, 4, 64, dtype=torch.float32), draw(3, 2, 64, dtype=torch.float32), table(64)
    positions = draw_positions(3)
    apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        apply_rope_with_cos_sin_cache_inplace(positions, q, k, 64, cache)
    q.copy_(draw(3, 4, 64, dtype=torch.float32, seed=5))
    positions.copy_(draw_positions(3, seed=6))
    expected = rotated(q, positions, 64)
    graph.replay()
    torch.testing.assert_close(q.double(), expected, rtol=2e-6, atol=2e-6)


def test_wrong_tensors_are_named() -> None:
    q, k, positions, cache = torch.ones(3, 4, 64), torch.ones(3, 2, 64), torch.arange(3), torch.ones(9, 64)
    q, k, positions, cache = q.cuda(), k.cuda(), positions.cuda(), cache.cuda()
    cases = [
        ("positions: expected dtype int32 or int64, got float32", (positions.float(), q, k, 64, cache)),
        (r"positions: expected \[num_tokens=3\], got \[2\]", (positions[:2], q, k, 64, cache)),
        ("positions: expected a tensor on cuda:0, got cpu", (positions.cpu(), q, k, 64, cache)),
        ("key: expected query's dtype and device", (positions, q, k.half(), 64, cache)),
        ("cos_sin_cache: expected dtype float32, got float16", (positions, q, k, 64, cache.half())),
        ("cos_sin_cache: expected .*rotary_dim even", (positions, q, k, 64, torch.ones(9, 66, device="cuda"))),
        ("head_size: expected an integer >= 1, got 0", (positions, q, k, 0, cache)),
        (r"query: expected \[num_tokens, num_query_heads, 32\], got \[3, 4, 64\]", (positions, q, k, 32, cache)),
    ]
    for message, operands in cases:
        with pytest.raises(InvalidArgumentError, match=message):
            apply_rope_with_cos_sin_cache_inplace(*operands)
