# SPDX-License-Identifier: Apache-2.0
"""Two rings on one machine, joined over loopback as two hosts would be; ranks 1 and 2 are the other host's."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_fi.errors import PlanError, RankDiedError, RankError, StepTimeoutError, UnreachableError
from distributed_fi.workers.ring.bridge import BridgeClient, BridgeServer
from distributed_fi.workers.ring.errors import RingAbortedError, RingFinishedError
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.writer import RingWriter

EPOCH = 3


def make_ring(num_readers: int, directory: Path, **sizes: int) -> RingWriter:
    directory.mkdir(exist_ok=True)
    sizes = {"slot_bytes": 4096, "reply_bytes": 64, "epoch": EPOCH, "spin_us": 0, **sizes}
    return RingWriter.create(num_readers, directory=directory, **sizes)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RingWriter]:
    with make_ring(3, tmp_path / "near") as ring:
        yield ring


@pytest.fixture
def far(tmp_path: Path) -> Iterator[RingWriter]:
    with make_ring(2, tmp_path / "far") as ring:
        yield ring


@pytest.fixture
def server(writer: RingWriter) -> Iterator[BridgeServer]:
    bridge = BridgeServer(writer.handle, [1, 2], "127.0.0.1", accept_timeout_s=30.0)
    yield bridge
    bridge.close()


@pytest.fixture
def near_rank(writer: RingWriter) -> Iterator[RingReader]:
    with RingReader.attach(writer.handle, 0) as reader:
        yield reader


@pytest.fixture
def bridged(writer: RingWriter, far: RingWriter, server: BridgeServer, near_rank: RingReader) -> Iterator[BridgeClient]:
    client = BridgeClient(server.address, server.token, far)
    writer.wait_attached(10.0)
    yield client
    client.close()


@pytest.fixture
def far_ranks(bridged: BridgeClient, far: RingWriter) -> Iterator[list[RingReader]]:
    readers = [RingReader.attach(far.handle, idx) for idx in range(2)]
    far.wait_attached(10.0)
    yield readers
    for reader in readers:
        reader.close()


def answer(reader: RingReader, payload: bytes = b"") -> bytes:
    seq, view = reader.recv(30.0)
    message = bytes(view)
    reader.reply(seq, zlib.crc32(message), payload)
    return message


def test_coordinator_sees_one_ring(writer: RingWriter, near_rank: RingReader, far_ranks: list[RingReader]) -> None:
    for step in range(1, 101):
        message = bytes([step]) * (40 * step)
        seq = writer.publish(message)
        for rank, reader in enumerate((near_rank, *far_ranks)):
            assert answer(reader, f"{rank} {step}".encode()) == message
        replies = writer.wait_replies(seq, timeout_s=30.0)
        assert replies == {rank: (zlib.crc32(message), f"{rank} {step}".encode()) for rank in range(3)}


def test_messages_run_ahead_up_to_the_rings_slots(
    writer: RingWriter, near_rank: RingReader, far_ranks: list[RingReader]
) -> None:
    def serve(reader: RingReader) -> None:
        for _ in range(500):
            answer(reader)

    threads = [threading.Thread(target=serve, args=(reader,)) for reader in (near_rank, *far_ranks)]
    for thread in threads:
        thread.start()
    for step in range(500):
        seq = writer.publish(struct.pack("<I", step), timeout_s=30.0)
    assert set(writer.wait_replies(seq, timeout_s=30.0).values()) == {(zlib.crc32(struct.pack("<I", 499)), b"")}
    for thread in threads:
        thread.join()


def test_progress_of_the_other_host_is_its_ranks_own(writer: RingWriter, far_ranks: list[RingReader]) -> None:
    far_ranks[1].beat(10**12)
    deadline = time.monotonic() + 10.0
    while writer.progress()[2] != 10**12:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert writer.progress()[1] == 0


def test_error_of_a_far_rank_carries_its_rank_and_text(writer: RingWriter, far_ranks: list[RingReader]) -> None:
    seq = writer.publish(b"")
    far_ranks[1].recv(10.0)
    far_ranks[1].reply(seq, 0, b"ValueError: bad page", status=1)
    with pytest.raises(RankError, match=r"^rank 2: ValueError: bad page$"):
        writer.wait_replies(seq, [0], timeout_s=30.0)


def test_abort_crosses_the_bridge(writer: RingWriter, far_ranks: list[RingReader]) -> None:
    writer.abort("rank 0 is stuck")
    for reader in far_ranks:
        with pytest.raises(RingAbortedError, match=r"^step ring of epoch 3 ended: rank 0 is stuck$"):
            reader.recv(30.0)


def test_finish_crosses_the_bridge_after_the_last_message_and_its_replies_come_back(
    writer: RingWriter, near_rank: RingReader, far_ranks: list[RingReader]
) -> None:
    seq = writer.publish(b"stop")
    writer.finish()
    for reader in far_ranks:
        assert answer(reader) == b"stop"
        with pytest.raises(RingFinishedError):
            reader.recv(30.0)
        reader.close()
    answer(near_rank)
    assert set(writer.wait_replies(seq, timeout_s=30.0)) == {0, 1, 2}


def test_error_of_a_far_rank_arrives_though_its_relay_closes_at_once(
    writer: RingWriter, far_ranks: list[RingReader], bridged: BridgeClient
) -> None:
    seq = writer.publish(b"")
    far_ranks[0].recv(10.0)
    far_ranks[0].reply(seq, 0, b"RuntimeError: out of memory", status=1)
    bridged.close()
    with pytest.raises(RankError, match=r"^rank 1: RuntimeError: out of memory"):
        writer.wait_replies(seq, timeout_s=30.0)


def test_answers_that_come_after_the_relays_own_are_sent_before_it_closes(
    writer: RingWriter, near_rank: RingReader, far_ranks: list[RingReader], bridged: BridgeClient
) -> None:
    seq = writer.publish(b"stop")
    writer.finish()
    answer(near_rank)
    answer(far_ranks[0])
    with pytest.raises(RingFinishedError):
        far_ranks[0].recv(30.0)
    closing = threading.Thread(target=bridged.close)
    closing.start()
    answer(far_ranks[1])
    closing.join()
    assert set(writer.wait_replies(seq, timeout_s=30.0)) == {0, 1, 2}


def test_far_ranks_finish_though_the_server_closes_at_once(
    writer: RingWriter, far_ranks: list[RingReader], server: BridgeServer
) -> None:
    writer.publish(b"stop")
    writer.finish()
    server.close()
    for reader in far_ranks:
        assert answer(reader) == b"stop"
        with pytest.raises(RingFinishedError):
            reader.recv(30.0)


def test_lost_connection_is_the_death_of_the_far_ranks_and_an_abort_for_them(
    writer: RingWriter, near_rank: RingReader, far_ranks: list[RingReader], bridged: BridgeClient, server: BridgeServer
) -> None:
    seq = writer.publish(b"")
    bridged._channel.close()
    answer(near_rank)
    with pytest.raises(RankDiedError, match=r"^rank 1: connection to its host lost: "):
        writer.wait_replies(seq, timeout_s=30.0)
    for reader in far_ranks:
        with pytest.raises(
            RingAbortedError, match=rf"connection to the coordinator at 127.0.0.1:{server.address[1]} lost"
        ):
            while True:
                reader.recv(30.0)


def test_closed_server_aborts_the_far_ring(far_ranks: list[RingReader], server: BridgeServer) -> None:
    server.close()
    with pytest.raises(RingAbortedError, match=r"lost: the peer closed it"):
        far_ranks[0].recv(30.0)


def test_closed_client_is_the_death_of_its_ranks(
    writer: RingWriter, far_ranks: list[RingReader], bridged: BridgeClient
) -> None:
    seq = writer.publish(b"")
    bridged.close()
    with pytest.raises(RankDiedError, match=r"^rank 1: connection to its host lost"):
        writer.wait_replies(seq, [1], timeout_s=30.0)


@pytest.mark.parametrize("token", [b"", bytes(32), bytes(33)], ids=["none", "zeros", "longer"])
def test_wrong_token_is_refused_and_the_right_one_still_admitted(
    far: RingWriter, server: BridgeServer, token: bytes
) -> None:
    with pytest.raises(PlanError, match=r"refused: wrong token"):
        BridgeClient(server.address, token, far)
    BridgeClient(server.address, server.token, far).close()


def test_strangers_do_not_disturb(far: RingWriter, server: BridgeServer) -> None:
    with socket.create_connection(server.address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: somebody.else\r\n\r\n")
        assert stranger.recv(100) == b""
    socket.create_connection(server.address).close()
    BridgeClient(server.address, server.token, far).close()


@pytest.mark.parametrize(
    ("num_readers", "sizes", "message"),
    [
        (3, {}, "expected layout version 1, epoch 3, 2 ranks, got version 1, epoch 3, 3 ranks"),
        (2, {"epoch": 4}, "expected layout version 1, epoch 3, 2 ranks, got version 1, epoch 4, 2 ranks"),
        (2, {"slot_bytes": 4095}, "expected num_slots >= 8, slot_bytes >= 4096 and reply_bytes <= 64, got 8, 4095 and"),
        (2, {"num_slots": 7}, "got 7, 4096 and 64"),
        (2, {"reply_bytes": 65}, "got 8, 4096 and 65"),
    ],
)
def test_ring_that_does_not_fit_the_coordinators_is_refused(
    server: BridgeServer, tmp_path: Path, num_readers: int, sizes: dict[str, int], message: str
) -> None:
    with make_ring(num_readers, tmp_path / "far", **sizes) as other, pytest.raises(PlanError, match=message):
        BridgeClient(server.address, server.token, other)


def test_ring_unlinked_too_early_is_refused_by_name(writer: RingWriter, far: RingWriter, server: BridgeServer) -> None:
    writer.unlink()
    with pytest.raises(PlanError, match=r"refused: step ring .* cannot be opened on this host"):
        BridgeClient(server.address, server.token, far)


def test_address_where_nobody_listens_is_unreachable(far: RingWriter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(UnreachableError, match=rf"^step relay at 127.0.0.1:{address[1]}: .*refused"):
        BridgeClient(address, bytes(32), far)


def test_address_where_somebody_keeps_silent_is_unreachable(far: RingWriter) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(UnreachableError, match=r"silent for 0.1 s"),
    ):
        BridgeClient(listener.getsockname(), bytes(32), far, connect_timeout_s=0.1)


def test_relay_that_never_comes_leaves_its_ranks_missing(writer: RingWriter, near_rank: RingReader) -> None:
    bridge = BridgeServer(writer.handle, [1, 2], "127.0.0.1", accept_timeout_s=0.05)
    with pytest.raises(StepTimeoutError, match=r"ranks \[1, 2\] did not attach"):
        writer.wait_attached(0.5)
    with pytest.raises(OSError, match=r"refused"):
        socket.create_connection(bridge.address)
    bridge.close()


@pytest.fixture
def host(
    writer: RingWriter, server: BridgeServer, near_rank: RingReader, tmp_path: Path, start: Callable[..., Any]
) -> list[Any]:
    """A relay process and two rank processes of the other host; the near rank is the test's."""
    (tmp_path / "far").mkdir()
    relay = start("relay", server.address, server.token.hex(), str(tmp_path / "far"), "2")
    handle = relay.handle()
    ranks = [start("echo", handle, str(idx)) for idx in range(2)]
    writer.wait_attached(30.0)
    seq = writer.publish(b"warm")
    answer(near_rank)
    assert {reply.digest for reply in writer.wait_replies(seq, timeout_s=30.0).values()} == {zlib.crc32(b"warm")}
    return [relay, *ranks]


