# SPDX-License-Identifier: Apache-2.0
"""Where everything lies in a step ring: the one place that computes an offset.

    header      fixed facts, owner, publication line, doorbell line, sleepers line, end of the ring   1024 B
    slots       num_slots x  [seq, nbytes | payload]                                   written by the writer
    readers     num_readers x [state, process | acked, progress, failure | sleeping]   written by the reader
    replies     num_readers x reply_slots x [seq, status, nbytes, digest | payload]     written by the reader

All words are unsigned 64-bit, except the two futex words, which the kernel wants 32 bits wide. Every word has
one writing process (but for the line of the doorbell, see reader.py), so no atomic read-modify-write is needed.
Words with different writers lie in different 64-byte lines.

Ordering. A message is its payload first, its sequence number last; a reader looks at the number first. x86-64
never reorders two stores or two loads of one core, an aligned 8-byte access is never torn, and CPython makes
each of these accesses in a call of its own, which no compiler merges or moves. Another architecture needs
fences that Python does not have, so futex.py refuses it. The one order that x86-64 does not give by itself,
an own store before an own later load, matters only for going to sleep: see `_ring_bell` in writer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distributed_fi.errors import InvalidArgumentError

MAGIC = int.from_bytes(b"DFI_RING", "little")
VERSION = 1
LINE_BYTES = 64
WORD_BYTES = 8

# Words of the header, as indices into the ring seen as uint64.
MAGIC_WORD, VERSION_WORD, NONCE_WORD, EPOCH_WORD = 0, 1, 2, 4  # the nonce is two words
NUM_READERS_WORD, NUM_SLOTS_WORD, SLOT_BYTES_WORD, REPLY_SLOTS_WORD, REPLY_BYTES_WORD = 5, 6, 7, 8, 9
OWNER_WORD = 10  # three words: pid, start time, pid namespace
PUBLISHED_WORD, BELL_WORD = 16, 17  # one line: whoever waits for a message reads both
DOORBELL_WORD, TROUBLE_WORD = 24, 25  # the two words that every reader writes; trouble only ever becomes 1
WRITER_SLEEPERS_WORD = 32
ENDED_WORD, END_NBYTES_WORD, END_TEXT_WORD = 40, 41, 42
HEADER_BYTES = 1024
END_TEXT_BYTES = HEADER_BYTES - END_TEXT_WORD * WORD_BYTES

# Values of the ENDED word.
OPEN, FINISHED, ABORTED = 0, 1, 2

# Words of a reader's area, counted from its start.
STATE, PROCESS, ACKED, PROGRESS, FAILED_SEQ, FAILED_NS, SLEEPING = 0, 1, 8, 9, 10, 11, 16
READER_BYTES = 3 * LINE_BYTES

# Values of a reader's state.
VACANT, ATTACHED, FAILED, DEAD = 0, 1, 2, 3

# Words of a message slot and of a reply slot; the payload begins a line of its own.
SEQ, NBYTES = 0, 1
REPLY_SEQ, REPLY_STATUS, REPLY_NBYTES, REPLY_DIGEST = 0, 1, 2, 3
PAYLOAD = LINE_BYTES // WORD_BYTES


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE_BYTES) * LINE_BYTES


@dataclass(frozen=True, kw_only=True)
class RingLayout:
    """Sizes of a ring, and from them every offset.

    Args:
        num_readers: ranks that read it.
        num_slots: messages in flight at most; a slot is free again when every reader acked its message.
        slot_bytes: largest message.
        reply_slots: replies of one reader that are kept; more than num_slots, so that an error's text, which takes
            the place of the next reply, overwrites none that may still be asked for.
        reply_bytes: largest reply; an error's text is cut to it.
    Raises:
        InvalidArgumentError: a size is no positive integer, or reply_slots <= num_slots.
    """

    num_readers: int
    num_slots: int
    slot_bytes: int
    reply_slots: int
    reply_bytes: int

    FIELDS: ClassVar = ("num_readers", "num_slots", "slot_bytes", "reply_slots", "reply_bytes")

    def __post_init__(self) -> None:
        for name in self.FIELDS:
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise InvalidArgumentError(name, size, "an integer >= 1")
        if self.reply_slots <= self.num_slots:
            raise InvalidArgumentError("reply_slots", self.reply_slots, f"more than num_slots={self.num_slots}")

    @property
    def _slot_stride(self) -> int:
        return LINE_BYTES + _lines(self.slot_bytes)

    @property
    def _reply_stride(self) -> int:
        return LINE_BYTES + _lines(self.reply_bytes)

    @property
    def _readers_offset(self) -> int:
        return HEADER_BYTES + self.num_slots * self._slot_stride

    @property
    def _replies_offset(self) -> int:
        return self._readers_offset + self.num_readers * READER_BYTES

    @property
    def total_bytes(self) -> int:
        return self._replies_offset + self.num_readers * self.reply_slots * self._reply_stride

    def slot_words(self) -> list[int]:
        """First word of every message slot; message `seq` lies in slot seq % num_slots."""
        return [(HEADER_BYTES + i * self._slot_stride) // WORD_BYTES for i in range(self.num_slots)]

    def reader_word(self, reader_idx: int) -> int:
        """First word of a reader's area."""
        return (self._readers_offset + reader_idx * READER_BYTES) // WORD_BYTES

    def reply_words(self, reader_idx: int) -> list[int]:
        """First word of every reply slot of a reader; the reply to `seq` lies in slot seq % reply_slots."""
        first = self._replies_offset + reader_idx * self.reply_slots * self._reply_stride
        return [(first + i * self._reply_stride) // WORD_BYTES for i in range(self.reply_slots)]
