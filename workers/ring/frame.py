# SPDX-License-Identifier: Apache-2.0
"""What crosses the TCP connection between two hosts' rings: a 32-byte head and a payload.

kind u32 | reader_idx u32 | seq u64 | digest u64 | nbytes u64 | payload         little-endian
"""

from __future__ import annotations

import socket
import struct
import threading
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<IIQQQ")


class Kind(IntEnum):
    """What a frame says; `reader_idx` counts the remote host's ranks."""

    HELLO = 1  # relay -> coordinator: token and sizes of its ring
    WELCOME = 2
    REFUSED = 3  # payload: why
    MESSAGE = 4  # coordinator -> relay: seq, payload
    REPLY = 5  # relay -> coordinator: reader_idx, seq, digest, payload
    PROGRESS = 6  # relay -> coordinator: one u64 counter per rank; also the sign of life
    FAILED = 7  # relay -> coordinator: reader_idx, payload: the rank's error
    DEAD = 8  # relay -> coordinator: reader_idx, payload: what is known
    FINISH = 9  # coordinator -> relay: no message follows
    ABORT = 10  # coordinator -> relay: payload: why
    BEAT = 11  # coordinator -> relay: sign of life


class Frame(NamedTuple):
    """One received frame."""

    kind: int
    reader_idx: int
    seq: int
    digest: int
    payload: bytes


class Channel:
    """Frames over a connected socket; one thread receives, any may send.

    Args:
        max_bytes: largest payload that is accepted.
        silence_s: a peer that sends nothing, or takes nothing, for longer is lost.
    """

    def __init__(self, connection: socket.socket, *, max_bytes: int, silence_s: float):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(silence_s)
        self._socket, self._max_bytes, self.silence_s = connection, max_bytes, silence_s
        self._sending = threading.Lock()

    def set_limits(self, *, max_bytes: int, silence_s: float) -> None:
        """Change both limits, once the peer has shown who it is."""
        self._max_bytes, self.silence_s = max_bytes, silence_s
        self._socket.settimeout(silence_s)

    def send(
        self, kind: Kind, payload: bytes | memoryview = b"", *, reader_idx: int = 0, seq: int = 0, digest: int = 0
    ) -> None:
        """Send one frame.

        Raises:
            OSError: the connection is lost.
        """
        head = _HEAD.pack(kind, reader_idx, seq, digest, len(payload))
        with self._sending:
            self._socket.sendall(b"".join((head, payload)))  # in one piece, one packet where it fits

    def recv(self) -> Frame:
        """The next frame.

        Raises:
            OSError: the connection is lost, silent for too long, or carries no frames.
        """
        kind, reader_idx, seq, digest, nbytes = _HEAD.unpack(self._recv_exactly(_HEAD.size))
        if nbytes > self._max_bytes:
            raise ConnectionError(f"a frame of {nbytes} bytes, at most {self._max_bytes} expected")
        return Frame(kind, reader_idx, seq, digest, bytes(self._recv_exactly(nbytes)))

    def close(self) -> None:
        """End the connection in both directions; a thread that waits on it gets an OSError."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer was faster
        finally:
            self._socket.close()

    def _recv_exactly(self, nbytes: int) -> bytearray:
        buffer = bytearray(nbytes)
        rest = memoryview(buffer)
        while rest:
            try:
                received = self._socket.recv_into(rest)
            except TimeoutError as error:
                raise TimeoutError(f"silent for {self.silence_s:g} s") from error
            if received == 0:
                raise ConnectionError("the peer closed it")
            rest = rest[received:]
        return buffer
