# SPDX-License-Identifier: Apache-2.0
import pytest
import ray
import torch
from ray.experimental import internal_kv

from distributed_fi.comm.bootstrap.ray import group_from_ray
from distributed_fi.errors import CollectiveTimeoutError, InvalidArgumentError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def start_ranks(world_size: int) -> list:
    class Rank:  # nested, so that Ray ships it by value
        def __init__(self, rank: int):
            self.rank, self.groups = rank, []

        def join(self, name: str, timeout_s: float = 60.0) -> str:
            self.groups.append(group_from_ray(name, self.rank, world_size, device="cpu", timeout_s=timeout_s))
            return repr(self.groups[-1])

        def failure_to_join(self, name: str, timeout_s: float) -> str:
            with pytest.raises(CollectiveTimeoutError) as raised:
                self.join(name, timeout_s)
            return str(raised.value)

        def total(self) -> list[float]:
            return [float(group.all_reduce(torch.tensor(self.rank + 1.0))) for group in self.groups]

    actor = ray.remote(num_cpus=0)(Rank)
    return [actor.remote(rank) for rank in range(world_size)]


def keys_left() -> list[bytes]:
    return internal_kv._internal_kv_list(b"", namespace="distributed_fi")


def test_actors_form_a_group_and_may_use_its_name_again() -> None:
    ranks = start_ranks(2)
    for _ in range(2):
        joined = ray.get([rank.join.remote("tp") for rank in ranks], timeout=120)
        assert joined == [f"Group('tp', rank {rank} of 2, cpu, gloo)" for rank in range(2)]
        assert keys_left() == []
    assert ray.get([rank.total.remote() for rank in ranks], timeout=60) == [[3.0, 3.0]] * 2


def test_an_address_left_behind_by_a_failed_group_is_passed_over() -> None:
    ranks = start_ranks(2)
    key = f"group/{ray.get_runtime_context().get_job_id()}/stale".encode()
    internal_kv._internal_kv_put(key, b"127.0.0.1:9", overwrite=True, namespace="distributed_fi")
    early = ranks[1].join.remote("stale")
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(early, timeout=3)
    joined = ray.get([ranks[0].join.remote("stale"), early], timeout=120)
    assert all("'stale'" in text for text in joined)
    assert keys_left() == []


def test_ranks_that_do_not_come_are_named_and_leave_no_key() -> None:
    *present, _absent = start_ranks(3)
    texts = ray.get([rank.failure_to_join.remote("half", 3.0) for rank in present], timeout=60)
    assert texts == [
        "rank 0: join (collective 0): group 'half': rank 2 did not come within 3 s",
        "rank 1: join (collective 0): group 'half': rank 0 did not gather all ranks within 3 s",
    ]
    assert keys_left() == []


def test_a_group_of_one_needs_no_peer() -> None:
    assert repr(group_from_ray("alone", 0, 1)) == "Group('alone', rank 0 of 1, cpu, local)"


def test_a_wrong_rank_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"rank: expected an integer in \[0, 2\), got 5"):
        group_from_ray("tp", 5, 2)
