# SPDX-License-Identifier: Apache-2.0
"""Making, sharing and leaving groups."""

import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.bootstrap.store import connect_store
from distributed_fi.comm.group import Group
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError, InvalidArgumentError, UnsupportedError


def join(group: Group, address: str, name: str) -> Group:
    return Group.from_store(connect_store(address), group.rank, group.world_size, timeout_s=20, name=name)


def describe(group: Group) -> tuple[object, ...]:
    return group.rank, group.world_size, group.device, group.name, group.timeout_s, group.backend, repr(group)


def test_attributes(three_ranks: RankPool) -> None:
    for rank, described in enumerate(three_ranks.run(describe)):
        shown = f"Group('world', rank {rank} of 3, cpu, gloo)"
        assert described == (rank, 3, torch.device("cpu"), "world", 30.0, "gloo", shown)


def use_two_groups(group: Group, address: str) -> tuple[Tensor, Tensor, Tensor]:
    pair = [0, 2]
    with join(group, address, "all") as everyone:
        if group.rank not in pair:
            return everyone.all_reduce(torch.tensor([1.0])), torch.zeros(1), everyone.all_reduce(torch.tensor([2.0]))
        store = connect_store(address)
        with Group.from_store(store, pair.index(group.rank), 2, timeout_s=20, name="pair") as two:
            first = everyone.all_reduce(torch.tensor([1.0]))
            between = two.all_reduce(torch.tensor([10.0 + group.rank]))
            return first, between, everyone.all_reduce(torch.tensor([2.0]))


def test_two_groups_in_one_process(three_ranks: RankPool, store_address: str) -> None:
    results = three_ranks.run(use_two_groups, store_address)
    assert [r.tolist() for r in results[0]] == [r.tolist() for r in results[2]] == [[3.0], [22.0], [6.0]]
    assert [r.tolist() for r in results[1]] == [[3.0], [0.0], [6.0]]


def join_and_leave(group: Group, address: str, times: int) -> list[float]:
    totals = []
    for i in range(times):
        with join(group, address, "again") as one:
            totals.append(float(one.all_reduce(torch.tensor(float(i)))))
    return totals


def test_one_name_can_be_used_again_and_leaving_disturbs_nobody(three_ranks: RankPool, store_address: str) -> None:
    assert three_ranks.run(join_and_leave, store_address, 10) == [[3.0 * i for i in range(10)]] * 3


def adopt(group: Group, address: str) -> tuple[list[float], str]:
    assert not dist.is_initialized()  # the pool's own group has not touched torch's default one
    dist.init_process_group("gloo", store=connect_store(address), rank=group.rank, world_size=group.world_size)
    x = torch.tensor([float(group.rank + 1)])
    totals = []
    try:
        for name in ("first", "second"):
            with Group.from_process_group(dist.group.WORLD, timeout_s=20, name=name) as adopted:
                totals.append(float(adopted.all_reduce(x)))
                dist.all_reduce(x)
                totals.append(float(adopted.all_reduce(x)))
        dist.all_reduce(x)  # closing the adopted groups leaves their owner's as it is
        return [*totals, float(x)], adopted.backend
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("world_size", "backend"), [(1, "local"), (3, "gloo")])
def test_from_process_group_runs_beside_its_owner(rank_pool, store_address: str, world_size: int, backend: str) -> None:
    x = world_size * (world_size + 1) / 2  # on every rank, after the owner's first all_reduce
    n = world_size
    expected = [x, x * n, x * n, x * n * n, x * n * n]
    assert rank_pool(n).run(adopt, store_address) == [(expected, backend)] * n


class MpiProcessGroup:
    """As much of a ProcessGroup as is asked of it before its backend is found to be another."""

    _device_types = (torch.device("cpu"),)

    def rank(self) -> int:
        return 0

    def _get_backend(self, device: torch.device) -> "MpiProcessGroup":
        return self

    def size(self) -> int:
        return 2

    def name(self) -> str:
        return "mpi"


def test_from_process_group_names_a_backend_it_cannot_run_on() -> None:
    with pytest.raises(
        UnsupportedError, match="process_group: expected gloo for cpu or nccl for cuda, got mpi for cpu"
    ):
        Group.from_process_group(MpiProcessGroup())


def test_a_single_rank_needs_no_store() -> None:
    x, out = torch.arange(6.0).view(3, 2), torch.empty(3, 2)
    with Group.single() as group:
        assert (group.rank, group.world_size, group.backend) == (0, 1, "local")
        assert torch.equal(group.all_reduce(x), x)
        assert group.all_reduce(x) is not x
        assert group.all_reduce(x, out=out) is out
        assert torch.equal(group.all_gather(x, dim=1), x)
        group.barrier()
        group.synchronize()


def test_close_may_be_repeated_and_ends_the_group() -> None:
    group = Group.single(name="alone")
    group.close()
    group.close()
    with pytest.raises(CollectiveError, match="group 'alone': it was closed"):
        group.all_reduce(torch.ones(1))


def test_a_rank_that_does_not_join_is_named() -> None:
    start = time.monotonic()
    with pytest.raises(
        CollectiveTimeoutError, match=r"rank 0: join .* group 'tp': ranks 1, 2 did not join within 0.3 s"
    ):
        Group.from_store(HashStore(), 0, 3, timeout_s=0.3, name="tp")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2}, r"rank: expected an integer in \[0, 2\), got 2"),
        ({"rank": -1}, r"rank: expected an integer in \[0, 2\), got -1"),
        ({"world_size": 0}, "world_size: expected an integer >= 1, got 0"),
        ({"timeout_s": 0}, "timeout_s: expected a number of seconds > 0"),
        ({"timeout_s": float("nan")}, "timeout_s: expected a number of seconds > 0"),
        ({"device": "gpu"}, "device: expected a device such as cpu or cuda:0, got gpu"),
        ({"device": "meta"}, "device: expected cpu or cuda, got meta"),
        ({"name": ""}, "name: expected a text that is not empty, got "),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Group.from_store(HashStore(), **({"rank": 0, "world_size": 2} | arguments))
