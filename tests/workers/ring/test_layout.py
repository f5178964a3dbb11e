# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.workers.ring import layout as at
from distributed_fi.workers.ring.layout import RingLayout

SIZES = {"num_readers": 2, "num_slots": 3, "slot_bytes": 100, "reply_slots": 4, "reply_bytes": 1}

layouts = st.builds(
    lambda num_slots, more, **sizes: RingLayout(num_slots=num_slots, reply_slots=num_slots + more, **sizes),
    num_slots=st.integers(1, 9),
    more=st.integers(1, 3),
    num_readers=st.integers(1, 5),
    slot_bytes=st.integers(1, 300),
    reply_bytes=st.integers(1, 300),
)


@given(layouts)
def test_parts_share_no_line_and_fill_the_segment(layout: RingLayout) -> None:
    parts = [(0, at.HEADER_BYTES)]
    head = 64  # a message's words, ahead of its payload
    parts += [(8 * word, head + layout.slot_bytes) for word in layout.slot_words()]
    for reader_idx in range(layout.num_readers):
        parts.append((8 * layout.reader_word(reader_idx), 3 * 64))
        parts += [(8 * word, head + layout.reply_bytes) for word in layout.reply_words(reader_idx)]
    lines = [line for start, nbytes in parts for line in range(start // 64, -(-(start + nbytes) // 64))]
    assert all(start % 64 == 0 for start, _ in parts)
    assert sorted(lines) == list(range(layout.total_bytes // 64))
    assert layout.total_bytes % 64 == 0


def test_words_of_different_processes_share_no_line() -> None:
    writers_of_line = {}
    for word, writer in (
        (at.MAGIC_WORD, "writer"), (at.OWNER_WORD + 2, "writer"), (at.PUBLISHED_WORD, "writer"),
        (at.BELL_WORD, "writer"), (at.DOORBELL_WORD, "readers"), (at.TROUBLE_WORD, "readers"),
        (at.WRITER_SLEEPERS_WORD, "writer"), (at.ENDED_WORD, "writer"), (at.END_TEXT_WORD, "writer"),
    ):  # fmt: skip
        assert writers_of_line.setdefault(word // 8, writer) == writer


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_size_that_is_no_positive_integer_is_refused(name: str, size: object) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^{name}: expected an integer >= 1, got {size}$"):
        RingLayout(**{**SIZES, name: size})


def test_too_few_reply_slots_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^reply_slots: expected more than num_slots=3, got 3$"):
        RingLayout(**{**SIZES, "reply_slots": 3})
