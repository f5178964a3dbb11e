# SPDX-License-Identifier: Apache-2.0
"""Ray for the life of an engine: a cluster that runs already, or a local one that ends with us."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from distributed_fi import env
from distributed_fi.coordinator.warden import Warden
from distributed_fi.errors import (
    DfiError,
    InvalidArgumentError,
    RankDiedError,
    ResourceError,
    StepTimeoutError,
    UnreachableError,
)

CPU_RANKS_PER_CORE = 8
CONNECT_TIMEOUT_S = 5.0
# Nothing of ours goes through Ray's object store but small arguments.
OBJECT_STORE_BYTES = 128 * 2**20


class RaySession:
    """A connection to Ray; `close()` ends it, and the local cluster with it where we started one.

    A process that is connected to Ray already uses that connection, and keeps it.

    Args:
        address: HOST:PORT or "auto" of a running cluster; None takes RAY_ADDRESS, which `ray job submit`
            sets, and starts a local Ray where that is unset or "local".
        world_size: ranks to come; a local Ray is told to have room for them.
    Raises:
        UnreachableError: nothing answers at the address, or not Ray.
        InvalidArgumentError: the address cannot be one.
        ResourceError: a local machine is too small for so many ranks.
    """

    def __init__(self, address: str | None, world_size: int):
        self._warden: Warden | None = None  # of a local Ray
        if address is not None:
            _check_address("ray_address", address)
        self.owns_connection = not ray.is_initialized()
        if not self.owns_connection:
            return
        if address is None and env.ray_address() not in (None, "local"):
            address = env.ray_address()
            _check_address("RAY_ADDRESS", str(address))
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            with _own_termination():
                if address is None:
                    self._start_local(world_size, options)
                else:
                    self._join(address, options)
        except BaseException:
            self.close()
            raise

    def _start_local(self, world_size: int, options: dict[str, Any]) -> None:
        cores = os.cpu_count() or 1
        limit = cores * CPU_RANKS_PER_CORE
        if world_size > limit:
            have = f"{limit} ({CPU_RANKS_PER_CORE} for each of {cores} cores)"
            raise ResourceError("ranks on this machine", str(world_size), have)
        self._warden = Warden()
        with self._warden:
            ray.init(
                address="local",
                num_cpus=limit,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **options,
            )

    def _join(self, address: str, options: dict[str, Any]) -> None:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnreachableError("Ray", address, str(error).splitlines()[0]) from error

    @property
    def owns_cluster(self) -> bool:
        """Whether this session started the local Ray that it is connected to."""
        return self._warden is not None

    def close(self) -> None:
        """Leave the cluster, or end the local one; safe to call twice."""
        if self.owns_connection and ray.is_initialized():
            ray.shutdown()
        if self._warden is not None:
            self._warden.close()
            self._warden = None


def fetch(refs: Sequence[Any], *, timeout_s: float, doing: str) -> list[Any]:
    """ray.get with a deadline, one ref a rank; ends with the first failure, as itself where it is ours.

    Raises:
        RankDiedError: the process of a rank ended.
        StepTimeoutError: some rank was not ready in time; names the first.
    """
    deadline = time.monotonic() + timeout_s
    late = list(refs)
    while late:
        done, late = ray.wait(late, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise StepTimeoutError(list(refs).index(late[0]), f"not done with {doing} after {timeout_s:g} s")
        for ref in done:
            _raise_failure(ref, list(refs).index(ref), doing)
    return ray.get(list(refs))


def _raise_failure(ref: Any, rank: int, doing: str) -> None:
    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DfiError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise RankDiedError(rank, f"its process ended while {doing}: {str(error).splitlines()[0]}") from error


@contextmanager
def _own_termination() -> Iterator[None]:
    """Keep the program's answer to SIGTERM, which ray.init replaces by an exit that nobody can unwind."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_address(name: str, address: str) -> None:
    """Ray itself would wait for minutes where nobody listens, or somebody else."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) >= 2**16:
        raise InvalidArgumentError(name, address, "HOST:PORT of a cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UnreachableError("Ray", address, error.strerror or str(error)) from error
    import grpc  # the head's control store speaks gRPC; 0.1 s to import

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            problem = f"what listens there did not answer as Ray does within {CONNECT_TIMEOUT_S:g} s"
            raise UnreachableError("Ray", address, problem) from None