def test_killed_far_rank_is_named(writer: RingWriter, host: list[Any]) -> None:
    os.kill(host[2].pid, signal.SIGSTOP)
    seq = writer.publish(b"")
    os.kill(host[2].pid, signal.SIGKILL)
    with pytest.raises(RankDiedError, match=rf"^rank 2: its process {host[2].pid} is gone$"):
        writer.wait_replies(seq, [2], timeout_s=30.0)


def test_stopped_far_rank_is_named(writer: RingWriter, host: list[Any]) -> None:
    os.kill(host[1].pid, signal.SIGSTOP)
    seq = writer.publish(b"")
    with pytest.raises(StepTimeoutError, match=r"^rank 1: no answer to message 2 in 0.5 s"):
        writer.wait_replies(seq, [1, 2], timeout_s=0.5)
    os.kill(host[1].pid, signal.SIGCONT)
    assert set(writer.wait_replies(seq, [1, 2], timeout_s=30.0)) == {1, 2}


def test_killed_relay_is_the_death_of_its_host_and_its_ranks_notice(
    writer: RingWriter, host: list[Any], tmp_path: Path
) -> None:
    relay, *ranks = host
    for rank in ranks:
        os.kill(rank.pid, signal.SIGSTOP)
    seq = writer.publish(b"")
    relay.end()
    with pytest.raises(RankDiedError, match=r"^rank 1: connection to its host lost: "):
        writer.wait_replies(seq, [1, 2], timeout_s=30.0)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGCONT)
    for rank in ranks:
        assert rank.line() == "ready"
        assert rank.line() == f"WriterDiedError step ring of epoch 3 ended: its process {relay.pid} is gone"
    assert list((tmp_path / "far").iterdir()) == []


def test_handle_and_token_cross_between_processes_as_plain_values(writer: RingWriter, server: BridgeServer) -> None:
    assert pickle.loads(pickle.dumps((writer.handle, server.address, server.token))) == (
        writer.handle,
        server.address,
        server.token,
    )


def test_relay_that_falls_silent_is_the_death_of_its_ranks(
    writer: RingWriter, near_rank: RingReader, tmp_path: Path, start: Callable[..., Any]
) -> None:
    server = BridgeServer(writer.handle, [1, 2], "127.0.0.1", silence_s=1.0)
    (tmp_path / "far").mkdir()
    relay = start("relay", server.address, server.token.hex(), str(tmp_path / "far"), "2")
    handle = relay.handle()
    for idx in range(2):
        start("echo", handle, str(idx))
    writer.wait_attached(30.0)
    os.kill(relay.pid, signal.SIGSTOP)
    seq = writer.publish(b"")
    with pytest.raises(RankDiedError, match=r"^rank 1: connection to its host lost: silent for 1 s"):
        writer.wait_replies(seq, [1], timeout_s=30.0)
    server.close()
