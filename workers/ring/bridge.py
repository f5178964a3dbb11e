# SPDX-License-Identifier: Apache-2.0
"""Joins the coordinator's ring with the ring of another host, over one TCP connection.

    coordinator's host                                  other host
    RingWriter -> ring -> BridgeServer  == TCP ==>  BridgeClient -> RingWriter -> ring -> its ranks
                          (stands in for its ranks)   (in the relay rank's process)

The server attaches as the readers that the remote ranks would be, forwards every message and writes their replies,
progress, errors and deaths where theirs would be, so the coordinator sees one ring. The client owns the ring of its
host. A lost connection is the death of the remote ranks on one side and an abort on the other.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Sequence

from distributed_fi.errors import DfiError, PlanError, RankDiedError, RankError, StepTimeoutError, UnreachableError
from distributed_fi.workers.ring import layout as at
from distributed_fi.workers.ring.errors import RingEndedError, RingFinishedError
from distributed_fi.workers.ring.frame import Channel, Frame, Kind
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.segment import RingHandle
from distributed_fi.workers.ring.writer import RingWriter

TOKEN_BYTES = 32
BEAT_S = 0.1  # a quiet side says this often that it lives
HELLO_S = 5.0
LINGER_S = 1.0  # for last answers, when a side closes after the end of the ring
TEXT_BYTES = 1024  # room for a reason or a failure, however small messages and replies are
SILENCE_S = 30.0  # a dead process closes its connection at once; this finds a dead host or network
_SIZES = struct.Struct("<6Q")  # layout version, epoch, num_readers, num_slots, slot_bytes, reply_bytes


class BridgeServer:
    """On the coordinator's host: stands in for the ranks of one other host.

    Args:
        handle: the coordinator's ring, whose name must not be unlinked before the relay connected.
        reader_idxs: ranks of the other host; the i-th is reader i of that host's ring.
        bind_host: address to listen on; the port is in `address`.
        accept_timeout_s: how long the relay may take to connect.
    Notes: two threads until `close`. `address` and `token` are for BridgeClient.
    """

    def __init__(
        self,
        handle: RingHandle,
        reader_idxs: Sequence[int],
        bind_host: str,
        *,
        accept_timeout_s: float = 60.0,
        silence_s: float = SILENCE_S,
    ):
        self._handle, self._reader_idxs, self._silence_s = handle, list(reader_idxs), silence_s
        self.token = secrets.token_bytes(TOKEN_BYTES)
        self._listener = socket.create_server((bind_host, 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._channel: Channel | None = None
        self._readers: list[RingReader] = []
        self._closing, self._lock = False, threading.Lock()
        self._accepting_until = time.monotonic() + accept_timeout_s
        self._threads = [threading.Thread(target=self._serve, name="ring-bridge-forward", daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """End the connection and both threads; the remote ranks count as gone.

        If the ring has ended, the relay is told so first and may send what its ranks still answer.
        """
        with self._lock:
            self._closing = True
        if self._channel is not None:
            self._threads[0].join(BEAT_S)  # it tells the relay of an end and returns
            if not self._threads[0].is_alive():
                self._threads[-1].join(LINGER_S)  # the relay hangs up
            self._channel.close()
        for thread in self._threads:
            thread.join()
        for reader in self._readers:
            reader.close()

    def _serve(self) -> None:
        with self._listener:
            channel = self._accept()
        if channel is None:
            return
        try:
            self._stand_in(channel)
            self._forward(channel)
        except (OSError, DfiError) as error:
            self._lose(channel, error)

    def _stand_in(self, channel: Channel) -> None:
        returning = threading.Thread(target=self._take_replies, args=(channel,), name="ring-bridge-return", daemon=True)
        with self._lock:
            if self._closing:
                raise ConnectionError("the bridge was closed")
            self._channel = channel
            try:
                for idx in self._reader_idxs:
                    self._readers.append(RingReader.attach(self._handle, idx, spin_us=0, stands_in=True))
            except DfiError as error:
                channel.send(Kind.REFUSED, str(error).encode())
                raise
            channel.send(Kind.WELCOME)
            self._threads.append(returning)
            returning.start()

    def _accept(self) -> Channel | None:
        self._listener.settimeout(BEAT_S)
        while not self._closing and time.monotonic() < self._accepting_until:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            channel = Channel(connection, max_bytes=TEXT_BYTES, silence_s=HELLO_S)
            if self._admit(channel):
                return channel
            channel.close()
        return None

    def _admit(self, channel: Channel) -> bool:
        try:
            problem = self._refusal(channel.recv())
            if problem is not None:
                channel.send(Kind.REFUSED, problem.encode())
                return False
        except OSError:
            return False  # a stranger that hung up, sent no frame or kept silent
        largest = max(self._handle.layout.reply_bytes, 8 * len(self._reader_idxs), TEXT_BYTES)
        channel.set_limits(max_bytes=largest, silence_s=self._silence_s)
        return True

    def _refusal(self, hello: Frame) -> str | None:
        is_hello = hello.kind == Kind.HELLO and len(hello.payload) == TOKEN_BYTES + _SIZES.size
        if not is_hello or not hmac.compare_digest(hello.payload[:TOKEN_BYTES], self.token):
            return "wrong token"
        layout = self._handle.layout
        version, epoch, num_readers, num_slots, slot_bytes, reply_bytes = _SIZES.unpack(hello.payload[TOKEN_BYTES:])
        if (version, epoch, num_readers) != (at.VERSION, self._handle.epoch, len(self._reader_idxs)):
            expected = f"layout version {at.VERSION}, epoch {self._handle.epoch}, {len(self._reader_idxs)} ranks"
            return f"expected {expected}, got version {version}, epoch {epoch}, {num_readers} ranks"
        if num_slots < layout.num_slots or slot_bytes < layout.slot_bytes or reply_bytes > layout.reply_bytes:
            expected = f"num_slots >= {layout.num_slots}, slot_bytes >= {layout.slot_bytes}"
            got = f"{num_slots}, {slot_bytes} and {reply_bytes}"
            return f"expected {expected} and reply_bytes <= {layout.reply_bytes}, got {got}"
        return None

    def _forward(self, channel: Channel) -> None:
        lead, *others = self._readers
        while True:
            try:
                seq, view = lead.recv(BEAT_S)
            except StepTimeoutError:
                channel.send(Kind.BEAT)
                continue
            except RingFinishedError:
                channel.send(Kind.FINISH)
                return
            except RingEndedError as error:
                channel.send(Kind.ABORT, error.reason.encode())
                return
            for reader in others:
                reader.recv(0.0)  # it is there; this only moves their place
            channel.send(Kind.MESSAGE, view, seq=seq)

    def _take_replies(self, channel: Channel) -> None:
        try:
            while True:
                self._take(channel.recv())
        except (OSError, DfiError) as error:
            self._lose(channel, error)

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.PROGRESS and len(frame.payload) == 8 * len(self._readers):
            for reader, count in zip(self._readers, array("Q", frame.payload), strict=True):
                reader.beat(count)
            return
        if frame.reader_idx >= len(self._readers):
            raise ConnectionError(f"a frame of rank {frame.reader_idx}, {len(self._readers)} ranks expected")
        reader = self._readers[frame.reader_idx]
        if frame.kind == Kind.REPLY:
            reader.reply(frame.seq, frame.digest, frame.payload)
        elif frame.kind == Kind.FAILED:
            reader.fail(frame.payload.decode(errors="replace"))
        elif frame.kind == Kind.DEAD:
            reader.leave(frame.payload.decode(errors="replace"))
        else:
            raise ConnectionError(f"a frame of kind {frame.kind} out of place")

    def _lose(self, channel: Channel, error: Exception) -> None:
        channel.close()
        for reader in self._readers:
            reader.leave(f"connection to its host lost: {error}")


class BridgeClient:
    """In the relay rank's process: republishes the coordinator's messages in the ring of this host.

    Args:
        address, token: of the BridgeServer.
        writer: this host's ring, used by nobody else but for `wait_attached`; close it after this.
    Raises:
        UnreachableError: nobody answers at the address in time.
        PlanError: the server refuses: wrong token, epoch, number of ranks or sizes.
    Notes: two threads until `close`.
    """

    def __init__(
        self,
        address: tuple[str, int],
        token: bytes,
        writer: RingWriter,
        *,
        connect_timeout_s: float = 30.0,
        silence_s: float = SILENCE_S,
    ):
        self._writer, self._place = writer, f"{address[0]}:{address[1]}"
        self._is_closing = self._is_finished = False
        largest = max(writer.layout.slot_bytes, TEXT_BYTES)
        try:
            connection = socket.create_connection(address, connect_timeout_s)
        except OSError as error:
            raise UnreachableError("step relay", self._place, str(error)) from error
        self._channel = Channel(connection, max_bytes=largest, silence_s=connect_timeout_s)
        self._greet(token)
        self._channel.set_limits(max_bytes=largest, silence_s=silence_s)
        self._threads = [
            threading.Thread(target=self._guard, args=(run,), name=f"ring-bridge-{name}", daemon=True)
            for name, run in (("republish", self._republish), ("return", self._return_replies))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the connection and both threads; aborts this host's ring unless the coordinator finished it.

        What the ranks have answered or reported is sent before.
        """
        republishing, returning = self._threads
        if self._is_finished:
            returning.join(LINGER_S)  # it returns once every rank has answered everything
        self._is_closing = True
        returning.join()
        self._channel.close()
        republishing.join()

    def _greet(self, token: bytes) -> None:
        layout, epoch = self._writer.layout, self._writer.handle.epoch
        sizes = (at.VERSION, epoch, layout.num_readers, layout.num_slots, layout.slot_bytes, layout.reply_bytes)
        try:
            self._channel.send(Kind.HELLO, token + _SIZES.pack(*sizes))
            answer = self._channel.recv()
        except OSError as error:
            self._channel.close()
            raise UnreachableError("step relay", self._place, str(error)) from error
        if answer.kind != Kind.WELCOME:
            self._channel.close()
            raise PlanError(f"step relay at {self._place} refused: {answer.payload.decode(errors='replace')}")

    def _guard(self, run: Callable[[], None]) -> None:
        problem = "the relay left"
        try:
            run()
        except (OSError, DfiError) as error:
            problem = f"connection to the coordinator at {self._place} lost: {error}"
        if run == self._republish and self._is_finished:
            return  # replies are still on their way
        if not self._is_finished:
            self._writer.abort(problem)
        self._is_closing = True
        self._channel.close()

    def _republish(self) -> None:
        while not self._is_closing:
            frame = self._channel.recv()
            if frame.kind == Kind.MESSAGE:
                self._publish(frame)
            elif frame.kind == Kind.FINISH:
                self._is_finished = True
                self._writer.finish()
                return
            elif frame.kind == Kind.ABORT:
                self._writer.abort(frame.payload.decode(errors="replace"))
                return

    def _publish(self, frame: Frame) -> None:
        try:
            seq = self._writer.publish(frame.payload, timeout_s=self._channel.silence_s)
        except RankError:
            return  # the other thread reports it, and the coordinator ends the ring
        if seq != frame.seq:
            raise ConnectionError(f"message {frame.seq} arrived as {seq}")

    def _return_replies(self) -> None:
        writer = self._writer
        sent, seen = [0] * writer.layout.num_readers, [at.VACANT] * writer.layout.num_readers
        told, next_beat = set[int](), 0.0

        def has_changed() -> bool:
            return writer.acked() != sent or writer.states() != seen

        is_last = False
        while not is_last:
            is_last = self._is_closing  # one more round after it: a failed rank closes right after its report
            writer.wait_until(has_changed, 0.0 if is_last else BEAT_S, _nothing)
            seen[:] = writer.states()
            failures = writer.failures()  # before the replies: what a dead rank acked is final by then
            self._send_replies(sent)
            self._send_failures(failures, told)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + BEAT_S
                self._channel.send(Kind.PROGRESS, array("Q", writer.progress()).tobytes())
            if self._is_finished and all(rank in told or acked >= writer.published for rank, acked in enumerate(sent)):
                return

    def _send_failures(self, failures: Sequence[RankError], told: set[int]) -> None:
        for failure in failures:
            if failure.rank not in told:
                told.add(failure.rank)
                kind = Kind.DEAD if isinstance(failure, RankDiedError) else Kind.FAILED
                self._channel.send(kind, failure.problem.encode(), reader_idx=failure.rank)

    def _send_replies(self, sent: list[int]) -> None:
        for rank, acked in enumerate(self._writer.acked()):
            while sent[rank] < acked:
                digest, payload = self._writer.reply_of(rank, sent[rank] + 1)
                sent[rank] += 1
                self._channel.send(Kind.REPLY, payload, reader_idx=rank, seq=sent[rank], digest=digest)


def _nothing() -> None:
    """A failed rank must not end the wait here: it is to be reported."""
