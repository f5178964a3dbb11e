# SPDX-License-Identifier: Apache-2.0
"""Writer and readers in one process: what a message, a reply and an end of the ring are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from distributed_fi.errors import InvalidArgumentError, PlanError, RankDiedError, RankError, StepTimeoutError
from distributed_fi.workers.ring import layout as at
from distributed_fi.workers.ring.errors import RingAbortedError, RingFinishedError
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.segment import Segment
from distributed_fi.workers.ring.writer import RingWriter

NUM_READERS, NUM_SLOTS, SLOT_BYTES, REPLY_BYTES = 3, 4, 256, 64


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RingWriter]:
    with RingWriter.create(
        NUM_READERS,
        num_slots=NUM_SLOTS,
        slot_bytes=SLOT_BYTES,
        reply_bytes=REPLY_BYTES,
        epoch=7,
        directory=tmp_path,
    ) as ring:
        yield ring


@pytest.fixture
def readers(writer: RingWriter) -> Iterator[list[RingReader]]:
    attached = [RingReader.attach(writer.handle, idx) for idx in range(NUM_READERS)]
    writer.wait_attached(5.0)
    yield attached
    for reader in attached:
        reader.close()


def in_thread(run: Callable[..., object], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=run, args=arguments, daemon=True)
    thread.start()
    return thread


def test_every_reader_gets_the_message_and_the_writer_every_reply(
    writer: RingWriter, readers: list[RingReader]
) -> None:
    plan = np.arange(40, dtype=np.int32)
    seq = writer.publish(plan)
    for idx, reader in enumerate(readers):
        received, view = reader.recv(1.0)
        assert received == seq == 1
        np.testing.assert_array_equal(np.frombuffer(view, np.int32), plan)
        assert view.readonly
        reader.reply(seq, 2**64 - 1 - idx, bytes([idx]) * idx)
    replies = writer.wait_replies(seq)
    assert replies == {idx: (2**64 - 1 - idx, bytes([idx]) * idx) for idx in range(NUM_READERS)}
    assert writer.acked() == [1, 1, 1]


@pytest.mark.parametrize("nbytes", [0, 1, 63, SLOT_BYTES])
def test_message_of_any_size_up_to_the_slot_arrives_whole(
    writer: RingWriter, readers: list[RingReader], nbytes: int
) -> None:
    message = bytes(range(256))[:nbytes]
    writer.publish(message)
    assert bytes(readers[0].recv(1.0)[1]) == message


def test_empty_array_is_a_message(writer: RingWriter, readers: list[RingReader]) -> None:
    writer.publish(np.empty(0, np.int32))
    assert readers[1].recv(1.0)[1].nbytes == 0


def test_message_larger_than_a_slot_is_refused_and_none_is_sent(writer: RingWriter, readers: list[RingReader]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^payload: expected at most 256 bytes, .* got 260 bytes$"):
        writer.publish(np.zeros(65, np.int32))
    with pytest.raises(InvalidArgumentError, match=r"^payload: expected a contiguous buffer, got strides"):
        writer.publish(np.zeros(10, np.int32)[::2])
    assert writer.published == 0


def test_messages_keep_their_order_over_many_laps(writer: RingWriter, readers: list[RingReader]) -> None:
    received: list[list[int]] = [[] for _ in readers]

    def serve(idx: int) -> None:
        for _ in range(1000):
            seq, view = readers[idx].recv(10.0)
            received[idx].append(int(np.frombuffer(view, np.int64)[0]))
            readers[idx].reply(seq, received[idx][-1])

    threads = [in_thread(serve, idx) for idx in range(NUM_READERS)]
    for number in range(1000):
        writer.publish(np.array([number * number], np.int64))
    writer.wait_replies(1000, timeout_s=10.0)
    for thread in threads:
        thread.join()
    assert received == [[number * number for number in range(1000)]] * NUM_READERS


def test_several_messages_may_be_received_before_the_first_is_answered(
    writer: RingWriter, readers: list[RingReader]
) -> None:
    for number in range(1, NUM_SLOTS + 1):
        writer.publish(bytes([number]))
    views = [readers[0].recv(1.0)[1] for _ in range(NUM_SLOTS)]
    assert [bytes(view) for view in views] == [bytes([number]) for number in range(1, NUM_SLOTS + 1)]
    for seq in range(1, NUM_SLOTS + 1):
        readers[0].reply(seq, seq)
    assert writer.acked() == [NUM_SLOTS, 0, 0]


def test_full_ring_waits_for_the_slowest_reader_and_names_it(writer: RingWriter, readers: list[RingReader]) -> None:
    for _ in range(NUM_SLOTS):
        writer.publish(b"")
    for reader in (readers[0], readers[2]):
        for _ in range(NUM_SLOTS):
            reader.reply(reader.recv(1.0)[0], 0)
    with pytest.raises(
        StepTimeoutError, match=r"^rank 1: no answer to message 1 in 0.05 s; silent: rank 1 .answered 0"
    ):
        writer.publish(b"", timeout_s=0.05)
    assert writer.published == NUM_SLOTS
    readers[1].reply(readers[1].recv(1.0)[0], 0)
    assert writer.publish(b"", timeout_s=1.0) == NUM_SLOTS + 1


def test_silent_ranks_are_named_slowest_first_with_their_progress(
    writer: RingWriter, readers: list[RingReader]
) -> None:
    writer.publish(b"")
    writer.publish(b"")
    for _ in range(2):
        readers[0].reply(readers[0].recv(1.0)[0], 0)
    readers[1].reply(readers[1].recv(1.0)[0], 0)
    readers[2].beat(40)
    with pytest.raises(StepTimeoutError) as caught:
        writer.wait_replies(2, timeout_s=0.02)
    assert caught.value.rank == 2
    assert "silent: rank 2 (answered 0, progress 40 -> 40 meanwhile), rank 1 (answered 1" in str(caught.value)
    assert set(writer.wait_replies(2, [0])) == {0}


def test_reply_that_is_late_early_or_malformed_is_refused(writer: RingWriter, readers: list[RingReader]) -> None:
    reader = readers[0]
    with pytest.raises(InvalidArgumentError, match=r"seq: expected 1, received and not answered, got 1"):
        reader.reply(1, 0)
    writer.publish(b"")
    writer.publish(b"")
    reader.recv(1.0)
    reader.recv(1.0)
    with pytest.raises(InvalidArgumentError, match=r"seq: expected 1, received and not answered, got 2"):
        reader.reply(2, 0)
    with pytest.raises(InvalidArgumentError, match=r"digest: expected 0 <= digest < 2.64, got -1"):
        reader.reply(1, -1)
    with pytest.raises(InvalidArgumentError, match=r"payload: expected at most 64 bytes, .* got 65 bytes"):
        reader.reply(1, 0, bytes(65))
    reader.reply(1, 0)


def test_replies_are_kept_for_two_laps(writer: RingWriter, readers: list[RingReader]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"seq: expected one of the messages 1 to 0, got 1"):
        writer.wait_replies(1)
    for number in range(1, 2 * NUM_SLOTS + 2):
        writer.publish(b"")
        for reader in readers:
            reader.reply(reader.recv(1.0)[0], 10 * number)
    with pytest.raises(InvalidArgumentError, match=r"seq: expected one of the messages 2 to 9, got 1"):
        writer.wait_replies(1)
    assert [writer.wait_replies(seq)[0].digest for seq in range(2, 10)] == list(range(20, 100, 10))


def test_reply_that_is_not_there_is_refused(writer: RingWriter, readers: list[RingReader]) -> None:
    for _ in range(2 * NUM_SLOTS + 2):
        writer.publish(b"")
        for reader in readers:
            reader.reply(reader.recv(1.0)[0], 0)
    for seq in (1, 2 * NUM_SLOTS + 3):
        with pytest.raises(InvalidArgumentError, match=rf"that rank 2 answered lately, got {seq}$"):
            writer.reply_of(2, seq)


def test_error_of_a_rank_ends_the_wait_for_another(writer: RingWriter, readers: list[RingReader]) -> None:
    seq = writer.publish(b"")

    def serve() -> None:
        readers[2].recv(1.0)
        readers[2].reply(seq, 0, "ValueError: schlecht – bad".encode(), status=1)

    serving = in_thread(serve)
    with pytest.raises(RankError, match=r"^rank 2: ValueError: schlecht – bad$") as caught:
        writer.wait_replies(seq, [0], timeout_s=10.0)
    serving.join()
    assert not isinstance(caught.value, (RankDiedError, StepTimeoutError))
    with pytest.raises(RankError, match=r"^rank 2: ValueError"):
        writer.publish(b"")
    with pytest.raises(RankError, match=r"answered with an error before"):
        readers[2].reply(seq, 0)


def test_first_error_is_raised_with_the_others_as_notes(writer: RingWriter, readers: list[RingReader]) -> None:
    seq = writer.publish(b"")
    for idx in (1, 0):
        readers[idx].recv(1.0)
        readers[idx].reply(seq, 0, f"error of {idx}".encode(), status=1)
    with pytest.raises(RankError) as caught:
        writer.wait_replies(seq)
    assert str(caught.value) == "rank 1: error of 1"
    assert caught.value.__notes__ == ["rank 0: error of 0"]


def test_error_text_is_cut_to_the_reply(writer: RingWriter, readers: list[RingReader]) -> None:
    seq = writer.publish(b"")
    readers[0].recv(1.0)
    readers[0].reply(seq, 0, b"x" * 1000, status=1)
    with pytest.raises(RankError, match=rf"^rank 0: {'x' * REPLY_BYTES}$"):
        writer.wait_replies(seq)


def test_rank_that_leaves_is_missed_only_if_it_owes_an_answer(writer: RingWriter, readers: list[RingReader]) -> None:
    seq = writer.publish(b"")
    for reader in readers:
        reader.recv(1.0)
        reader.reply(seq, 5)
    readers[1].close()
    assert writer.wait_replies(seq)[1].digest == 5
    with pytest.raises(RankDiedError, match=r"^rank 1: it left the step ring$"):
        writer.publish(b"")


def test_abort_reaches_waiting_readers_and_the_writer_itself(writer: RingWriter, readers: list[RingReader]) -> None:
    seq = writer.publish(b"lost")
    caught: list[str] = []

    def expect_abort(wait: Callable[[], object]) -> None:
        with pytest.raises(RingAbortedError) as error:
            wait()
        caught.append(str(error.value))

    for reader in readers[:2]:
        reader.recv(1.0)
    waits = (readers[0].recv, readers[1].recv, lambda: writer.wait_replies(seq))
    threads = [in_thread(expect_abort, wait) for wait in waits]
    writer.abort("rank 9 is stuck")
    for thread in threads:
        thread.join(10.0)
    assert caught == ["step ring of epoch 7 ended: rank 9 is stuck"] * 3
    with pytest.raises(RingAbortedError, match=r"rank 9 is stuck"):
        readers[2].recv(1.0)  # the message before it is not delivered any more
    with pytest.raises(RingAbortedError, match=r"rank 9 is stuck"):
        writer.publish(b"")


def test_finished_ring_delivers_what_was_published_and_takes_its_answers(
    writer: RingWriter, readers: list[RingReader]
) -> None:
    seq = writer.publish(b"stop")
    writer.finish()
    with pytest.raises(RingFinishedError, match=r"the writer closed it"):
        writer.publish(b"")
    for reader in readers:
        assert bytes(reader.recv(1.0)[1]) == b"stop"
        reader.reply(seq, 1)
        with pytest.raises(RingFinishedError, match=r"the writer closed it"):
            reader.recv(1.0)
    assert len(writer.wait_replies(seq)) == NUM_READERS


def test_reader_that_waits_beats_and_ends_with_its_timeout(writer: RingWriter, readers: list[RingReader]) -> None:
    with pytest.raises(StepTimeoutError, match=r"^rank 0: no message 1 from the coordinator in 0.05 s$"):
        readers[0].recv(0.05, idle_s=0.01)
    assert writer.progress()[0] >= 2
    assert writer.progress()[1:] == [0, 0]


def test_missing_readers_are_named(writer: RingWriter) -> None:
    RingReader.attach(writer.handle, 1)
    with pytest.raises(StepTimeoutError, match=r"^rank 0: ranks \[0, 2\] did not attach .* in 0.02 s$"):
        writer.wait_attached(0.02)


def test_name_is_gone_once_all_attached_and_nothing_is_left_after_close(
    writer: RingWriter, readers: list[RingReader], tmp_path: Path
) -> None:
    assert list(tmp_path.iterdir()) == []
    writer.close()
    writer.close()
    writer.abort("too late to matter")
    with pytest.raises(RingFinishedError):
        readers[0].recv(1.0)


def test_view_outlives_the_ring(writer: RingWriter, readers: list[RingReader]) -> None:
    writer.publish(b"kept")
    _, view = readers[0].recv(1.0)
    kept = np.frombuffer(view, np.uint8)
    for ring in (*readers, writer):
        ring.close()
    assert kept.tobytes() == b"kept"


def test_idle_reader_sleeps_and_says_so(writer: RingWriter) -> None:
    readers = [RingReader.attach(writer.handle, idx) for idx in range(NUM_READERS)]
    segment = Segment.open(writer.handle)
    sleeping = writer.layout.reader_word(1) + at.SLEEPING
    waiting = in_thread(readers[1].recv, 60.0)
    while not segment.words[sleeping]:
        waiting.join(0.001)
    writer.publish(b"")
    waiting.join(10.0)
    assert not waiting.is_alive()
    assert segment.words[sleeping] == 0


def test_message_that_is_not_in_its_slot_is_an_error(writer: RingWriter, readers: list[RingReader]) -> None:
    writer.publish(b"")
    readers[0]._words[writer.layout.slot_words()[1] + at.SEQ] = 9
    with pytest.raises(PlanError, match=r"step ring: expected message 1 in its slot, got 9"):
        readers[0].recv(1.0)
