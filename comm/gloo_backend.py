# SPDX-License-Identifier: Apache-2.0
"""Collectives on the CPU: gloo carries the messages, the algorithms are direct exchanges of our own.

gloo's own all-reduce adds in ring order and its collectives wake a worker thread besides the one that reads
the sockets. Here each rank exchanges with each other one directly and adds in rank order itself:

| all_reduce of | algorithm | bytes a rank receives |
|---|---|---|
| up to INLINE_BYTES | one shot: everybody gets everything and adds | (world_size - 1) * n, in one message each |
| more, 2 ranks | the same, in messages of exact size | n |
| more, 3 ranks and up | two shots: add one part each, then gather the parts | 2 * (world_size - 1) / world_size * n |

[1, 576] float32, 2 ranks on 2 cores that others use too, 720 calls each, interleaved in the same processes, best
and median: this 110 and 670 us, gloo's all_gather without the sum 230 and 880, its all_reduce 330 and 1750.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Store

from distributed_fi.comm.fingerprint import Call
from distributed_fi.comm.rank_order import sum_in_rank_order
from distributed_fi.comm.slot_exchange import INLINE_BYTES, SlotExchange


class GlooBackend:
    """Collectives over the point-to-point messages of a ProcessGroupGloo.

    Args:
        process_group: the ProcessGroupGloo.
        is_owner: whether abort() may close its connections; an adopted group stays its owner's.
    """

    name = "gloo"

    def __init__(self, process_group: Any, rank: int, world_size: int, *, name: str, timeout_s: float, is_owner: bool):
        self._rank, self._world_size = rank, world_size
        self._slots = SlotExchange(process_group, rank, world_size, name=name, timeout_s=timeout_s, is_owner=is_owner)
        self.inline_bytes = INLINE_BYTES
        self.is_two_shot = world_size > 2

    def all_reduce(self, call: Call, x: Tensor, out: Tensor) -> None:
        if x.nbytes <= self.inline_bytes:
            sum_in_rank_order(self._slots.gather(call, x), out)
        elif self.is_two_shot:
            self._all_reduce_two_shot(call, x.view(-1), out.view(-1))
        else:
            self._all_reduce_one_shot(call, x.view(-1), out.view(-1))

    def reduce_scatter(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        parts = x.split(list(counts))
        staging = x.new_empty(self._world_size, counts[self._rank])
        self._slots.exchange(call, [_bytes(part) for part in parts], [_bytes(row) for row in staging])
        sum_in_rank_order(self._with_own(staging, parts[self._rank]), out)

    def all_gather(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        parts = out.split(list(counts))
        parts[self._rank].copy_(x)
        self._slots.exchange(call, [x] * self._world_size, parts)

    def broadcast(self, call: Call, x: Tensor, src: int) -> None:
        nothing = x[:0]
        sends = [x if self._rank == src else nothing] * self._world_size
        self._slots.exchange(call, sends, [x if peer == src else nothing for peer in range(self._world_size)])

    def all_to_all(
        self, call: Call, x: Tensor, out: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> None:
        sends, recvs = x.split(list(send_counts)), out.split(list(recv_counts))
        recvs[self._rank].copy_(sends[self._rank])
        self._slots.exchange(call, sends, recvs)

    def barrier(self, call: Call) -> None:
        nothing = [torch.empty(0, dtype=torch.uint8)] * self._world_size
        self._slots.exchange(call, nothing, nothing)

    def synchronize(self, call: Call, timeout_s: float) -> None:
        """Calls on the CPU have ended when they return."""

    def abort(self) -> None:
        self._slots.abort()

    def close(self) -> None:
        self._slots.close()

    def _all_reduce_one_shot(self, call: Call, x: Tensor, out: Tensor) -> None:
        staging = x.new_empty(self._world_size, x.numel())
        self._slots.exchange(call, [_bytes(x)] * self._world_size, [_bytes(row) for row in staging])
        sum_in_rank_order(self._with_own(staging, x), out)

    def _all_reduce_two_shot(self, call: Call, x: Tensor, out: Tensor) -> None:
        counts = [x.numel() * (r + 1) // self._world_size - x.numel() * r // self._world_size for r in self._ranks]
        # Every send of x has ended when reduce_scatter returns, so out may be x.
        part = out.split(counts)[self._rank]
        self.reduce_scatter(call, x, part, counts)
        self.all_gather(call, _bytes(part), _bytes(out), [n * x.itemsize for n in counts])

    def _with_own(self, staging: Tensor, own: Tensor) -> list[Tensor]:
        parts = list(staging)
        parts[self._rank] = own
        return parts

    @property
    def _ranks(self) -> range:
        return range(self._world_size)


def gloo_process_group(store: Store, rank: int, world_size: int, *, host: str | None, timeout_s: float) -> Any:
    """A ProcessGroupGloo of its own, connected to all peers.

    Args:
        store: where the ranks leave their addresses; prefixed by the caller.
        host: address on which this rank listens; None leaves the choice to gloo (GLOO_SOCKET_IFNAME, else
            the address of the host's name).
    Raises:
        RuntimeError: a peer could not be reached in time.
    """
    from torch._C import _distributed_c10d as c10d

    gloo: Any = c10d.ProcessGroupGloo
    timeout = timedelta(seconds=timeout_s)
    if host is None:
        return gloo(store, rank, world_size, timeout)
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = timeout
    options._threads = 1  # these serve gloo's own collectives, which are not used
    return gloo(store, rank, world_size, options)


def _bytes(flat: Tensor) -> Tensor:
    return flat.view(torch.uint8)
