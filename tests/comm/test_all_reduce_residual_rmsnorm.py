# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.group import Group
from distributed_fi.errors import InvalidArgumentError

NUM_TOKENS, HIDDEN_SIZE, EPS = 5, 48, 1e-5


def inputs(rank: int, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x of one rank; residual and weight of all."""
    shared = torch.Generator().manual_seed(99)
    residual = torch.randn(num_tokens, HIDDEN_SIZE, generator=shared)
    weight = torch.randn(HIDDEN_SIZE, generator=shared)
    x = torch.randn(num_tokens, HIDDEN_SIZE, generator=torch.Generator().manual_seed(rank))
    return x.to(dtype), residual.to(dtype), weight.to(dtype)


def reduce_and_norm(group: Group, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x, residual, weight = inputs(group.rank, num_tokens, dtype)
    norm, total = group.all_reduce_residual_rmsnorm(x, residual, weight, EPS)
    return norm, total, residual


@pytest.mark.parametrize("num_tokens", [NUM_TOKENS, 0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_the_formula_in_float64(ranks: RankPool, num_tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    by_rank = [inputs(rank, num_tokens, dtype) for rank in range(ranks.world_size)]
    residual, weight = by_rank[0][1].double(), by_rank[0][2].double()
    total = residual + sum(x.double() for x, _, _ in by_rank)
    norm = total / torch.sqrt((total * total).mean(-1, keepdim=True) + EPS) * weight
    for norm_out, residual_out, residual_after in ranks.run(reduce_and_norm, num_tokens, dtype):
        torch.testing.assert_close(residual_out.double(), total, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(norm_out.double(), norm, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(residual_after, by_rank[0][1], rtol=0, atol=0)


def reduce_and_norm_in_place(group: Group) -> bool:
    x, residual, weight = inputs(group.rank, NUM_TOKENS, torch.float32)
    expected = group.all_reduce_residual_rmsnorm(x, residual, weight, EPS)
    results = group.all_reduce_residual_rmsnorm(x, residual, weight, EPS, norm_out=x, residual_out=residual)
    return results[0] is x and results[1] is residual and all(map(torch.equal, results, expected))


def test_in_place_gives_the_same(ranks: RankPool) -> None:
    assert ranks.run(reduce_and_norm_in_place) == [True] * ranks.world_size


@pytest.mark.parametrize(
    ("residual", "weight", "message"),
    [
        (torch.ones(2, 5), torch.ones(4), r"residual: expected \[dim0=2, hidden_size=4\], got \[2, 5\]"),
        (torch.ones(2, 4), torch.ones(3), r"weight: expected \[hidden_size=4\], got \[3\]"),
        (torch.ones(2, 4).double(), torch.ones(4), "residual: expected dtype float32, got float64"),
    ],
)
def test_a_wrong_tensor_is_named(residual: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Group.single().all_reduce_residual_rmsnorm(torch.ones(2, 4), residual, weight)


def overlapping(case: str) -> dict[str, Tensor]:
    both = torch.ones(2, 8)
    x, residual = both[:, :4], torch.ones(2, 4)
    outputs = {
        "residual_out is x": {"residual_out": x},
        "residual_out shifted in residual": {"residual_out": residual.view(-1).as_strided((2, 4), (1, 1))},
        "norm_out is residual": {"norm_out": residual},
        "norm_out is residual_out": {"norm_out": both[:, 4:], "residual_out": both[:, 4:]},
        "norm_out shifted in x": {"norm_out": both[:, 1:5]},
        "norm_out beside x": {"norm_out": both[:, 4:]},
        "norm_out another view of x": {"norm_out": both[:, :4]},
    }
    return {"x": x, "residual": residual, "weight": torch.ones(4)} | outputs[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("residual_out is x", "residual_out: expected memory that does not overlap x, got memory of x"),
        ("residual_out shifted in residual", "residual_out: expected residual itself or memory that does not overlap"),
        ("norm_out is residual", "norm_out: expected memory that does not overlap residual, got memory of residual"),
        ("norm_out is residual_out", "norm_out: expected memory that does not overlap residual_out"),
        ("norm_out shifted in x", "norm_out: expected x itself or memory that does not overlap x"),
    ],
)
def test_outputs_that_would_overwrite_an_operand_are_named(case: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Group.single().all_reduce_residual_rmsnorm(**overlapping(case))


@pytest.mark.parametrize("case", ["norm_out beside x", "norm_out another view of x"])
def test_outputs_in_the_same_storage_that_overwrite_nothing_are_served(case: str) -> None:
    norm, total = Group.single().all_reduce_residual_rmsnorm(**overlapping(case))
    torch.testing.assert_close(norm, torch.ones(2, 4))
    assert total.tolist() == [[2.0] * 4] * 2


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"x: expected a torch.Tensor, got float"):
        Group.single().all_reduce_residual_rmsnorm(3.0, torch.ones(2, 4), torch.ones(4))
