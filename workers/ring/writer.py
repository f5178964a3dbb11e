# SPDX-License-Identifier: Apache-2.0
"""The coordinator's end of the ring: publishes messages, collects replies, finds ranks that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from distributed_fi.errors import InvalidArgumentError, RankDiedError, RankError, StepTimeoutError
from distributed_fi.workers.ring import futex
from distributed_fi.workers.ring import layout as at
from distributed_fi.workers.ring.errors import RingAbortedError, RingFinishedError
from distributed_fi.workers.ring.layout import WORD_BYTES, RingLayout
from distributed_fi.workers.ring.payload import Payload, flat_view
from distributed_fi.workers.ring.process import ProcessId
from distributed_fi.workers.ring.segment import RingHandle, Segment, read_process, sweep
from distributed_fi.workers.ring.spin import default_spin_us, spin

LOOK_S = 0.05  # how often a sleeping writer looks whether the ranks' processes still live


class Reply(NamedTuple):
    """What a rank answered to one message: the digest of what it saw, and its payload."""

    digest: int
    payload: bytes


class RingWriter:
    """One writer, `num_readers` readers, in shared memory.

    One thread publishes and waits; `abort`, `acked` and `progress` may be called from any thread. Every message
    is answered by every reader, in order. The ring ends with the first failed rank: each later call raises.

    Reader indices are ranks in the errors.
    """

    def __init__(self, segment: Segment, spin_us: int):
        self._segment, self._spin_us = segment, spin_us
        self.handle: RingHandle = segment.handle
        self.layout = layout = segment.handle.layout
        self._words, self._words32, self._octets = segment.words, segment.words32, segment.octets
        readers = [layout.reader_word(i) for i in range(layout.num_readers)]
        self._readers = readers
        self._acked = [word + at.ACKED for word in readers]
        self._sleeping = [word + at.SLEEPING for word in readers]
        self._slots = layout.slot_words()
        self._replies = [layout.reply_words(i) for i in range(layout.num_readers)]
        self._processes: dict[int, ProcessId] = {}
        self._everybody = range(layout.num_readers)
        self.published = 0  # number of the newest message
        self._floor = 0  # a message that every reader is known to have acked
        self._next_look = 0.0
        self._lock = threading.Lock()

    @staticmethod
    def create(
        num_readers: int,
        *,
        slot_bytes: int,
        reply_bytes: int,
        epoch: int,
        num_slots: int = 8,
        spin_us: int | None = None,
        directory: Path | None = None,
    ) -> RingWriter:
        """Make a ring, after removing what killed processes left in the folder.

        Args:
            num_readers: ranks that will attach, each with an index of its own.
            slot_bytes: largest message. reply_bytes: largest reply.
            epoch: of the group of ranks; a reader's handle must agree.
            num_slots: messages in flight at most.
            spin_us: None takes DFI_SPIN_US or a default for this machine.
            directory: a tmpfs; None takes DFI_SHM_DIR.
        Raises:
            ResourceError: not enough shared memory: names the folder, bytes needed and bytes free.
            InvalidArgumentError: a size is no positive integer.
            UnsupportedError: no Linux on x86-64.
        """
        layout = RingLayout(
            num_readers=num_readers,
            num_slots=num_slots,
            slot_bytes=slot_bytes,
            reply_slots=2 * num_slots + 1,
            reply_bytes=reply_bytes,
        )
        sweep(directory)
        segment = Segment.create(layout, epoch=epoch, directory=directory)
        return RingWriter(segment, default_spin_us() if spin_us is None else spin_us)

    def __enter__(self) -> RingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def wait_attached(self, timeout_s: float) -> None:
        """Wait until every reader attached, then remove the segment's name: from here on nothing can leak.

        Raises:
            StepTimeoutError: names the ranks that did not attach.
        """
        if not self.wait_until(lambda: at.VACANT not in self.states(), timeout_s, self._raise_failure):
            missing = [rank for rank, state in enumerate(self.states()) if state == at.VACANT]
            raise StepTimeoutError(missing[0], f"ranks {missing} did not attach to the step ring in {timeout_s:g} s")
        self._segment.unlink()

    def publish(self, payload: Payload, *, timeout_s: float = 60.0) -> int:
        """Send one message to all readers; waits until its slot is free.

        Args:
            payload: contiguous, at most slot_bytes.
        Returns:
            its sequence number; the first is 1.
        Raises:
            InvalidArgumentError: the payload is too large or not contiguous.
            StepTimeoutError: a reader still has not acked the slot's last message; names the slowest.
            RankError, RankDiedError: a rank failed. RingFinishedError, RingAbortedError: the ring was ended.
        """
        content = flat_view(payload, self.layout.slot_bytes)
        seq = self.published + 1
        self._check_ranks(seq)
        if self._floor < seq - self.layout.num_slots:
            self._await_acks(seq - self.layout.num_slots, self._everybody, timeout_s)
        slot = self._slots[seq % self.layout.num_slots]
        start = (slot + at.PAYLOAD) * WORD_BYTES
        self._octets[start : start + content.nbytes] = content
        self._words[slot + at.NBYTES] = content.nbytes
        self._words[slot + at.SEQ] = seq
        self._words[at.PUBLISHED_WORD] = self.published = seq
        self._ring_bell()
        return seq

    def wait_replies(self, seq: int, readers: Sequence[int] | None = None, timeout_s: float = 60.0) -> dict[int, Reply]:
        """Replies of `readers` (None: all) to message `seq`, one of the last 2 * num_slots.

        Raises:
            RankError: any rank, waited for or not, answered some message with an error; carries its text.
            RankDiedError: the process of a rank that owes an answer is gone.
            StepTimeoutError: silence; names the ranks, what they acked and whether they make progress.
            RingAbortedError: the ring was ended.
        """
        oldest = max(self.published - self.layout.reply_slots + 2, 1)
        if not oldest <= seq <= self.published:
            raise InvalidArgumentError("seq", seq, f"one of the messages {oldest} to {self.published}")
        waited = self._everybody if readers is None else readers
        self._await_acks(seq, waited, timeout_s)
        self._check_ranks(self.published)
        return {rank: self.reply_of(rank, seq) for rank in waited}

    def reply_of(self, rank: int, seq: int) -> Reply:
        """The reply of a rank that acked `seq`, one of the last 2 * num_slots messages.

        Raises:
            InvalidArgumentError: it has not acked it, or its reply was overwritten by a later one.
        """
        slot = self._replies[rank][seq % self.layout.reply_slots]
        if self._words[slot + at.REPLY_SEQ] != seq or self._words[self._acked[rank]] < seq:
            raise InvalidArgumentError("seq", seq, f"a message that rank {rank} answered lately")
        return Reply(self._words[slot + at.REPLY_DIGEST], self._reply_payload(slot))

    def acked(self) -> list[int]:
        """Newest message that each reader answered."""
        words = self._words
        return [words[word] for word in self._acked]

    def progress(self) -> list[int]:
        """Each reader's progress counter, which is its heartbeat."""
        return [self._words[word + at.PROGRESS] for word in self._readers]

    def states(self) -> list[int]:
        """Each reader's state: VACANT, ATTACHED, FAILED or DEAD of layout.py."""
        return [self._words[word + at.STATE] for word in self._readers]

    def failures(self) -> list[RankError]:
        """Every rank known to have failed or died, the likeliest cause first.

        That is a process gone without a word, because its peers fail for it; then what was said first.
        """
        gone, said = [], []
        for rank, state in enumerate(self.states()):
            if state == at.ATTACHED and self._process(rank).is_gone():
                gone.append(RankDiedError(rank, f"its process {self._process(rank).pid} is gone"))
            elif state in (at.FAILED, at.DEAD):
                kind = RankError if state == at.FAILED else RankDiedError
                said.append((self._words[self._readers[rank] + at.FAILED_NS], kind(rank, self._failure_text(rank))))
        return [*gone, *(error for _, error in sorted(said, key=lambda pair: pair[0]))]

    def abort(self, reason: str) -> None:
        """End the ring at once: every reader's and writer's call raises RingAbortedError with `reason`."""
        self._end(at.ABORTED, reason)

    def finish(self) -> None:
        """Say that no message follows: readers get those published before, then RingFinishedError."""
        self._end(at.FINISHED, "the writer closed it")

    def unlink(self) -> None:
        """Remove the segment's name; readers that attached keep the memory."""
        self._segment.unlink()

    def close(self) -> None:
        """Finish, remove the name and give up the memory; safe to call twice."""
        if not self._segment.is_closed:
            self.finish()
            self.unlink()
            self._segment.close()

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, on_wake: Callable[[], None]) -> bool:
        """Wait for `ready()`, which looks at what readers write: spin, then sleep on the doorbell.

        `on_wake` runs at each wake-up and at least every 50 ms; what it raises ends the wait.
        """
        if spin(ready, self._spin_us):
            return True
        deadline = time.monotonic() + timeout_s
        self._add_sleepers(1)
        try:
            while True:
                bell = self._words32[2 * at.DOORBELL_WORD]
                if ready():
                    return True
                on_wake()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                # No lost wake-up: a reader rings after it wrote, so either `bell` is old by now and the kernel,
                # which compares it once more with a barrier before, returns at once; or the reader's ring comes
                # after we are queued and, our flag being set before, wakes us.
                futex.wait(self._segment.address(at.DOORBELL_WORD), bell, min(left, LOOK_S))
        finally:
            self._add_sleepers(-1)

    def _await_acks(self, seq: int, ranks: Sequence[int], timeout_s: float) -> None:
        words, watched = self._words, [self._acked[rank] for rank in ranks]
        before: list[int] = []

        def answered() -> bool:
            for word in watched:  # noqa: SIM110  # all() over a generator takes twice as long
                if words[word] < seq:
                    return False
            return True

        def raise_failure() -> None:
            before.extend([] if before else self.progress())
            self._raise_failure()

        if not self.wait_until(answered, timeout_s, raise_failure):
            raise self._silence(seq, ranks, timeout_s, before)
        if ranks is self._everybody:
            self._floor = max(self._floor, seq)

    def _raise_failure(self) -> None:
        now = time.monotonic()
        looks = now >= self._next_look
        if looks:
            self._next_look = now + LOOK_S
        self._check_ranks(max(self.published, 1), looks=looks)

    def _check_ranks(self, owed_seq: int, *, looks: bool = False) -> None:
        ended = self._words[at.ENDED_WORD]
        if ended == at.ABORTED:
            raise RingAbortedError(self.handle.epoch, self._segment.end_text())
        if ended == at.FINISHED and owed_seq > self.published:
            raise RingFinishedError(self.handle.epoch, self._segment.end_text())
        if not looks and not self._words[at.TROUBLE_WORD]:
            return
        failures, acked = self.failures(), self.acked()  # in this order: what a dead rank acked is final
        failures = [e for e in failures if not isinstance(e, RankDiedError) or acked[e.rank] < owed_seq]
        if failures:
            for other in failures[1:]:
                failures[0].add_note(str(other))
            raise failures[0]

    def _process(self, rank: int) -> ProcessId:
        if rank not in self._processes:
            self._processes[rank] = read_process(self._words, self._readers[rank] + at.PROCESS)
        return self._processes[rank]

    def _failure_text(self, rank: int) -> str:
        seq = self._words[self._readers[rank] + at.FAILED_SEQ]
        return self._reply_payload(self._replies[rank][seq % self.layout.reply_slots]).decode(errors="replace")

    def _reply_payload(self, slot: int) -> bytes:
        start = (slot + at.PAYLOAD) * WORD_BYTES
        return bytes(self._octets[start : start + self._words[slot + at.REPLY_NBYTES]])

    def _silence(self, seq: int, ranks: Sequence[int], timeout_s: float, before: Sequence[int]) -> StepTimeoutError:
        acked, progress = self.acked(), self.progress()
        silent = sorted((rank for rank in ranks if acked[rank] < seq), key=lambda rank: acked[rank])
        told = ", ".join(
            f"rank {rank} (answered {acked[rank]}, progress {before[rank]} -> {progress[rank]} meanwhile)"
            for rank in silent
        )
        return StepTimeoutError(silent[0], f"no answer to message {seq} in {timeout_s:g} s; silent: {told}")

    def _end(self, kind: int, reason: str) -> None:
        with self._lock:
            if self._segment.is_closed or self._words[at.ENDED_WORD] >= kind:
                return
            self._segment.write_end(kind, reason)
        self._ring_bell()
        # Threads of this process that wait on the doorbell look every LOOK_S anyway; this only hurries them.
        futex.wake(self._segment.address(at.DOORBELL_WORD))

    def _add_sleepers(self, count: int) -> None:
        with self._lock:
            self._words[at.WRITER_SLEEPERS_WORD] += count

    def _ring_bell(self) -> None:
        with self._lock:
            word = 2 * at.BELL_WORD
            self._words32[word] = (self._words32[word] + 1) & 0xFFFFFFFF
        # x86-64 may let the loads below overtake the store above, and a reader that goes to sleep right now would
        # be missed; the lock's release is an atomic instruction and thus the fence between them. The reader's own
        # pair (flag stored, bell compared by the kernel) has the kernel's barrier in between.
        for word in self._sleeping:
            if self._words[word]:
                futex.wake(self._segment.address(at.BELL_WORD))
                return
