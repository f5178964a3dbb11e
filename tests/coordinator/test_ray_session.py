# SPDX-License-Identifier: Apache-2.0
"""Addresses that cannot be joined, refused without Ray; and waiting for ranks with their failures told apart."""

from __future__ import annotations

import os
import socket
import time

import pytest

from distributed_fi.coordinator import ray_session
from distributed_fi.coordinator.ray_session import RaySession, fetch
from distributed_fi.errors import (
    CorruptWeightsError,
    InvalidArgumentError,
    RankDiedError,
    StepTimeoutError,
    UnreachableError,
)


@pytest.mark.parametrize(
    "address", ["", "localhost", ":6379", "localhost:", "localhost:http", "localhost:65536", "ray://localhost:10001"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^ray_address: expected HOST:PORT of a cluster's head, or auto"):
        RaySession(address, 1)


def test_closed_port_is_unreachable_at_once() -> None:
    with socket.socket() as held:  # bound and not listening: nobody else gets the port
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=rf"^Ray at {address}: Connection refused$"):
            RaySession(address, 1)


def test_a_listener_that_is_not_ray_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "CONNECT_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=r"did not answer as Ray does within 0\.3 s$"):
            RaySession(address, 1)


class Rank:
    """A rank in one of the states that a start can find it in; the first call waits until its process is up."""

    def up(self) -> int:
        return os.getpid()

    def ready(self, value: int) -> int:
        return value

    def slow(self) -> None:
        time.sleep(60)

    def corrupt(self) -> None:
        raise CorruptWeightsError("model.gguf", "truncated after 17 bytes")

    def broken(self) -> None:
        raise KeyError("no such tensor")

    def die(self) -> None:
        os._exit(1)


@pytest.mark.ray
def test_results_and_failures_of_ranks_are_told_apart(local_ray: None) -> None:
    """One start of two processes for all of it: each costs a second."""
    import ray

    actors = [ray.remote(num_cpus=0)(Rank).remote() for _ in range(2)]
    first, second = actors
    try:
        ray.get([actor.up.remote() for actor in actors], timeout=60)
        results = fetch([first.ready.remote(5), second.ready.remote(6)], timeout_s=30, doing="starting")
        assert results == [5, 6]
        # Ours as itself, another's with its own type inside Ray's.
        with pytest.raises(CorruptWeightsError, match=r"^model\.gguf: truncated after 17 bytes$"):
            fetch([first.ready.remote(5), second.corrupt.remote()], timeout_s=30, doing="loading weights")
        with pytest.raises(KeyError, match="no such tensor"):
            fetch([first.broken.remote()], timeout_s=30, doing="loading weights")
        # Rank 0 sleeps for a minute: the failure of rank 1 does not wait for it, and a deadline names rank 0.
        slow = first.slow.remote()
        with pytest.raises(CorruptWeightsError):
            fetch([slow, second.corrupt.remote()], timeout_s=30, doing="loading weights")
        with pytest.raises(StepTimeoutError, match=r"^rank 0: not done with joining after 0\.5 s$") as late:
            fetch([slow, second.ready.remote(6)], timeout_s=0.5, doing="joining")
        assert late.value.rank == 0
        with pytest.raises(RankDiedError, match=r"^rank 1: its process ended while joining: ") as died:
            fetch([slow, second.die.remote()], timeout_s=30, doing="joining")
        assert died.value.rank == 1
    finally:
        for actor in actors:
            ray.kill(actor)
