# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.moe import reference
from distributed_fi.moe import ExpertOrder, moe_permute, moe_unpermute, sort_by_expert

NUM_EXPERTS = 5


def draw_routing(num_tokens: int, top_k: int, lowest: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(lowest, NUM_EXPERTS, (num_tokens, top_k), generator=generator, dtype=torch.int32)


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lowest", [0, -1])
@pytest.mark.parametrize(("num_tokens", "top_k"), [(7, 2), (1, 3), (33, 1)])
def test_slots_stand_by_expert_then_by_token(num_tokens: int, top_k: int, lowest: int) -> None:
    topk_idx = draw_routing(num_tokens, top_k, lowest)
    order = sort_by_expert(topk_idx, NUM_EXPERTS)
    flat = topk_idx.flatten().tolist()
    groups = [[slot for slot, e in enumerate(flat) if e == expert] for expert in (*range(NUM_EXPERTS), -1)]
    assert order.slot_idx.tolist() == [slot for group in groups for slot in group]
    assert order.counts.tolist() == [len(group) for group in groups[:-1]]
    assert order.m_indptr.tolist() == [0] + [sum(map(len, groups[: e + 1])) for e in range(NUM_EXPERTS)]
    assert [order.slot_idx.tolist()[row] for row in order.row_idx.flatten().tolist()] == list(range(len(flat)))
    assert order.m_indptr.dtype == order.slot_idx.dtype == order.row_idx.dtype == torch.int32


@pytest.mark.parametrize("lowest", [0, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_behind_the_permutation_give_the_mixture(dtype: torch.dtype, lowest: int) -> None:
    x, topk_idx, weights = draw(13, 6).to(dtype), draw_routing(13, 3, lowest), draw(13, 3, seed=2)
    order = sort_by_expert(topk_idx, NUM_EXPERTS)
    rows = moe_permute(x, order)
    assert rows.shape == (39, 6)
    results = torch.full_like(rows, torch.nan)  # rows without an expert hold anything
    bounds = order.m_indptr.tolist()
    for expert in range(NUM_EXPERTS):
        results[bounds[expert] : bounds[expert + 1]] = rows[bounds[expert] : bounds[expert + 1]] * 2.0**expert
    expected = reference.mixture(x, topk_idx, weights, lambda expert, token: token * 2.0**expert)
    out = moe_unpermute(results, order, weights, out_dtype=torch.float32)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(moe_unpermute(results, order, weights), out.to(dtype))


def test_without_weights_results_are_added_as_they_are() -> None:
    order = sort_by_expert(torch.tensor([[1, 0], [2, -1]]), 3)
    rows = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])  # of experts 0, 1, 2, and of none
    assert moe_unpermute(rows, order).tolist() == [[11.0], [100.0]]


def test_a_token_does_not_depend_on_its_batch() -> None:
    topk_idx, weights, x = draw_routing(50, 4), draw(50, 4), draw(50, 8, seed=3)

    def run(tokens: slice) -> torch.Tensor:
        order = sort_by_expert(topk_idx[tokens], NUM_EXPERTS)
        return moe_unpermute(moe_permute(x[tokens], order), order, weights[tokens])

    assert torch.equal(run(slice(17, 18)), run(slice(0, 50))[17:18])


def test_any_dtype_is_permuted() -> None:
    order = sort_by_expert(draw_routing(4, 2), NUM_EXPERTS)
    x = draw(4, 16).to(torch.float8_e4m3fn)
    rows = moe_permute(x, order)
    assert torch.equal(rows.float(), x.float()[order.token_idx.long()])


def test_no_tokens_and_no_experts_here() -> None:
    empty = sort_by_expert(torch.empty(0, 2, dtype=torch.int32), NUM_EXPERTS)
    assert empty.m_indptr.tolist() == [0] * (NUM_EXPERTS + 1)
    assert moe_unpermute(moe_permute(torch.empty(0, 8), empty), empty, torch.empty(0, 2)).shape == (0, 8)
    elsewhere = sort_by_expert(torch.full((3, 2), -1), NUM_EXPERTS)
    assert elsewhere.counts.tolist() == [0] * NUM_EXPERTS
    assert moe_unpermute(torch.full((6, 4), torch.nan), elsewhere, torch.ones(3, 2)).tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize(
    ("topk_idx", "num_experts", "message"),
    [
        (torch.tensor([[0, 5]]), 5, r"topk_idx: expected experts in \[0, num_experts=5\), or -1, got 5"),
        (torch.tensor([[0, -2]]), 5, r"topk_idx: expected experts in \[0, num_experts=5\), or -1, got -2"),
        (torch.tensor([0, 1]), 5, r"topk_idx: expected \[num_tokens, top_k\], got \[2\]"),
        (torch.empty(3, 0, dtype=torch.int32), 5, r"topk_idx: expected \[num_tokens, top_k >= 1\], got \[3, 0\]"),
        (torch.tensor([[0.5]]), 5, "topk_idx: expected dtype int32 or int64, got float32"),
        (torch.tensor([[0]]), 0, "num_experts: expected an integer >= 1, got 0"),
    ],
)
def test_wrong_routing(topk_idx: torch.Tensor, num_experts: int, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        sort_by_expert(topk_idx, num_experts)


def test_wrong_rows() -> None:
    order: ExpertOrder = sort_by_expert(draw_routing(4, 2), NUM_EXPERTS)
    with pytest.raises(InvalidArgumentError, match=r"hidden_states: expected \[4, hidden_size\], got \[5, 8\]"):
        moe_permute(torch.zeros(5, 8), order)
    with pytest.raises(InvalidArgumentError, match=r"expert_out: expected \[8, hidden_size\], got \[4, 8\]"):
        moe_unpermute(torch.zeros(4, 8), order)
    with pytest.raises(InvalidArgumentError, match=r"topk_weights: expected \[4, 2\], got \[4, 3\]"):
        moe_unpermute(torch.zeros(8, 8), order, torch.zeros(4, 3))
