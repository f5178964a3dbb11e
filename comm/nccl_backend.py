# SPDX-License-Identifier: Apache-2.0
"""Collectives on CUDA devices by NCCL: asynchronous on the current stream, watched by events.

Issuing a collective never waits for the device. Each one leaves an event behind it in the stream;
`synchronize` polls them, because a driver call that blocks on a hung collective could not be left again.
During graph capture no events are recorded: a replayed graph is watched as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Store

from distributed_fi.comm.backend import device_errors
from distributed_fi.comm.deadline import Deadline, run_bounded, wait_for_event
from distributed_fi.comm.fingerprint import Call
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError

_MARKS = 64  # how far back the oldest unfinished collective can be named
_DRAIN_S = 5.0
_ABORT_S = 5.0  # ncclCommAbort can itself hang (NCCL issues 829, 1013)
# torch's own watchdog ends the process when it trips; ours must have had its say long before.
_WATCHDOG_FACTOR, _WATCHDOG_MIN_S = 10.0, 600.0


class NcclBackend:
    """Collectives over a ProcessGroupNCCL.

    Args:
        process_group: the ProcessGroupNCCL.
        is_owner: whether close() ends it; an adopted group stays its owner's.
    """

    name = "nccl"

    def __init__(
        self, process_group: Any, rank: int, world_size: int, *, device: torch.device, name: str, is_owner: bool
    ):
        from torch._C import _distributed_c10d as c10d

        self._pg, self._rank, self._world_size = process_group, rank, world_size
        self._device, self._name, self._is_owner = device, name, is_owner
        self._c10d: Any = c10d
        self._marks: list[tuple[torch.cuda.Event, Call]] = []
        self._next_mark = 0
        self._is_closed = False

    def all_reduce(self, call: Call, x: Tensor, out: Tensor) -> None:
        if out.data_ptr() != x.data_ptr():
            out.copy_(x)
        self._issue(call, self._pg.allreduce, [out], self._options("AllreduceOptions"))

    def reduce_scatter(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        options = self._options("ReduceScatterOptions")
        if min(counts) == max(counts):
            self._issue(call, self._pg._reduce_scatter_base, out, x, options)
        else:
            self._issue(call, self._pg.reduce_scatter, [out], [list(x.split(list(counts)))], options)

    def all_gather(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        options = self._options("AllgatherOptions")
        if min(counts) == max(counts):
            self._issue(call, self._pg._allgather_base, out, x, options)
        else:
            self._issue(call, self._pg.allgather, [list(out.split(list(counts)))], [x], options)

    def broadcast(self, call: Call, x: Tensor, src: int) -> None:
        options = self._options("BroadcastOptions")
        options.rootRank, options.rootTensor = src, 0
        self._issue(call, self._pg.broadcast, [x], options)

    def all_to_all(
        self, call: Call, x: Tensor, out: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> None:
        options = self._options("AllToAllOptions")
        self._issue(call, self._pg.alltoall_base, out, x, list(recv_counts), list(send_counts), options)

    def barrier(self, call: Call) -> None:
        token = torch.zeros(1, dtype=torch.int32, device=self._device)
        self.all_reduce(call, token, token)

    def synchronize(self, call: Call, timeout_s: float) -> None:
        with device_errors(self._rank, call, self._name):
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            is_done = wait_for_event(event, Deadline(timeout_s))
            late = call if is_done else self._oldest_unfinished() or call
        if not is_done:
            problem = f"group {self._name!r}: {late} has not ended within {timeout_s:g} s"
            raise CollectiveTimeoutError(self._rank, late.op, late.seq, problem)

    def abort(self) -> None:
        # Also on an adopted group: nothing else frees a stream that a hung collective blocks.
        self._is_closed = True
        with contextlib.suppress(RuntimeError):
            run_bounded(self._pg.abort, _ABORT_S)

    def close(self) -> None:
        if self._is_owner and not self._is_closed:
            # Work issued just before may still need the communicator, and so may a peer that waits for it.
            with contextlib.suppress(RuntimeError):
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(self._device))
                wait_for_event(event, Deadline(_DRAIN_S))
            self.abort()
        self._is_closed = True
        self._marks.clear()

    def _options(self, kind: str) -> Any:
        options = getattr(self._c10d, kind)()
        options.asyncOp = False  # run in the current stream itself, not in one of NCCL's beside it
        return options

    def _issue(self, call: Call, collective: Any, *args: Any) -> None:
        try:
            work = collective(*args)
            if work is not None:
                work.wait()  # orders the current stream behind it; the host goes on
        except RuntimeError as error:
            problem = f"group {self._name!r}: {call}: {error}"
            raise CollectiveError(self._rank, call.op, call.seq, problem) from error
        if not torch.cuda.is_current_stream_capturing():
            self._mark(call)

    def _mark(self, call: Call) -> None:
        if len(self._marks) < _MARKS:
            self._marks.append((torch.cuda.Event(), call))
        else:
            self._marks[self._next_mark] = (self._marks[self._next_mark][0], call)
        self._marks[self._next_mark][0].record(torch.cuda.current_stream(self._device))
        self._next_mark = (self._next_mark + 1) % _MARKS

    def _oldest_unfinished(self) -> Call | None:
        unfinished = [call for event, call in self._marks if not event.query()]
        return min(unfinished, key=lambda call: call.seq, default=None)


def nccl_process_group(store: Store, rank: int, world_size: int, *, device: torch.device, timeout_s: float) -> Any:
    """A ProcessGroupNCCL of its own, its communicator created at once rather than in the first collective.

    Raises:
        RuntimeError: NCCL could not connect the ranks, or not in time.
    """
    from torch._C import _distributed_c10d as c10d

    nccl: Any = c10d.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = timedelta(seconds=max(_WATCHDOG_MIN_S, _WATCHDOG_FACTOR * timeout_s))
    process_group = nccl(store, rank, world_size, options)

    def connect() -> None:
        with torch.cuda.device(device):
            process_group.eager_connect_single_device(device)

    # ncclCommInitRank takes no timeout, and a peer may die inside it.
    if not run_bounded(connect, timeout_s):
        raise RuntimeError(f"NCCL did not connect within {timeout_s:g} s")
    return process_group
