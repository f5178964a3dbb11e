# SPDX-License-Identifier: Apache-2.0
"""How ranks find each other in a store, also after attempts that failed; ranks are threads here."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from torch.distributed import HashStore, Store

from distributed_fi.comm.group import Group
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError

SHORT_S = 0.3


def total_of(store: Store, rank: int, timeout_s: float = 20.0) -> float:
    """Join as one of two ranks and add up 1 and 2."""
    with Group.from_store(store, rank, 2, timeout_s=timeout_s, name="tp") as group:
        return float(group.all_reduce(torch.tensor(rank + 1.0)))


def totals(store: Store) -> list[float]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(total_of, [store] * 2, range(2)))


@pytest.mark.parametrize("attempts", [[0], [0, 0, 1], [1, 1], [0, 1, 1]], ids=str)
def test_ranks_meet_after_attempts_that_failed(attempts: list[int]) -> None:
    store = HashStore()
    for rank in attempts:
        with pytest.raises(CollectiveTimeoutError, match=f"rank {1 - rank} did not join within 0.3 s"):
            total_of(store, rank, SHORT_S)
    assert totals(store) == [3.0, 3.0]


def test_a_failed_attempt_between_two_groups_of_one_name_does_no_harm() -> None:
    store = HashStore()
    assert totals(store) == [3.0, 3.0]
    with pytest.raises(CollectiveTimeoutError, match="rank 0 did not join"):
        total_of(store, 1, SHORT_S)
    assert totals(store) == [3.0, 3.0]


def test_a_rank_that_waits_already_goes_over_to_the_next_attempt_of_rank_0() -> None:
    store = HashStore()
    with pytest.raises(CollectiveTimeoutError):
        total_of(store, 0, SHORT_S)
    with ThreadPoolExecutor(1) as threads:
        early: Future[float] = threads.submit(total_of, store, 1)
        time.sleep(SHORT_S)  # it finds what the failed attempt has left, and must not take it for rank 0
        assert not early.done()
        assert total_of(store, 0) == 3.0
        assert early.result() == 3.0


def failure_to_join(store: Store, rank: int, world_size: int) -> str:
    with pytest.raises(CollectiveError) as raised:
        Group.from_store(store, rank, world_size, timeout_s=1)
    return str(raised.value)


@pytest.mark.parametrize("world_sizes", [(2, 3), (3, 2), (2, 3, 3)], ids=str)
def test_ranks_that_disagree_about_the_group_are_told(world_sizes: tuple[int, ...]) -> None:
    n = len(world_sizes)
    with ThreadPoolExecutor(n) as threads:
        texts = list(threads.map(failure_to_join, [HashStore()] * n, range(n), world_sizes))
    first, second = world_sizes[:2]
    assert texts[0].endswith(f"rank 1 has world_size {second} on cpu, rank 0 world_size {first} on cpu")
    for rank, text in enumerate(texts[1:], start=1):
        assert text.endswith(f"rank 0 has world_size {first} on cpu, rank {rank} world_size {second} on cpu")
