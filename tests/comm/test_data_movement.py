# SPDX-License-Identifier: Apache-2.0
"""all_gather, reduce_scatter, broadcast, all_to_all, barrier."""

import time

import pytest
import torch
from torch import Tensor

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.group import Group
from distributed_fi.errors import InvalidArgumentError

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
LARGE = 100_000  # rows of 3 or 4 floats: more than travels in one message
UNEVEN = (3, 0, 5)  # rows by rank; the first world_size of them


def filled(rank: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + rank)
    values = torch.randint(0, 100, shape, generator=generator)
    return values.bool() if dtype == torch.bool else values.to(dtype)


def bits(x: Tensor) -> Tensor:
    """float8 as its bytes: torch neither pickles nor compares it."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def gather(group: Group, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> Tensor:
    return bits(group.all_gather(filled(group.rank, shape, dtype), dim=dim))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_all_gather_joins_along_any_dimension(ranks: RankPool, dim: int, dtype: torch.dtype) -> None:
    expected = torch.cat([filled(rank, (2, 3, 4), dtype).float() for rank in range(ranks.world_size)], dim).to(dtype)
    for result in ranks.run(gather, (2, 3, 4), dim, dtype):
        torch.testing.assert_close(result, bits(expected), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(LARGE, 4), (1, 0), (0, 3)], ids=str)
def test_all_gather_of_large_and_empty(ranks: RankPool, shape: tuple[int, ...]) -> None:
    expected = torch.cat([filled(rank, shape) for rank in range(ranks.world_size)], 0)
    for result in ranks.run(gather, shape, 0, torch.float32):
        assert torch.equal(result, expected)


def gather_uneven(group: Group, dim: int) -> Tensor:
    sizes = UNEVEN[: group.world_size]
    shape = [2, 2]
    shape[dim] = sizes[group.rank]
    out = torch.empty(sum(sizes), 2) if dim == 0 else torch.empty(sum(sizes), 2).T
    return group.all_gather(filled(group.rank, tuple(shape)), dim=dim, sizes=sizes, out=out)


@pytest.mark.parametrize("dim", [0, 1])
def test_all_gather_of_uneven_parts_into_out(ranks: RankPool, dim: int) -> None:
    sizes = UNEVEN[: ranks.world_size]
    parts = [filled(rank, (n, 2) if dim == 0 else (2, n)) for rank, n in enumerate(sizes)]
    for result in ranks.run(gather_uneven, dim):
        assert torch.equal(result, torch.cat(parts, dim))


def scatter(group: Group, rows: int, sizes: tuple[int, ...] | None, dtype: torch.dtype) -> Tensor:
    return group.reduce_scatter(filled(group.rank, (rows, 4), dtype), sizes=sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("rows", [6, 0, 3 * LARGE])
def test_reduce_scatter(ranks: RankPool, rows: int, dtype: torch.dtype) -> None:
    total = sum(filled(rank, (rows, 4), dtype).double() for rank in range(ranks.world_size))
    share = rows // ranks.world_size
    for rank, result in enumerate(ranks.run(scatter, rows, None, dtype)):
        assert torch.equal(result, total[rank * share : (rank + 1) * share].to(dtype))


def test_reduce_scatter_of_uneven_rows(ranks: RankPool) -> None:
    sizes = UNEVEN[: ranks.world_size]
    total = sum(filled(rank, (sum(sizes), 4)) for rank in range(ranks.world_size))
    results = ranks.run(scatter, sum(sizes), sizes, torch.float32)
    assert [len(result) for result in results] == list(sizes)
    assert torch.equal(torch.cat(results), total)


def broadcast(group: Group, shape: tuple[int, ...], src: int, dtype: torch.dtype) -> Tensor:
    x = filled(group.rank, shape, dtype)
    assert group.broadcast(x, src) is x
    return bits(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (0,), (), (LARGE, 4)], ids=str)
def test_broadcast_overwrites_x_with_that_of_the_source(
    ranks: RankPool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    src = ranks.world_size - 1
    for result in ranks.run(broadcast, shape, src, dtype):
        torch.testing.assert_close(result, bits(filled(src, shape, dtype)), rtol=0, atol=0)


def broadcast_column(group: Group) -> Tensor:
    x = torch.full((3, 2), float(group.rank))
    group.broadcast(x[:, 1])
    return x


def test_broadcast_into_a_column(ranks: RankPool) -> None:
    for rank, result in enumerate(ranks.run(broadcast_column)):
        assert torch.equal(result, torch.tensor([[float(rank), 0.0]] * 3))


def exchange(group: Group, rows: int) -> Tensor:
    return group.all_to_all(filled(group.rank, (rows * group.world_size, 3)))


@pytest.mark.parametrize("rows", [2, 0, LARGE])
def test_all_to_all_of_even_parts(ranks: RankPool, rows: int) -> None:
    inputs = [filled(rank, (rows * ranks.world_size, 3)) for rank in range(ranks.world_size)]
    for rank, result in enumerate(ranks.run(exchange, rows)):
        assert torch.equal(result, torch.cat([x[rank * rows : (rank + 1) * rows] for x in inputs]))


def rows_between(sender: int, receiver: int) -> int:
    return (2 * sender + 3 * receiver) % 5


def exchange_uneven(group: Group, dtype: torch.dtype) -> Tensor:
    everyone = range(group.world_size)
    sends = [rows_between(group.rank, peer) for peer in everyone]
    recvs = [rows_between(peer, group.rank) for peer in everyone]
    x = torch.cat([filled(10 * group.rank + peer, (n, 3), dtype) for peer, n in enumerate(sends)])
    out = torch.empty(3, sum(recvs), dtype=dtype).T
    return group.all_to_all(x, send_counts=sends, recv_counts=recvs, out=out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool], ids=str)
def test_all_to_all_of_uneven_parts(ranks: RankPool, dtype: torch.dtype) -> None:
    everyone = range(ranks.world_size)
    for rank, result in enumerate(ranks.run(exchange_uneven, dtype)):
        expected = torch.cat([filled(10 * peer + rank, (rows_between(peer, rank), 3), dtype) for peer in everyone])
        torch.testing.assert_close(result, bits(expected), rtol=0, atol=0)


def wait_for_the_last(group: Group) -> tuple[float, float]:
    time.sleep(0.2 * group.rank)
    before = time.monotonic()
    group.barrier()
    return before, time.monotonic()


def test_nobody_leaves_a_barrier_before_the_last_has_come(ranks: RankPool) -> None:
    times = ranks.run(wait_for_the_last)
    assert min(left for _, left in times) >= max(came for came, _ in times)


def wrong_calls(group: Group) -> list[str]:
    x = torch.ones(3, 2)
    calls = (
        lambda: group.all_gather(x, dim=2),
        lambda: group.all_gather(x, sizes=[3]),
        lambda: group.all_gather(x, sizes=[2, 2]),
        lambda: group.all_gather(torch.tensor(1.0)),
        lambda: group.reduce_scatter(x),
        lambda: group.reduce_scatter(x, sizes=[1, 1]),
        lambda: group.reduce_scatter(x, sizes=[4, -1]),
        lambda: group.broadcast(x, src=2),
        lambda: group.all_to_all(x),
        lambda: group.all_to_all(x, send_counts=[1, 2]),
        lambda: group.all_to_all(x, send_counts=[1, 1], recv_counts=[1, 1]),
        lambda: group.all_gather(x, sizes=2),
        lambda: group.all_gather(x, dim="0"),
        lambda: group.reduce_scatter(x[:2], out=x[:1]),
        lambda: group.all_to_all(x.to(torch.complex64)),
    )
    messages = []
    for call in calls:
        try:
            call()
        except InvalidArgumentError as error:
            messages.append(str(error))
    group.barrier()  # none of them has broken the group
    return messages


def test_wrong_arguments_are_named_and_do_not_break_the_group(two_ranks: RankPool) -> None:
    messages = two_ranks.run(wrong_calls)
    assert messages[0] == [
        "dim: expected a dimension of x, which is [3, 2], got 2",
        "sizes: expected 2 sizes >= 0, one per rank, got [3]",
        "sizes: expected 3 for rank 0, as x has there, got [2, 2]",
        "dim: expected a dimension of x, which is [], got 0",
        "x: expected rows divisible by 2 ranks, or sizes=, got [3, 2]",
        "sizes: expected a sum of 3, the rows of x, got [1, 1]",
        "sizes: expected 2 sizes >= 0, one per rank, got [4, -1]",
        "src: expected a rank in [0, 2), got 2",
        "x: expected rows divisible by 2 ranks, or counts, got [3, 2]",
        "recv_counts: expected both send_counts and recv_counts, or neither, got None",
        "send_counts: expected a sum of 3, the rows of x, got [1, 1]",
        "sizes: expected 2 sizes >= 0, one per rank, got 2",
        "dim: expected an integer, got 0",
        "out: expected memory that does not overlap x, got memory of x",
        messages[0][-1],
    ]
    assert messages[0][-1].endswith("got complex64")
