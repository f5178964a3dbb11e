# SPDX-License-Identifier: Apache-2.0
"""How a rank joins a group: everybody signs in to the store, then the backend connects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
from torch.distributed import PrefixStore, Store

from distributed_fi.comm.backend import Backend, LocalBackend
from distributed_fi.comm.deadline import Deadline, check_timeout
from distributed_fi.comm.fingerprint import ranks_text
from distributed_fi.comm.gloo_backend import GlooBackend, gloo_process_group
from distributed_fi.comm.nccl_backend import NcclBackend, nccl_process_group
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError, InvalidArgumentError, UnsupportedError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLL_S = 0.005


@dataclass(frozen=True)
class Member:
    """One rank of a group, before it has joined.

    Raises:
        InvalidArgumentError: a field out of range.
    """

    rank: int
    world_size: int
    device: torch.device
    timeout_s: float
    name: str

    def __post_init__(self) -> None:
        if not _is_int(self.world_size) or self.world_size < 1:
            raise InvalidArgumentError("world_size", self.world_size, "an integer >= 1")
        if not _is_int(self.rank) or not 0 <= self.rank < self.world_size:
            raise InvalidArgumentError("rank", self.rank, f"an integer in [0, {self.world_size})")
        if not isinstance(self.name, str) or not self.name:
            raise InvalidArgumentError("name", self.name, "a text that is not empty")
        check_timeout(self.timeout_s)

    @property
    def terms(self) -> str:
        """What all ranks must have in common, in words."""
        return f"world_size {self.world_size} on {self.device.type}"

    def failure(self, problem: str, kind: type[CollectiveError] = CollectiveError) -> CollectiveError:
        """The error of a rank that could not join."""
        return kind(self.rank, "join", 0, f"group {self.name!r}: {problem}")


def group_device(device: torch.device | str) -> torch.device:
    """A device as torch reports it for tensors: the CPU, or CUDA with its index.

    Raises:
        InvalidArgumentError: no device. UnsupportedError: neither cpu nor cuda, or a GPU that is not there.
    """
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise InvalidArgumentError("device", device, "a device such as cpu or cuda:0") from error
    if where.type == "cpu":
        return torch.device("cpu")
    if where.type != "cuda":
        raise UnsupportedError("device", device, "cpu or cuda")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus <= (where.index or 0):
        raise UnsupportedError("device", device, f"one of the {num_gpus} GPUs that this process sees, or cpu")
    return torch.device("cuda", torch.cuda.current_device() if where.index is None else where.index)


def connect(store: Store, member: Member, *, host: str | None, limit_s: float | None = None) -> tuple[Store, Backend]:
    """Sign in, wait for all, and connect a backend of the group's own.

    Args:
        limit_s: bound of all this, seconds; None takes the member's, which bounds the backend's calls.
    Returns:
        The store, prefixed for this group, and the backend.
    """
    deadline = Deadline(member.timeout_s if limit_s is None else limit_s)
    try:
        prefixed = _sign_in(store, member, deadline)
        return prefixed, _own_backend(prefixed, member, host or _loopback_of(store), deadline)
    except CollectiveError:
        raise
    except RuntimeError as error:  # of the store or the backend; torch's own types derive from it
        kind = CollectiveTimeoutError if deadline.expired else CollectiveError
        raise member.failure(f"cannot connect: {error}", kind) from error


def main_device(process_group: Any) -> str:
    """cuda where the process group serves it by NCCL (gloo serves it too, by copies), else cpu."""
    has_cuda = any(device.type == "cuda" for device in process_group._device_types)
    is_nccl = has_cuda and process_group._get_backend(torch.device("cuda")).name() == "nccl"
    return "cuda" if is_nccl else "cpu"


def adopt(process_group: Any, member: Member) -> Backend:
    """The backend that runs on an existing process group."""
    pg = process_group._get_backend(member.device)
    kind = pg.name()
    ranks = (member.rank, member.world_size)
    if member.world_size == 1:
        return LocalBackend(member.device, member.name)
    if kind == "gloo" and member.device.type == "cpu":
        return GlooBackend(pg, *ranks, name=member.name, timeout_s=member.timeout_s, is_owner=False)
    if kind == "nccl" and member.device.type == "cuda":
        return NcclBackend(pg, *ranks, device=member.device, name=member.name, is_owner=False)
    raise UnsupportedError("process_group", f"{kind} for {member.device}", "gloo for cpu or nccl for cuda")


def _sign_in(store: Store, member: Member, deadline: Deadline) -> Store:
    """Meet the other ranks in one generation of the group, made by rank 0; a failed attempt uses up its own."""
    base = PrefixStore(f"distributed_fi/{member.name}", store)
    if member.rank == 0:
        prefixed: Store = PrefixStore(str(base.add("generation", 1)), base)
        prefixed.set("member0", f"{uuid4().hex} {member.terms}")
        roll = _call_roll(prefixed, member, deadline)
    else:
        prefixed, roll = _answer_roll(base, member, deadline)
    for peer, entry in enumerate(roll):
        theirs = entry.split(" ", 1)[1]
        if theirs != member.terms:
            raise member.failure(f"ranks disagree: rank {peer} has {theirs}, rank {member.rank} {member.terms}")
    return prefixed


def _call_roll(store: Store, member: Member, deadline: Deadline) -> list[str]:
    """Rank 0: wait for everybody's entry, then publish the list; before that nobody goes on."""
    roll: list[str] = []

    def is_called() -> bool:
        # It ends early where one has other terms: they do not agree on who everybody is.
        while len(roll) < member.world_size and store.check([f"member{len(roll)}"]):
            roll.append(store.get(f"member{len(roll)}").decode())
            if not roll[-1].endswith(f" {member.terms}"):
                return True
        return len(roll) == member.world_size

    if not deadline.poll(is_called, every_s=_POLL_S):
        raise _absence(store, member, deadline)
    store.set("roll", "\n".join(roll))
    return roll


