# SPDX-License-Identifier: Apache-2.0
"""Rank processes shared by the tests: starting one costs seconds, running a function in it a millisecond."""

from collections.abc import Callable, Iterator

import pytest

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.bootstrap.store import serve_store


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[Callable[[int], RankPool]]:
    """rank_pool(n): n ranks; their group is made again where a test has broken it."""
    pools: dict[int, RankPool] = {}

    def pool_of(world_size: int) -> RankPool:
        if world_size not in pools or pools[world_size].is_closed:
            pools[world_size] = RankPool(world_size, timeout_s=30)
        return pools[world_size]

    yield pool_of
    for pool in pools.values():
        pool.close()


@pytest.fixture(params=[1, 2, 3], ids="world{}".format)
def ranks(request: pytest.FixtureRequest, rank_pool: Callable[[int], RankPool]) -> RankPool:
    """One, two, then three ranks."""
    return rank_pool(request.param)


@pytest.fixture
def two_ranks(rank_pool: Callable[[int], RankPool]) -> RankPool:
    return rank_pool(2)


@pytest.fixture
def three_ranks(rank_pool: Callable[[int], RankPool]) -> RankPool:
    return rank_pool(3)


@pytest.fixture
def store_address() -> Iterator[str]:
    """A store in which ranks can make further groups, to break them."""
    store, address = serve_store(timeout_s=30)
    yield address
    del store
