# SPDX-License-Identifier: Apache-2.0
"""Ranks as processes of their own: laps under random stalls, kills and stops."""

from __future__ import annotations

import os
import random
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_fi.errors import RankDiedError, RankError, StepTimeoutError
from distributed_fi.workers.ring.writer import RingWriter


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RingWriter]:
    with RingWriter.create(2, num_slots=5, slot_bytes=600, reply_bytes=64, epoch=1, directory=tmp_path) as ring:
        yield ring


def echoing(start: Callable[..., Any], writer: RingWriter, *arguments: str) -> list[Any]:
    ranks = [start("echo", writer.handle, str(idx), *arguments) for idx in range(2)]
    writer.wait_attached(30.0)
    return ranks


def test_ten_thousand_messages_arrive_in_order_and_whole_under_random_stalls(
    writer: RingWriter, start: Callable[..., Any]
) -> None:
    echoing(start, writer, "seed 1")
    noise, stalls = random.Random(0), random.Random(1)
    expected: dict[int, int] = {}
    for _ in range(10_000):
        message = noise.randbytes(noise.randrange(600))
        expected[writer.publish(message, timeout_s=30.0)] = zlib.crc32(message)
        if stalls.random() < 0.01:
            time.sleep(stalls.random() * 1e-3)
        done = writer.published - stalls.randrange(5)
        if done >= 1 and stalls.random() < 0.5:
            replies = writer.wait_replies(done, timeout_s=30.0)
            assert replies == {rank: (expected[done], str(done).encode()) for rank in range(2)}
    assert set(writer.wait_replies(10_000, timeout_s=30.0).values()) == {(expected[10_000], b"10000")}


def test_no_wake_up_is_lost_when_everybody_sleeps_at_once(
    tmp_path: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFI_SPIN_US", "0")  # the ranks' processes inherit it
    monkeypatch.setattr("distributed_fi.workers.ring.writer.LOOK_S", 3600.0)  # nobody looks again by himself
    with RingWriter.create(2, num_slots=5, slot_bytes=64, reply_bytes=64, epoch=1, directory=tmp_path) as writer:
        echoing(start, writer, "", "3600")
        for number in range(5000):
            seq = writer.publish(bytes([number % 251]))
            writer.wait_replies(seq, timeout_s=3600.0)  # a lost wake-up is found by the test's own timeout
        assert writer.acked() == [5000, 5000]


def test_killed_rank_is_named(writer: RingWriter, start: Callable[..., Any], tmp_path: Path) -> None:
    ranks = echoing(start, writer)
    writer.wait_replies(writer.publish(b"warm"))
    os.kill(ranks[1].pid, signal.SIGSTOP)  # so that it cannot answer before the kill
    seq = writer.publish(b"")
    os.kill(ranks[1].pid, signal.SIGKILL)
    with pytest.raises(RankDiedError, match=rf"^rank 1: its process {ranks[1].pid} is gone$"):
        writer.wait_replies(seq, timeout_s=30.0)
    assert list(tmp_path.iterdir()) == []


def test_rank_killed_between_steps_is_named_by_the_next(writer: RingWriter, start: Callable[..., Any]) -> None:
    ranks = echoing(start, writer)
    writer.wait_replies(writer.publish(b""))
    ranks[0].end()
    with pytest.raises(RankDiedError, match=r"^rank 0: its process"):
        writer.wait_replies(writer.publish(b""), timeout_s=30.0)


def test_stopped_rank_is_named_and_goes_on_when_continued(writer: RingWriter, start: Callable[..., Any]) -> None:
    ranks = echoing(start, writer)
    os.kill(ranks[0].pid, signal.SIGSTOP)
    seq = writer.publish(b"")
    with pytest.raises(StepTimeoutError, match=r"^rank 0: no answer to message 1 in 0.5 s; silent: rank 0 .answered 0"):
        writer.wait_replies(seq, timeout_s=0.5)
    os.kill(ranks[0].pid, signal.SIGCONT)
    assert set(writer.wait_replies(seq, timeout_s=30.0)) == {0, 1}


def test_error_of_a_rank_comes_with_its_text_though_its_process_ended(
    writer: RingWriter, start: Callable[..., Any]
) -> None:
    failing = start("fail", writer.handle, "0", "RuntimeError: out of pages")
    start("echo", writer.handle, "1")
    writer.wait_attached(30.0)
    seq = writer.publish(b"")
    failing.process.wait(30.0)
    with pytest.raises(RankError, match=r"^rank 0: RuntimeError: out of pages$"):
        writer.wait_replies(seq, [1])


def test_rank_that_answered_and_ended_is_not_missed(writer: RingWriter, start: Callable[..., Any]) -> None:
    ending = start("answer_once", writer.handle, "0")
    stopped = start("echo", writer.handle, "1")
    writer.wait_attached(30.0)
    os.kill(stopped.pid, signal.SIGSTOP)
    seq = writer.publish(b"last")
    ending.process.wait(30.0)
    with pytest.raises(StepTimeoutError, match=r"^rank 1: "):
        writer.wait_replies(seq, timeout_s=0.2)
    os.kill(stopped.pid, signal.SIGCONT)
    assert writer.wait_replies(seq, timeout_s=30.0)[0].digest == zlib.crc32(b"last")


def test_killed_writer_is_noticed_by_its_readers_and_leaves_nothing(tmp_path: Path, start: Callable[..., Any]) -> None:
    owner = start("own", str(tmp_path), "2")
    handle = owner.handle()
    ranks = [start("echo", handle, str(idx)) for idx in range(2)]
    assert owner.line() == "attached"
    owner.end()
    for rank in ranks:
        assert rank.line() == "ready"
        assert rank.line() == f"WriterDiedError step ring of epoch 1 ended: its process {owner.pid} is gone"
        assert rank.process.wait(30.0) == 3
    assert list(tmp_path.iterdir()) == []


def test_closed_writer_ends_its_readers(writer: RingWriter, start: Callable[..., Any]) -> None:
    ranks = echoing(start, writer)
    writer.wait_replies(writer.publish(b""))
    writer.close()
    for rank in ranks:
        assert rank.line() == "ready"
        assert rank.line() == "RingFinishedError step ring of epoch 1 ended: the writer closed it"
        assert rank.process.wait(30.0) == 3
