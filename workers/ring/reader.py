# SPDX-License-Identifier: Apache-2.0
"""A rank's end of the ring: receives every message in order and answers each."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from distributed_fi.errors import InvalidArgumentError, PlanError, RankError, StepTimeoutError
from distributed_fi.workers.ring import futex
from distributed_fi.workers.ring import layout as at
from distributed_fi.workers.ring.errors import RingAbortedError, RingEndedError, RingFinishedError, WriterDiedError
from distributed_fi.workers.ring.layout import WORD_BYTES
from distributed_fi.workers.ring.payload import Payload, flat_view
from distributed_fi.workers.ring.process import ProcessId
from distributed_fi.workers.ring.segment import RingHandle, Segment, read_process, write_process
from distributed_fi.workers.ring.spin import default_spin_us, spin


class RingReader:
    """Reader `reader_idx` of a ring; one thread receives, one (the same or another) replies."""

    def __init__(self, segment: Segment, reader_idx: int, *, spin_us: int, stands_in: bool):
        self._segment, self._spin_us, self._stands_in = segment, spin_us, stands_in
        self.reader_idx = reader_idx
        self.layout = layout = segment.handle.layout
        self._words, self._words32, self._octets = segment.words, segment.words32, segment.octets
        self._area = layout.reader_word(reader_idx)
        self._slots, self._replies = layout.slot_words(), layout.reply_words(reader_idx)
        self._writer = read_process(segment.words, at.OWNER_WORD)
        self._received = self._acked = self._rings = 0
        self._next_look = 0.0
        self._lock = threading.Lock()

    @staticmethod
    def attach(
        handle: RingHandle, reader_idx: int, *, spin_us: int | None = None, stands_in: bool = False
    ) -> RingReader:
        """Map the ring and take the place of reader `reader_idx`.

        Args:
            spin_us: None takes DFI_SPIN_US or a default for this machine.
            stands_in: for a rank of another host: only `beat` moves its progress, not waiting in `recv`.
        Raises:
            PlanError: this is not the writer's memory or layout, or the place is taken.
            InvalidArgumentError: no such reader.
        """
        num_readers = handle.layout.num_readers
        if not 0 <= reader_idx < num_readers:
            raise InvalidArgumentError("reader_idx", reader_idx, f"0 <= reader_idx < {num_readers}")
        segment = Segment.open(handle)
        reader = RingReader(
            segment,
            reader_idx,
            spin_us=default_spin_us() if spin_us is None else spin_us,
            stands_in=stands_in,
        )
        if segment.words[reader._area + at.STATE] != at.VACANT:
            segment.close()
            raise PlanError(f"step ring {handle.path}: reader {reader_idx} is already attached")
        write_process(segment.words, reader._area + at.PROCESS, ProcessId.current())
        reader._set_state(at.ATTACHED)
        return reader

    def __enter__(self) -> RingReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def recv(self, timeout_s: float | None = None, *, idle_s: float = 0.5) -> tuple[int, memoryview]:
        """The next message; several may be received before the first is answered.

        Args:
            timeout_s: None waits as long as the writer lives.
            idle_s: how often a sleeping reader beats and looks whether the writer's process lives.
        Returns:
            its number and a read-only view of the ring itself, valid until `reply` to it.
        Raises:
            RingFinishedError, RingAbortedError: the writer ended the ring. WriterDiedError: its process is gone.
            StepTimeoutError: no message came.
        """
        seq, words = self._received + 1, self._words
        if not spin(lambda: words[at.PUBLISHED_WORD] >= seq or words[at.ENDED_WORD] != at.OPEN, self._spin_us):
            self._sleep(seq, timeout_s, idle_s)
        ended, published = words[at.ENDED_WORD], words[at.PUBLISHED_WORD]
        if ended == at.ABORTED:
            raise self._ended(RingAbortedError)
        if ended == at.FINISHED and published < seq:
            raise self._ended(RingFinishedError)
        slot = self._slots[seq % self.layout.num_slots]
        if words[slot + at.SEQ] != seq:
            raise PlanError(f"step ring: expected message {seq} in its slot, got {words[slot + at.SEQ]}")
        start = (slot + at.PAYLOAD) * WORD_BYTES
        self._received = seq
        return seq, self._octets[start : start + words[slot + at.NBYTES]].toreadonly()

    def reply(self, seq: int, digest: int, payload: Payload = b"", *, status: int = 0) -> None:
        """Answer message `seq`, the oldest unanswered one, which frees its slot.

        Args:
            digest: of what this rank saw, unsigned 64-bit.
            payload: at most reply_bytes; with an error its UTF-8 text, cut to fit.
            status: 0, or an error's number: every call of the writer raises RankError from then on.
        """
        if seq != self._acked + 1 or seq > self._received:
            raise InvalidArgumentError("seq", seq, f"{self._acked + 1}, received and not answered")
        if not 0 <= digest < 2**64:
            raise InvalidArgumentError("digest", digest, "0 <= digest < 2^64")
        if self._words[self._area + at.STATE] != at.ATTACHED:
            raise RankError(self.reader_idx, "it left the step ring or answered with an error before")
        if status != 0:
            self._give_up(at.FAILED, bytes(flat_view(payload, sys.maxsize)), status)
            return
        self._write_reply(seq, flat_view(payload, self.layout.reply_bytes), digest, status)
        self._acked = seq
        self._words[self._area + at.ACKED] = seq  # last: the writer reads the reply once it sees this
        self._ring_doorbell()

    def beat(self, count: int | None = None) -> None:
        """Bump the progress counter that the writer and monitors see, or set it."""
        word = self._area + at.PROGRESS
        self._words[word] = self._words[word] + 1 if count is None else count

    def fail(self, problem: str) -> None:
        """Report an error that belongs to no message; as `reply` with a status."""
        if self._words[self._area + at.STATE] == at.ATTACHED:
            self._give_up(at.FAILED, problem.encode(), 1)

    def leave(self, problem: str) -> None:
        """Say that no answer will come any more; the writer raises RankDiedError if one is owed."""
        if self._words[self._area + at.STATE] == at.ATTACHED:
            self._give_up(at.DEAD, problem.encode(), 0)

    def close(self) -> None:
        """Leave and give up the memory; safe to call twice."""
        if not self._segment.is_closed:
            self.leave("it left the step ring")
            self._segment.close()

    def _sleep(self, seq: int, timeout_s: float | None, idle_s: float) -> None:
        words, sleeping = self._words, self._area + at.SLEEPING
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        words[sleeping] = 1
        try:
            while True:
                # As in RingWriter.wait_until: the bell is read before the state it announces.
                bell = self._words32[2 * at.BELL_WORD]
                if words[at.PUBLISHED_WORD] >= seq or words[at.ENDED_WORD] != at.OPEN:
                    return
                now = time.monotonic()
                if now >= self._next_look:
                    self._next_look = now + idle_s
                    self._look()
                if deadline is not None and now >= deadline:
                    raise StepTimeoutError(self.reader_idx, f"no message {seq} from the coordinator in {timeout_s:g} s")
                wake_at = self._next_look if deadline is None else min(self._next_look, deadline)
                futex.wait(self._segment.address(at.BELL_WORD), bell, max(wake_at - now, 0.0))
        finally:
            words[sleeping] = 0

    def _ended(self, kind: type[RingEndedError]) -> RingEndedError:
        return kind(self._segment.handle.epoch, self._segment.end_text())

    def _look(self) -> None:
        if not self._stands_in:
            self.beat()
        if self._writer.is_gone():
            problem = f"its process {self._writer.pid} is gone"
            raise WriterDiedError(self._segment.handle.epoch, problem)

    def _give_up(self, state: int, text: bytes, status: int) -> None:
        seq = self._acked + 1
        self._write_reply(seq, memoryview(text[: self.layout.reply_bytes]), 0, status)
        self._words[self._area + at.FAILED_SEQ] = seq
        self._words[self._area + at.FAILED_NS] = time.monotonic_ns()
        self._set_state(state)

    def _write_reply(self, seq: int, content: memoryview, digest: int, status: int) -> None:
        words, slot = self._words, self._replies[seq % self.layout.reply_slots]
        start = (slot + at.PAYLOAD) * WORD_BYTES
        self._octets[start : start + content.nbytes] = content
        words[slot + at.REPLY_STATUS], words[slot + at.REPLY_NBYTES] = status, content.nbytes
        words[slot + at.REPLY_DIGEST] = digest
        words[slot + at.REPLY_SEQ] = seq

    def _set_state(self, state: int) -> None:
        self._words[self._area + at.STATE] = state
        if state >= at.FAILED:
            self._words[at.TROUBLE_WORD] = 1  # spares the writer a look at every reader's state
        self._ring_doorbell()

    def _ring_doorbell(self) -> None:
        # The only word with several writers. Each stores values that were never in it before (a count of its own,
        # made unique by its index), so whoever saw an older value sees a change, whichever store came last.
        with self._lock:
            self._rings += 1
            value = self._rings * self.layout.num_readers + self.reader_idx
            self._words32[2 * at.DOORBELL_WORD] = value & 0xFFFFFFFF
        # The lock's release is an atomic instruction: the fence between this store and the load below.
        if self._words[at.WRITER_SLEEPERS_WORD]:
            futex.wake(self._segment.address(at.DOORBELL_WORD))
