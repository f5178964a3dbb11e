# SPDX-License-Identifier: Apache-2.0
"""The host-side comparison that CUDA groups make with check=True; ranks are threads here."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributed import HashStore, Store

from distributed_fi.comm.fingerprint import Call
from distributed_fi.comm.store_check import StoreCheck
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError

CALL = Call("all_reduce", 1, torch.bfloat16, (8, 128))


def compare_all(store: Store, rank: int, calls: list[Call]) -> str:
    check = StoreCheck(store, rank, 2, name="tp", timeout_s=20)
    try:
        for call in calls:
            check.compare(call)
    except CollectiveError as error:
        return str(error)
    return ""


def compare_in_two_threads(first: list[Call], second: list[Call]) -> list[str]:
    store = HashStore()
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(compare_all, [store] * 2, range(2), [first, second]))


def test_equal_calls_pass() -> None:
    calls = [CALL._replace(seq=seq) for seq in range(1, 6)]
    assert compare_in_two_threads(calls, calls) == ["", ""]


def test_both_ranks_are_told_both_calls() -> None:
    other = CALL._replace(shape=(4, 128))
    first, second = compare_in_two_threads([CALL], [other])
    assert first.startswith(
        "rank 0: all_reduce (collective 1): group 'tp': ranks disagree: rank 1 called all_reduce of"
    )
    assert second.startswith("rank 1: all_reduce (collective 1): group 'tp': ranks disagree: rank 0 called all_reduce")
    for text in (first, second):
        assert "bfloat16 [8, 128]" in text
        assert "bfloat16 [4, 128]" in text


def test_a_rank_that_does_not_call_is_named() -> None:
    with pytest.raises(CollectiveTimeoutError, match=r"rank 1 has not called within 0\.05 s"):
        StoreCheck(HashStore(), 0, 2, name="tp", timeout_s=0.05).compare(CALL)
