# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import Tensor

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.group import Group
from distributed_fi.errors import InvalidArgumentError

TOKEN = (1, 576)  # a decode step of a small model
ODD = (7, 3, 5)
EMPTY = (0, 4)
SCALAR = ()
LARGE = (500_001,)  # 2 MB in float32: past every switch of algorithm
SHAPES = (TOKEN, ODD, EMPTY, SCALAR, LARGE)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64, torch.uint8)


def contribution(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(0, 50, shape, generator=generator, dtype=dtype)


def reduce_contributions(group: Group, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return group.all_reduce(contribution(group.rank, shape, dtype))


def added_by_rank(world_size: int, shape: tuple[int, ...], dtype: torch.dtype, wide: type) -> np.ndarray:
    parts = [contribution(rank, shape, dtype).double().numpy().astype(wide) for rank in range(world_size)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float_sums_are_those_of_numpy_in_rank_order(
    ranks: RankPool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    wide = np.float64 if dtype == torch.float64 else np.float32
    expected = torch.from_numpy(np.asarray(added_by_rank(ranks.world_size, shape, dtype, wide))).to(dtype)
    for result in ranks.run(reduce_contributions, shape, dtype):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_float_sums_are_near_the_sum_in_float64(ranks: RankPool, dtype: torch.dtype) -> None:
    exact = torch.from_numpy(added_by_rank(ranks.world_size, TOKEN, dtype, np.float64))
    # One rounding of the result, and in float32 one of each addition.
    tolerance = 4 * torch.finfo(dtype).eps
    for result in ranks.run(reduce_contributions, TOKEN, dtype):
        torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", [ODD, LARGE], ids=str)
def test_integer_sums_are_exact(ranks: RankPool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected = sum(contribution(rank, shape, dtype).long() for rank in range(ranks.world_size))
    for result in ranks.run(reduce_contributions, shape, dtype):
        assert result.dtype == dtype
        torch.testing.assert_close(result.long(), expected, rtol=0, atol=0)


def reduce_by_each_algorithm(group: Group, dtype: torch.dtype) -> list[Tensor]:
    x = contribution(group.rank, (100_001,), dtype)
    backend = group._backend
    chosen = backend.inline_bytes, backend.is_two_shot
    results = []
    for backend.inline_bytes, backend.is_two_shot in ((chosen[0], False), (0, False), (0, True)):
        results.append(group.all_reduce(x))
    backend.inline_bytes, backend.is_two_shot = chosen
    return results


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_all_algorithms_give_the_same_bits(rank_pool, world_size: int, dtype: torch.dtype) -> None:
    results = [r for by_rank in rank_pool(world_size).run(reduce_by_each_algorithm, dtype) for r in by_rank]
    assert len(results) == 3 * world_size
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def reduce_in_place(group: Group, shape: tuple[int, ...]) -> tuple[Tensor, bool]:
    x = contribution(group.rank, shape, torch.float32)
    result = group.all_reduce(x, out=x)
    return x, result is x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_place(ranks: RankPool, shape: tuple[int, ...]) -> None:
    expected = torch.from_numpy(np.asarray(added_by_rank(ranks.world_size, shape, torch.float32, np.float32)))
    for x, is_same in ranks.run(reduce_in_place, shape):
        assert is_same
        torch.testing.assert_close(x, expected, rtol=0, atol=0)


def reduce_out_of_place(group: Group) -> tuple[Tensor, Tensor, Tensor]:
    x = contribution(group.rank, ODD, torch.float32)
    transposed = group.all_reduce(x.transpose(0, 2))
    strided = torch.zeros(7, 3, 10)[..., ::2]
    group.all_reduce(x, out=strided)
    return x, transposed, strided


def test_inputs_stay_and_strides_do_not_matter(ranks: RankPool) -> None:
    expected = torch.from_numpy(added_by_rank(ranks.world_size, ODD, torch.float32, np.float32))
    for rank, (x, transposed, strided) in enumerate(ranks.run(reduce_out_of_place)):
        torch.testing.assert_close(x, contribution(rank, ODD, torch.float32), rtol=0, atol=0)
        torch.testing.assert_close(transposed, expected.transpose(0, 2), rtol=0, atol=0)
        torch.testing.assert_close(strided, expected, rtol=0, atol=0)


def reduce_many(group: Group, num_calls: int) -> Tensor:
    return torch.stack([group.all_reduce(torch.full((i % 5,), float(i))).sum() for i in range(num_calls)])


def test_results_of_many_calls_do_not_mix(ranks: RankPool) -> None:
    expected = torch.tensor([float(i * (i % 5) * ranks.world_size) for i in range(200)])
    for result in ranks.run(reduce_many, 200):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (3.0, None, "x: expected a torch.Tensor, got float"),
        (torch.ones(2, dtype=torch.bool), None, "x: expected dtype float32 or float64 .* got bool"),
        (torch.ones(2, device="meta"), None, "x: expected a tensor on cpu, got meta"),
        (torch.ones((1,) * 9), None, "x: expected at most 8 dimensions"),
        (torch.ones(2, 3), torch.ones(3, 2), r"out: expected \[2, 3\], got \[3, 2\]"),
        (torch.ones(2), torch.ones(2, dtype=torch.int32), "out: expected dtype float32, got int32"),
    ],
)
def test_a_wrong_tensor_is_named(x: Tensor, out: Tensor | None, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Group.single().all_reduce(x, out=out)