def _answer_roll(base: Store, member: Member, deadline: Deadline) -> tuple[Store, list[str]]:
    """The others: sign in to rank 0's newest generation until a list names this very attempt."""
    mine = f"{uuid4().hex} {member.terms}"
    generation, roll = 0, [""]
    prefixed: Store = base

    def is_called() -> bool:
        nonlocal generation, prefixed, roll
        newest = base.add("generation", 0)
        if newest != generation:
            generation, prefixed = newest, PrefixStore(str(newest), base)
            prefixed.set(f"member{member.rank}", mine)
        if generation and prefixed.check(["roll"]):
            roll = prefixed.get("roll").decode().split("\n")
        return mine in roll

    if not deadline.poll(is_called, every_s=_POLL_S):
        raise _absence(prefixed, member, deadline)
    return prefixed, roll


def _absence(store: Store, member: Member, deadline: Deadline) -> CollectiveError:
    """Who has not signed in; rank 0 where the others have, since it has then left this generation."""
    late = [0]
    if store.check(["member0"]):
        terms = store.get("member0").decode().split(" ", 1)[1]
        if terms != member.terms:
            return member.failure(f"ranks disagree: rank 0 has {terms}, rank {member.rank} {member.terms}")
        late = [r for r in range(member.world_size) if not store.check([f"member{r}"])] or late
    problem = f"{ranks_text(late)} did not join within {deadline.timeout_s:g} s"
    return member.failure(problem, CollectiveTimeoutError)


def _own_backend(store: Store, member: Member, host: str | None, deadline: Deadline) -> Backend:
    ranks = (member.rank, member.world_size)
    if member.device.type == "cpu":
        gloo = gloo_process_group(store, *ranks, host=host, timeout_s=deadline.left().total_seconds())
        return GlooBackend(gloo, *ranks, name=member.name, timeout_s=member.timeout_s, is_owner=True)
    nccl = nccl_process_group(store, *ranks, device=member.device, timeout_s=deadline.left().total_seconds())
    return NcclBackend(nccl, *ranks, device=member.device, name=member.name, is_owner=True)


def _loopback_of(store: Store) -> str | None:
    """Loopback, where the store is there: then all ranks are on this host."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return "127.0.0.1" if getattr(store, "host", None) in _LOOPBACK else None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
