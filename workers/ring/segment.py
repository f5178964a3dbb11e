# SPDX-License-Identifier: Apache-2.0
"""The memory of a ring: made, mapped, proved to be the same, and removed.

A plain file in a tmpfs, mapped; multiprocessing.shared_memory is avoided because its resource tracker removes
a segment when the first process that merely attached to it ends.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distributed_fi import env
from distributed_fi.errors import PlanError, ResourceError
from distributed_fi.workers.ring import futex
from distributed_fi.workers.ring import layout as at
from distributed_fi.workers.ring.layout import WORD_BYTES, RingLayout
from distributed_fi.workers.ring.process import ProcessId

_NAME = re.compile(r"dfi-\d+-[0-9a-f]{8}")
_UNFINISHED_S = 60.0  # a segment whose header is not written after this long has lost its maker


@dataclass(frozen=True, kw_only=True)
class RingHandle:
    """What a reader needs to attach; picklable. The nonce proves that it maps the writer's memory."""

    path: str
    nonce: bytes
    epoch: int
    layout: RingLayout


class Segment:
    """A mapped ring: `words` (uint64), `words32` (uint32) and `octets` (bytes) of the same memory."""

    def __init__(self, handle: RingHandle, mapping: mmap.mmap):
        self.handle = handle
        self.is_closed = False
        self.octets = memoryview(mapping)
        self.words = self.octets.cast("Q")
        self.words32 = self.octets.cast("I")
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))

    @staticmethod
    def create(layout: RingLayout, *, epoch: int, directory: Path | None = None) -> Segment:
        """Make and map a zeroed segment and write its header.

        Raises:
            ResourceError: the folder is missing, not writable or too small.
        """
        futex.check_platform()
        folder = env.shm_dir() if directory is None else directory
        path = folder / f"dfi-{os.getpid()}-{secrets.token_hex(4)}"
        handle = RingHandle(path=str(path), nonce=secrets.token_bytes(16), epoch=epoch, layout=layout)
        fd = _reserve(path, layout.total_bytes)
        try:
            segment = Segment(handle, _map(fd, layout.total_bytes))
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)
        segment._write_header()
        return segment

    @staticmethod
    def open(handle: RingHandle) -> Segment:
        """Map the segment that `handle` names.

        Raises:
            PlanError: there is none here, or it is another one: size, magic, version, nonce or sizes differ.
        """
        futex.check_platform()
        try:
            fd = os.open(handle.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise PlanError(f"step ring {handle.path}: cannot be opened on this host ({error.strerror})") from error
        try:
            size = os.fstat(fd).st_size
            if size != handle.layout.total_bytes:
                raise PlanError(f"step ring {handle.path}: expected {handle.layout.total_bytes} bytes, got {size}")
            segment = Segment(handle, _map(fd, size))
        finally:
            os.close(fd)
        try:
            segment._check_header()
        except PlanError:
            segment.close()
            raise
        return segment

    def address(self, word: int) -> int:
        """Address of a word in this process, for the kernel."""
        return self._address + word * WORD_BYTES

    def unlink(self) -> None:
        """Remove the name; the memory lives until the last process unmaps it."""
        Path(self.handle.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the memory; it is unmapped when the last view of a message that somebody holds is gone."""
        self.is_closed = True
        for view in (self.words, self.words32, self.octets):
            view.release()

    def write_end(self, kind: int, reason: str) -> None:
        """Store why the ring ends: FINISHED or ABORTED of layout.py, and a text."""
        text = reason.encode()[: at.END_TEXT_BYTES]
        start = at.END_TEXT_WORD * WORD_BYTES
        self.octets[start : start + len(text)] = text
        self.words[at.END_NBYTES_WORD] = len(text)
        self.words[at.ENDED_WORD] = kind

    def end_text(self) -> str:
        """The text stored with the end."""
        start = at.END_TEXT_WORD * WORD_BYTES
        return bytes(self.octets[start : start + self.words[at.END_NBYTES_WORD]]).decode(errors="replace")

    def _write_header(self) -> None:
        words, layout = self.words, self.handle.layout
        words[at.VERSION_WORD] = at.VERSION
        words[at.NONCE_WORD], words[at.NONCE_WORD + 1] = struct.unpack("<2Q", self.handle.nonce)
        words[at.EPOCH_WORD] = self.handle.epoch
        for word, size in zip(_SIZE_WORDS, _sizes(layout), strict=True):
            words[word] = size
        write_process(words, at.OWNER_WORD, ProcessId.current())
        words[at.MAGIC_WORD] = at.MAGIC  # last: a header with its magic is complete

    def _check_header(self) -> None:
        words, handle = self.words, self.handle
        nonce = struct.pack("<2Q", words[at.NONCE_WORD], words[at.NONCE_WORD + 1])
        sizes = [words[word] for word in _SIZE_WORDS]
        for what, expected, seen in (
            ("magic", at.MAGIC, words[at.MAGIC_WORD]),
            ("layout version", at.VERSION, words[at.VERSION_WORD]),
            ("nonce", handle.nonce.hex(), nonce.hex()),
            ("epoch", handle.epoch, words[at.EPOCH_WORD]),
            ("sizes", _sizes(handle.layout), sizes),
        ):
            if seen != expected:
                raise PlanError(f"step ring {handle.path}: expected {what} {expected}, got {seen}")


_SIZE_WORDS = (at.NUM_READERS_WORD, at.NUM_SLOTS_WORD, at.SLOT_BYTES_WORD, at.REPLY_SLOTS_WORD, at.REPLY_BYTES_WORD)


def _sizes(layout: RingLayout) -> list[int]:
    return [getattr(layout, name) for name in RingLayout.FIELDS]


def write_process(words: memoryview, word: int, process: ProcessId) -> None:
    """Store a process in three words."""
    words[word], words[word + 1], words[word + 2] = process.pid, process.start_ticks, process.namespace


def read_process(words: memoryview, word: int) -> ProcessId:
    """The process stored in three words."""
    return ProcessId(words[word], words[word + 1], words[word + 2])


def host_id() -> str:
    """What this process calls its host: DFI_HOST_ID, else boot id and host name.

    It only groups ranks that probably share memory; the nonce of a ring decides (`can_attach`).
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return env.host_id_override() or f"{boot_id}-{socket.gethostname()}"


def can_attach(handle: RingHandle) -> bool:
    """True where this process maps the very memory that `handle` names."""
    try:
        Segment.open(handle).close()
    except PlanError:
        return False
    return True


def sweep(directory: Path | None = None) -> list[Path]:
    """Remove the segments that killed processes left behind; returns the paths removed.

    A segment goes only if its owner's number, start time and pid namespace say that the process ended.
    """
    removed = []
    for path in _segments(env.shm_dir() if directory is None else directory):
        try:
            if _is_orphan(path):
                path.unlink()
                removed.append(path)
        except (FileNotFoundError, PermissionError):
            continue  # its owner removed it meanwhile, or it is another user's
    return removed


def _segments(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from (path for path in directory.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink())


def _is_orphan(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.read(at.HEADER_BYTES).ljust(at.HEADER_BYTES, b"\0")
    words = memoryview(header).cast("Q")
    if words[at.MAGIC_WORD] != at.MAGIC:
        return time.time() - path.stat().st_mtime > _UNFINISHED_S
    return words[at.VERSION_WORD] == at.VERSION and read_process(words, at.OWNER_WORD).is_gone()


def _reserve(path: Path, nbytes: int) -> int:
    """Make the file with all its memory, so that a full tmpfs is an error here and not a SIGBUS later."""
    needed = f"{nbytes} bytes of shared memory for the step ring"
    try:
        free = os.statvfs(path.parent)
        if nbytes > free.f_bavail * free.f_frsize:
            raise ResourceError(str(path.parent), needed, f"{free.f_bavail * free.f_frsize} bytes")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceError(str(path.parent), needed, f"no such folder to write to ({error.strerror})") from error
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        os.close(fd)
        path.unlink()
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM, errno.EDQUOT):
            raise
        raise ResourceError(str(path.parent), needed, f"fewer ({error.strerror})") from error
    return fd


def _map(fd: int, nbytes: int) -> mmap.mmap:
    # Populated at once, so that no step pays for a page fault.
    return mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
