# SPDX-License-Identifier: Apache-2.0
"""A process beside the test's: `python rank_process.py ROLE HANDLE_HEX [ARGUMENT...]`; says "ready" when it is."""

from __future__ import annotations

import os
import pickle
import random
import sys
import time
import zlib
from pathlib import Path

from distributed_fi.errors import DfiError
from distributed_fi.workers.ring.bridge import BridgeClient
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.segment import RingHandle
from distributed_fi.workers.ring.writer import RingWriter


def echo(handle: RingHandle, reader_idx: str, stall_seed: str = "", idle_s: str = "0.5") -> None:
    """Answer every message with its CRC as the digest and its number as the payload, until the ring ends."""
    stalls = random.Random(stall_seed) if stall_seed else None
    with RingReader.attach(handle, int(reader_idx)) as reader:
        print("ready", flush=True)
        while True:
            seq, view = reader.recv(idle_s=float(idle_s))
            if stalls is not None and stalls.random() < 0.01:
                time.sleep(stalls.random() * 1e-3)
            reader.reply(seq, zlib.crc32(view), str(seq).encode())


def fail(handle: RingHandle, reader_idx: str, text: str) -> None:
    """Answer the first message with an error and end."""
    with RingReader.attach(handle, int(reader_idx)) as reader:
        print("ready", flush=True)
        seq, _ = reader.recv()
        reader.reply(seq, 0, text.encode(), status=1)


def answer_once(handle: RingHandle, reader_idx: str) -> None:
    """Answer one message and end."""
    with RingReader.attach(handle, int(reader_idx)) as reader:
        print("ready", flush=True)
        seq, view = reader.recv()
        reader.reply(seq, zlib.crc32(view))


def own(directory: str, num_readers: str) -> None:
    """Own a ring and do nothing: prints its handle."""
    writer = RingWriter.create(
        int(num_readers), slot_bytes=64, reply_bytes=64, epoch=1, directory=Path(directory), num_slots=2
    )
    print(pickle.dumps(writer.handle).hex(), flush=True)
    writer.wait_attached(60.0)
    print("attached", flush=True)
    time.sleep(60.0)


def relay(address: tuple[str, int], token: str, directory: str, num_readers: str) -> None:
    """Own the ring of "another host" and bridge it; prints its handle."""
    writer = RingWriter.create(
        int(num_readers), slot_bytes=4096, reply_bytes=64, epoch=3, directory=Path(directory), spin_us=0
    )
    print(pickle.dumps(writer.handle).hex(), flush=True)
    writer.wait_attached(60.0)
    client = BridgeClient(address, bytes.fromhex(token), writer)
    print("bridged", flush=True)
    time.sleep(60.0)
    client.close()


ROLES = {"echo": echo, "fail": fail, "answer_once": answer_once, "relay": relay}

if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    try:
        if role == "own":
            own(*arguments)
        else:
            ROLES[role](pickle.loads(bytes.fromhex(arguments[0])), *arguments[1:])
    except DfiError as error:
        print(type(error).__name__, error, flush=True)
        os._exit(3)
