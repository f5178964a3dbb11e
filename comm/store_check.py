# SPDX-License-Identifier: Apache-2.0
"""Comparison of calls through the store, for devices where a header cannot travel with the payload."""

from __future__ import annotations

from functools import partial

from torch.distributed import Store

from distributed_fi.comm.deadline import Deadline
from distributed_fi.comm.fingerprint import AGREED_BYTES, Call, describe_header, group_digest
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError


class StoreCheck:
    """Compares every rank's call on the host before it is issued: about half a millisecond each, for debugging.

    Args:
        store: the group's own store (prefixed).
    """

    def __init__(self, store: Store, rank: int, world_size: int, *, name: str, timeout_s: float):
        self._store, self._rank, self._world_size = store, rank, world_size
        self._name, self._group_id, self._timeout_s = name, group_digest(name), timeout_s
        self._num_checks = 0

    def compare(self, call: Call) -> None:
        """Return when all ranks have made the same call.

        Raises:
            CollectiveError: they have not; names the ranks and both calls.
            CollectiveTimeoutError: a rank has not called within timeout_s.
        """
        self._num_checks += 1
        mine = call.header(self._group_id, 0)[:AGREED_BYTES]
        # Hexadecimal, since stores of older torch cut values at a zero byte.
        self._store.set(self._key(self._num_checks, self._rank), mine.hex())
        deadline = Deadline(self._timeout_s)
        problems = []
        for peer in range(self._world_size):
            key = self._key(self._num_checks, peer)
            if not deadline.poll(partial(self._store.check, [key]), every_s=1e-3):
                problem = f"group {self._name!r}: {call}: rank {peer} has not called within {self._timeout_s:g} s"
                raise CollectiveTimeoutError(self._rank, call.op, call.seq, problem)
            theirs = bytes.fromhex(self._store.get(key).decode())
            if theirs != mine:
                problems.append(f"rank {peer} called {describe_header(theirs + bytes(8), self._group_id)}")
        if problems:
            problems.append(f"rank {self._rank} called {call} as collective {call.seq}")
            text = f"group {self._name!r}: ranks disagree: {'; '.join(problems)}"
            raise CollectiveError(self._rank, call.op, call.seq, text)
        # Whoever is here has read everything of the check before the last.
        if self._num_checks > 2:
            self._store.delete_key(self._key(self._num_checks - 2, self._rank))

    def _key(self, check: int, rank: int) -> str:
        return f"check/{check}/{rank}"
