# SPDX-License-Identifier: Apache-2.0
"""All-pairs exchange over the point-to-point messages of a gloo process group.

Each collective sends every peer one message: a header (see fingerprint.py) and, up to INLINE_BYTES, the
payload behind it. The receiver has posted its slot early, while it finished the previous collective, so
the message goes out at once instead of waiting for gloo's "receiver is ready", and is larger than any
message, because gloo ends the process where a message does not fit and says nothing where it is short.
A larger payload follows in a second message of exact size, after both sides have compared headers.

Two slots per peer alternate: a peer may be one collective ahead, never two, as it needs our message for that.
Every rank waits for every other one directly, so each sees the death of a peer itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from distributed_fi.comm.deadline import Deadline
from distributed_fi.comm.fingerprint import (
    AGREED_BYTES,
    HEADER_BYTES,
    Call,
    describe_header,
    group_digest,
    payload_bytes,
    ranks_text,
    renumbered,
)
from distributed_fi.errors import CollectiveError, CollectiveTimeoutError

# 512 KiB on 2 ranks take 280 us in one message and 360 behind a header of their own (best of 100, 2 shared cores).
INLINE_BYTES = 1024 * 1024

_PAYLOAD_AT = 128  # a multiple of every item size, so that typed views of the payload are aligned
_SLOT_BYTES = _PAYLOAD_AT + INLINE_BYTES
# High tags, out of the way of the owner's own messages on an adopted process group.
_SLOT_TAG, _PAYLOAD_TAG, _ABORT_TAG = 0x5D_F1_00, 0x5D_F1_01, 0x5D_F1_02
_MAX_VIEWS = 1024


class _Views:
    """The slots as tensors of one dtype and shape."""

    __slots__ = ("header", "messages", "parts", "payload")

    def __init__(self, outbox: Tensor, inbox: Tensor, rank: int, x: Tensor, header: bytes):
        self.header = bytearray(header)
        end = _PAYLOAD_AT + x.nbytes
        message = outbox[rank, :end]
        self.messages = [message] * (len(outbox) - 1)
        self.payload = message[_PAYLOAD_AT:].view(x.dtype).view(x.shape)
        self.parts = [[slot[_PAYLOAD_AT:end].view(x.dtype).view(x.shape) for slot in slots] for slots in inbox]
        for parts in self.parts:
            parts[rank] = self.payload


class SlotExchange:
    """Slots and posted receives of one rank of one group; used by one thread at a time.

    Args:
        process_group: the gloo backend (ProcessGroupGloo) of the group.
        name: the group's name; its digest is part of every header.
        timeout_s: bound of one exchange.
        is_owner: whether the process group is this object's alone. On an adopted one nothing is posted before
            its collective and nothing left behind, which costs a handshake per collective.
    """

    def __init__(self, process_group: Any, rank: int, world_size: int, *, name: str, timeout_s: float, is_owner: bool):
        self._pg, self._is_owner = process_group, is_owner
        self._rank, self._name, self._timeout_s = rank, name, timeout_s
        self._group_id = group_digest(name)
        # Each rank starts with its right neighbour, so that not all send to rank 0 first.
        self._peers = [(rank + i) % world_size for i in range(1, world_size)]
        # Not zeroed, so that only what is used becomes resident; nothing uninitialised is sent, though.
        self._outbox = torch.empty(world_size, _SLOT_BYTES, dtype=torch.uint8)
        self._outbox[:, :_PAYLOAD_AT] = 0
        self._inbox = torch.empty(2, world_size, _SLOT_BYTES, dtype=torch.uint8)
        self._inbox_slots = [list(slots) for slots in self._inbox]
        self._out_bytes = [memoryview(slot.numpy()) for slot in self._outbox]
        self._in_bytes = [[memoryview(slot.numpy()) for slot in slots] for slots in self._inbox]
        self._views: dict[tuple[torch.dtype, torch.Size], _Views] = {}
        self._filling = 0
        self._has_diverged = False
        self._posted: list[Any] = []
        self._post_error: RuntimeError | None = None
        if is_owner:
            self._post()

    def gather(self, call: Call, x: Tensor) -> list[Tensor]:
        """Every rank's x, in rank order, in slots that the next call but one overwrites.

        Args:
            call: of one and the same operation in all calls of this method, with x's dtype and shape.
            x: any shape and strides, at most INLINE_BYTES.
        """
        views = self._views.get((x.dtype, x.shape)) or self._add_views(call, x)
        views.payload.copy_(x)
        header = renumbered(views.header, call.seq)
        self._out_bytes[self._rank][:HEADER_BYTES] = header
        filled = self._swap(call, views.messages, Deadline(self._timeout_s))
        for peer in self._peers:
            if self._in_bytes[filled][peer][:HEADER_BYTES] != header:
                self._check(call, filled, dict.fromkeys(self._peers, x.nbytes))
        return views.parts[filled]

    def exchange(self, call: Call, sends: Sequence[Tensor], recvs: Sequence[Tensor]) -> None:
        """Send sends[p] to rank p and fill recvs[p] from it; both uint8 [bytes], contiguous. Skips the own rank."""
        deadline = Deadline(self._timeout_s)
        messages = [self._message(call, peer, sends[peer]) for peer in self._peers]
        filled = self._swap(call, messages, deadline)
        self._check(call, filled, {peer: recvs[peer].numel() for peer in self._peers})
        large_recvs = []
        for peer in self._peers:
            size = recvs[peer].numel()
            if size > INLINE_BYTES:
                large_recvs.append(peer)
            elif size:
                recvs[peer].copy_(self._inbox[filled, peer, _PAYLOAD_AT : _PAYLOAD_AT + size])
        large_sends = [peer for peer in self._peers if sends[peer].numel() > INLINE_BYTES]
        if large_recvs or large_sends:
            self._swap_large(call, {p: sends[p] for p in large_sends}, {p: recvs[p] for p in large_recvs}, deadline)

    def abort(self) -> None:
        """Close the connections, so that peers who wait for this rank learn at once that it has given up."""
        if not self._is_owner:
            self.close()  # a timeout has closed them already; else they are not ours to close
            return
        if self._has_diverged:
            return  # every peer learns the same from the headers, unless a closing connection discards them
        # gloo closes all pairs of a group when one wait times out; dropping the group may not, since the
        # traceback of the error that brought us here can hold works, and they hold the connections.
        for peer in self._peers:
            with contextlib.suppress(RuntimeError):
                self._pg.recv([self._outbox[self._rank]], peer, _ABORT_TAG).wait(Deadline(1e-3).left())
        self.close()

    def close(self) -> None:
        """Forget the posted receives and the process group."""
        self._posted = []
        self._pg = None

    def _message(self, call: Call, peer: int, payload: Tensor) -> Tensor:
        size = payload.numel()
        self._out_bytes[peer][:HEADER_BYTES] = call.header(self._group_id, size)
        if not 0 < size <= INLINE_BYTES:
            return self._outbox[peer, :HEADER_BYTES]
        message = self._outbox[peer, : _PAYLOAD_AT + size]
        message[_PAYLOAD_AT:].copy_(payload)
        return message

    def _add_views(self, call: Call, x: Tensor) -> _Views:
        if len(self._views) >= _MAX_VIEWS:
            self._views.clear()
        header = call.header(self._group_id, x.nbytes)
        views = self._views[x.dtype, x.shape] = _Views(self._outbox, self._inbox, self._rank, x, header)
        return views

    def _post(self) -> None:
        """Post the receives of the next collective, in the order of the peers."""
        self._posted = []
        slots = self._inbox_slots[self._filling]
        try:
            for peer in self._peers:
                self._posted.append(self._pg.recv([slots[peer]], peer, _SLOT_TAG))
        except RuntimeError as error:
            self._post_error = error  # a peer may leave after its last collective: only a further one fails

    def _swap(self, call: Call, messages: Sequence[Tensor], deadline: Deadline) -> int:
        """Send each peer its message, take one of each; returns the index of the inbox they are in."""
        if not self._is_owner:
            self._post()
        if self._post_error is not None:
            raise self._gone(call, self._peers[len(self._posted)]) from self._post_error
        filled, posted = self._filling, self._posted
        sends = self._start(call, self._pg.send, messages, self._peers, _SLOT_TAG)
        self._wait(call, posted, self._peers, deadline)
        self._filling = 1 - filled
        if self._is_owner:
            self._post()
        self._wait(call, sends, self._peers, deadline)
        return filled

    def _swap_large(self, call: Call, sends: dict[int, Tensor], recvs: dict[int, Tensor], deadline: Deadline) -> None:
        recv_peers, send_peers = list(recvs), list(sends)
        works = self._start(call, self._pg.recv, list(recvs.values()), recv_peers, _PAYLOAD_TAG)
        works += self._start(call, self._pg.send, list(sends.values()), send_peers, _PAYLOAD_TAG)
        self._wait(call, works, recv_peers + send_peers, deadline)

    def _start(
        self, call: Call, method: Callable[..., Any], tensors: Sequence[Tensor], peers: list[int], tag: int
    ) -> list[Any]:
        works: list[Any] = []
        try:
            for peer, tensor in zip(peers, tensors, strict=True):
                works.append(method([tensor], peer, tag))
        except RuntimeError as error:
            raise self._gone(call, peers[len(works)]) from error
        return works

    def _wait(self, call: Call, works: list[Any], peers: list[int], deadline: Deadline) -> None:
        for i, work in enumerate(works):
            try:
                work.wait(deadline.left())
            except RuntimeError as error:
                if "timed out" not in str(error).lower():
                    raise self._gone(call, peers[i]) from error
                late = {peers[i], *(peers[k] for k in range(i + 1, len(works)) if not _has_ended(works[k]))}
                raise self._late(call, sorted(late), deadline) from error

    def _check(self, call: Call, filled: int, expected_bytes: dict[int, int]) -> None:
        """Raise unless every peer called the same, with the payload this rank expects from it."""
        agreed = call.header(self._group_id, 0)[:AGREED_BYTES]
        problems = []
        for peer in sorted(expected_bytes):
            header = bytes(self._in_bytes[filled][peer][:HEADER_BYTES])
            if header[:AGREED_BYTES] != agreed:
                self._has_diverged = True
                problems.append(f"rank {peer} called {describe_header(header, self._group_id)}")
            elif payload_bytes(header) != expected_bytes[peer]:
                got, wanted = payload_bytes(header), expected_bytes[peer]
                problems.append(f"rank {peer} sends {got} bytes to this rank, which expects {wanted}")
        if problems:
            problems.append(f"rank {self._rank} called {call} as collective {call.seq}")
            raise self._error(CollectiveError, call, f"ranks disagree: {'; '.join(problems)}")

    def _late(self, call: Call, peers: list[int], deadline: Deadline) -> CollectiveError:
        waited = f"{deadline.elapsed_s:.1f} s (limit {self._timeout_s:g} s)"
        return self._error(CollectiveTimeoutError, call, f"{call}: nothing from {ranks_text(peers)} within {waited}")

    def _gone(self, call: Call, peer: int) -> CollectiveError:
        problem = f"{call}: rank {peer} closed the connection: its process ended, or it gave up on the group"
        return self._error(CollectiveError, call, problem)

    def _error(self, kind: type[CollectiveError], call: Call, problem: str) -> CollectiveError:
        return kind(self._rank, call.op, call.seq, f"group {self._name!r}: {problem}")


def _has_ended(work: Any) -> bool:
    # After a timeout gloo answers at once; is_completed() would only tell whether somebody has waited.
    try:
        work.wait(Deadline(1e-3).left())
    except RuntimeError:
        return False
    return True
