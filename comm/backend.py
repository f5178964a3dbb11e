# SPDX-License-Identifier: Apache-2.0
"""What carries out the collectives of a Group, and the one for a group of a single rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from distributed_fi.comm.deadline import Deadline, wait_for_event
from distributed_fi.comm.fingerprint import Call
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError


class Backend(Protocol):
    """Carries out collectives on tensors that Group has checked: contiguous, on the group's device, flat
    (all_reduce: any shape).

    The two sums take typed tensors and counts in elements; the four that only move data take uint8 views
    and counts in bytes, so that every dtype can travel. `counts` has one entry per rank. Called in inference
    mode, in which all tensors can be written, those made in inference mode as well as those that require grad.

    Raises (all): CollectiveError, CollectiveTimeoutError.
    """

    name: str

    def all_reduce(self, call: Call, x: Tensor, out: Tensor) -> None:
        """out = sum over ranks of x; out may be x."""

    def reduce_scatter(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        """out = this rank's part of the sum over ranks of x, cut by counts."""

    def all_gather(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        """out = the ranks' x one after the other."""

    def broadcast(self, call: Call, x: Tensor, src: int) -> None:
        """x = rank src's x."""

    def all_to_all(
        self, call: Call, x: Tensor, out: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> None:
        """out = the ranks' parts for this rank one after the other; x is cut by send_counts."""

    def barrier(self, call: Call) -> None:
        """Return when every rank has called it."""

    def synchronize(self, call: Call, timeout_s: float) -> None:
        """Return when all work issued so far has ended; `call` is the last collective."""

    def abort(self) -> None:
        """Give up: unblock this rank's device and tell the peers. Never waits longer than seconds, never raises."""

    def close(self) -> None:
        """Release the connections. Never waits longer than seconds, never raises."""


class LocalBackend:
    """The backend of a group of one rank: every sum is the input, every exchange a copy."""

    name = "local"

    def __init__(self, device: torch.device, group_name: str):
        self._device, self._group_name = device, group_name

    def all_reduce(self, call: Call, x: Tensor, out: Tensor) -> None:
        if out.data_ptr() != x.data_ptr():
            out.copy_(x)

    def reduce_scatter(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        self.all_reduce(call, x, out)

    def all_gather(self, call: Call, x: Tensor, out: Tensor, counts: Sequence[int]) -> None:
        self.all_reduce(call, x, out)

    def broadcast(self, call: Call, x: Tensor, src: int) -> None:
        """x is rank 0's x already."""

    def all_to_all(
        self, call: Call, x: Tensor, out: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> None:
        self.all_reduce(call, x, out)

    def barrier(self, call: Call) -> None:
        """The only rank is here."""

    def synchronize(self, call: Call, timeout_s: float) -> None:
        if self._device.type != "cuda":
            return
        with device_errors(0, call, self._group_name):
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._device))
            is_done = wait_for_event(event, Deadline(timeout_s))
        if not is_done:
            problem = f"group {self._group_name!r}: the stream has not ended {call} within {timeout_s:g} s"
            raise CollectiveTimeoutError(0, "synchronize", call.seq, problem)

    def abort(self) -> None:
        """Nothing to unblock."""

    def close(self) -> None:
        """Nothing to release."""


@contextmanager
def device_errors(rank: int, call: Call, group_name: str) -> Iterator[None]:
    """Turn a CUDA error of earlier work, which cudaEventQuery reports, into synchronize's CollectiveError."""
    try:
        yield
    except RuntimeError as error:
        raise CollectiveError(rank, "synchronize", call.seq, f"group {group_name!r}: {error}") from error
