# SPDX-License-Identifier: Apache-2.0
"""Ray for the life of an engine: a cluster that runs already, or a local one that ends with us."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from distributed_fi import env
from distributed_fi.coordinator.warden import Warden
from distributed_fi.errors import DfiError, InvalidArgumentError, ResourceError, StepTimeoutError, UnreachableError

CPU_RANKS_PER_CORE = 8
CONNECT_TIMEOUT_S = 5.0
# Nothing of ours goes through Ray's object store but small arguments.
OBJECT_STORE_BYTES = 128 * 2**20


class RaySession:
    """A connection to Ray; `close()` ends it, and the local cluster with it where we started one.

    Args:
        address: HOST:PORT or "auto" of a running cluster; None takes RAY_ADDRESS, which `ray job submit`
            sets, and starts a local Ray where that is unset.
        world_size: ranks to come; a local Ray is told to have room for them.
    Raises:
        UnreachableError: nothing answers at the address.
        InvalidArgumentError: the address cannot be one.
        ResourceError: a local machine is too small for so many ranks.
    """

    def __init__(self, address: str | None, world_size: int):
        self.owns_connection = not ray.is_initialized()
        self._warden: Warden | None = None  # of a local Ray
        if address is None and self.owns_connection:
            address = env.ray_address()
        if address is not None:
            _check_address(address)
        if not self.owns_connection:
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        with _own_termination():
            if address is None:
                self._start_local(world_size, options)
            else:
                self._join(address, options)

    def _start_local(self, world_size: int, options: dict[str, Any]) -> None:
        cores = os.cpu_count() or 1
        limit = cores * CPU_RANKS_PER_CORE
        if world_size > limit:
            have = f"{limit} ({CPU_RANKS_PER_CORE} for each of {cores} cores)"
            raise ResourceError("ranks on this machine", str(world_size), have)
        ray.init(
            address="local",
            num_cpus=max(cores, world_size),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **options,
        )
        self._warden = Warden()

    def _join(self, address: str, options: dict[str, Any]) -> None:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnreachableError("Ray", address, str(error).splitlines()[0]) from error

    def close(self) -> None:
        if self.owns_connection and ray.is_initialized():
            ray.shutdown()
        if self._warden is not None:
            self._warden.close()
            self._warden = None


@contextmanager
def _own_termination() -> Iterator[None]:
    """Keep the program's answer to SIGTERM, which ray.init replaces by an exit that nobody can unwind."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def fetch(refs: Sequence[Any], *, timeout_s: float, doing: str) -> list[Any]:
    """ray.get with a deadline; an error of ours inside an actor comes back as itself.

    Raises:
        StepTimeoutError: some refs were not ready in time; names the first of them as its rank.
    """
    _, late = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s)
    if late and len(late) < len(refs):
        # One that failed explains the others' silence better than the silence does.
        _raise_failure([ref for ref in refs if ref not in late])
    if late:
        raise StepTimeoutError(list(refs).index(late[0]), f"not done with {doing} after {timeout_s:g} s")
    _raise_failure(refs)
    return ray.get(list(refs))


def _raise_failure(refs: Sequence[Any]) -> None:
    try:
        ray.get(list(refs))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DfiError):
            raise error.cause from None
        raise


def _check_address(address: str) -> None:
    """Ray itself would wait half a minute for an address where nobody listens."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) >= 2**16:
        raise InvalidArgumentError("ray_address", address, "HOST:PORT of a cluster's head, or auto")
    connected = ray.get_runtime_context().gcs_address if ray.is_initialized() else address
    if connected != address:
        raise InvalidArgumentError("ray_address", address, f"{connected}, which this process is connected to")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UnreachableError("Ray", address, error.strerror or str(error)) from error
