# SPDX-License-Identifier: Apache-2.0
"""A group of Ray actors or tasks, met through Ray's internal key-value store; no actor of its own."""

from __future__ import annotations

import time
from functools import partial

import ray
import torch
from ray.experimental import internal_kv
from torch.distributed import TCPStore

from distributed_fi.comm.bootstrap.store import connect_store, serve_store
from distributed_fi.comm.deadline import Deadline, check_timeout
from distributed_fi.comm.fingerprint import ranks_text
from distributed_fi.comm.group import Group
from distributed_fi.comm.join import Member, group_device
from distributed_fi.errors import CollectiveTimeoutError, UnreachableError

_NAMESPACE = "distributed_fi"
_POLL_S = 0.02
_CONNECT_S = 2.0
# How long a rank believes in an address before it asks again whether rank 0 has published another.
_BELIEVE_S = 0.5


def group_from_ray(
    name: str,
    rank: int,
    world_size: int,
    *,
    device: torch.device | str = "cpu",
    timeout_s: float = 30.0,
) -> Group:
    """The group of `world_size` Ray workers of one job that call this with the same name.

    Args:
        name: tells groups of one job apart; may be used again, also after a failure.
        rank: in [0, world_size), each by one worker.
        device: cpu or one CUDA device.
        timeout_s: bound of joining and of every call, seconds.
    Raises:
        CollectiveTimeoutError: a rank did not come in time.
        CollectiveError: the ranks disagree, or could not be connected.
    Notes: nothing is left in Ray's key-value store. Calls Ray while joining and never after.
    """
    member = Member(rank, world_size, group_device(device), check_timeout(timeout_s), name)
    if world_size == 1:
        return Group.single(device, timeout_s=timeout_s, name=name)
    deadline = Deadline(timeout_s)
    host = ray.util.get_node_ip_address()
    key = f"group/{ray.get_runtime_context().get_job_id()}/{name}".encode()
    store = _publish(key, host, member, deadline) if rank == 0 else _find(key, member, deadline)
    return Group.from_store(store, rank, world_size, device=device, timeout_s=timeout_s, name=name, host=host)


def _publish(key: bytes, host: str, member: Member, deadline: Deadline) -> TCPStore:
    """Serve a store, publish its address until all ranks have connected, then tell them that it is withdrawn."""
    store, address = serve_store(host, deadline.timeout_s)
    internal_kv._internal_kv_put(key, address.encode(), overwrite=True, namespace=_NAMESPACE)
    missing = list(range(1, member.world_size))
    try:
        deadline.poll(lambda: _all_connected(store, missing), every_s=_POLL_S)
    finally:
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)
    if missing:
        late = [rank for rank in missing if not store.check([_connected_key(rank)])]
        problem = f"{ranks_text(late)} did not come within {member.timeout_s:g} s"
        raise member.failure(problem, CollectiveTimeoutError)
    store.set("withdrawn", "1")
    return store


def _find(key: bytes, member: Member, deadline: Deadline) -> TCPStore:
    """Connect to the store that rank 0 serves.

    An address that an earlier group of this name left behind when it failed is told apart by this: rank 0
    withdraws its address when all have connected, and only then does anybody go on.
    """
    while not deadline.expired:
        address = _address(key)
        if address is None:
            time.sleep(_POLL_S)
            continue
        try:
            store = connect_store(address, min(_CONNECT_S, max(0.1, deadline.left_s)))
            store.set(_connected_key(member.rank), "1")
            while _address(key) in (address, None) and not deadline.expired:
                if Deadline(_BELIEVE_S).poll(partial(store.check, ["withdrawn"]), every_s=_POLL_S):
                    return store
        except (RuntimeError, UnreachableError):
            time.sleep(_POLL_S)
    raise member.failure(f"rank 0 did not gather all ranks within {member.timeout_s:g} s", CollectiveTimeoutError)


def _all_connected(store: TCPStore, missing: list[int]) -> bool:
    while missing and store.check([_connected_key(missing[0])]):
        missing.pop(0)
    return not missing


def _connected_key(rank: int) -> str:
    return f"connected{rank}"


def _address(key: bytes) -> str | None:
    value = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
    return None if value is None else value.decode()
