# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_fi.errors import InvalidArgumentError, ResourceError
from distributed_fi.scheduler.page_pool import PagePool

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)


def test_pages_are_handed_out_in_order_and_the_last_freed_first():
    pool = PagePool(5)
    assert pool.allocate(3) == [0, 1, 2]
    pool.free([1])
    assert pool.allocate(2) == [1, 3]


def test_none_is_taken_when_too_few_are_free():
    pool = PagePool(5)
    pool.allocate(3)
    with pytest.raises(ResourceError, match="KV pages: 3 needed, 2 available"):
        pool.allocate(3)
    assert (pool.num_free, pool.num_used) == (2, 3)


def test_no_pages_is_an_empty_list():
    assert PagePool(1).allocate(0) == []


@pytest.mark.parametrize("page", [-1, 1, 3, 5])
def test_a_page_that_is_not_in_use_cannot_be_freed(page: int):
    pool = PagePool(5)
    pool.free(pool.allocate(4)[1:2])
    pool.free([3])
    with pytest.raises(InvalidArgumentError, match=f"pages: expected a page in use, of 5, got {page}"):
        pool.free([page])
    assert pool.num_used == 2


def test_a_page_freed_twice_in_one_call_is_an_error():
    pool = PagePool(5)
    pool.allocate(2)
    with pytest.raises(InvalidArgumentError, match="got 1"):
        pool.free([1, 1])
    assert pool.num_used == 1


@pytest.mark.parametrize("num_pages", [0, -2])
def test_a_pool_of_nothing_is_refused(num_pages: int):
    with pytest.raises(InvalidArgumentError, match="num_pages: expected an integer >= 1"):
        PagePool(num_pages)


@PROPERTY
@given(st.integers(1, 20), st.lists(st.tuples(st.booleans(), st.integers(0, 8))))
def test_no_page_is_lost_or_given_twice(num_pages: int, calls: list[tuple[bool, int]]):
    pool, held = PagePool(num_pages), []
    for is_allocation, count in calls:
        if is_allocation and count <= num_pages - len(held):
            held += pool.allocate(count)
        elif not is_allocation:
            pool.free(held[:count])
            del held[:count]
        assert sorted(held) == sorted(set(held))
        assert all(0 <= page < num_pages for page in held)
        assert (pool.num_used, pool.num_free) == (len(held), num_pages - len(held))
