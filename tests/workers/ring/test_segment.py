# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distributed_fi.errors import InvalidArgumentError, PlanError, ResourceError
from distributed_fi.workers.ring import layout as at
from distributed_fi.workers.ring.layout import RingLayout
from distributed_fi.workers.ring.process import ProcessId
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.segment import Segment, can_attach, host_id, sweep, write_process
from distributed_fi.workers.ring.writer import RingWriter

LAYOUT = RingLayout(num_readers=2, num_slots=2, slot_bytes=64, reply_slots=3, reply_bytes=64)


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    return Segment.create(LAYOUT, epoch=5, directory=tmp_path)


def test_segment_is_private_named_after_its_owner_and_shared_by_those_who_open_it(segment: Segment) -> None:
    path = Path(segment.handle.path)
    assert re.fullmatch(rf"dfi-{os.getpid()}-[0-9a-f]{{8}}", path.name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == LAYOUT.total_bytes
    other = Segment.open(segment.handle)
    segment.words[at.PUBLISHED_WORD] = 17
    assert other.words[at.PUBLISHED_WORD] == 17


def test_unlinked_segment_leaves_nothing_and_still_works(segment: Segment, tmp_path: Path) -> None:
    other = Segment.open(segment.handle)
    segment.unlink()
    segment.unlink()
    assert list(tmp_path.iterdir()) == []
    segment.words[at.PUBLISHED_WORD] = 3
    assert other.words[at.PUBLISHED_WORD] == 3


def test_segment_is_made_in_the_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFI_SHM_DIR", str(tmp_path))
    with RingWriter.create(1, slot_bytes=8, reply_bytes=8, epoch=1) as writer:
        assert Path(writer.handle.path).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        (at.MAGIC_WORD, 0, "expected magic"),
        (at.VERSION_WORD, 99, "expected layout version 1, got 99"),
        (at.NONCE_WORD, 0, "expected nonce"),
        (at.EPOCH_WORD, 4, "expected epoch 5, got 4"),
        (at.NUM_SLOTS_WORD, 7, r"expected sizes \[2, 2, 64, 3, 64\], got \[2, 7, 64, 3, 64\]"),
    ],
)
def test_header_that_differs_is_refused(segment: Segment, word: int, value: int, message: str) -> None:
    segment.words[word] = value
    with pytest.raises(PlanError, match=message):
        RingReader.attach(segment.handle, 0)
    assert not can_attach(segment.handle)


def test_segment_of_another_size_is_refused(segment: Segment) -> None:
    os.truncate(segment.handle.path, LAYOUT.total_bytes + 64)
    with pytest.raises(PlanError, match=rf"expected {LAYOUT.total_bytes} bytes, got {LAYOUT.total_bytes + 64}"):
        RingReader.attach(segment.handle, 0)


def test_only_the_writers_own_memory_can_be_attached(segment: Segment) -> None:
    assert can_attach(segment.handle)
    assert not can_attach(dataclasses.replace(segment.handle, nonce=bytes(16)))
    missing = dataclasses.replace(segment.handle, path=segment.handle.path + "0")
    assert not can_attach(missing)
    with pytest.raises(PlanError, match=r"cannot be opened on this host"):
        RingReader.attach(missing, 0)


def test_place_taken_and_place_that_is_none_are_refused(segment: Segment) -> None:
    RingReader.attach(segment.handle, 1)
    with pytest.raises(PlanError, match=r"reader 1 is already attached"):
        RingReader.attach(segment.handle, 1)
    with pytest.raises(InvalidArgumentError, match=r"reader_idx: expected 0 <= reader_idx < 2, got 2"):
        RingReader.attach(segment.handle, 2)


def test_folder_without_room_is_named_with_bytes_needed_and_free(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    slot_bytes = free.f_blocks * free.f_frsize
    with pytest.raises(ResourceError, match=rf"^{tmp_path}: \d+ bytes of .* needed, \d+ bytes available$"):
        RingWriter.create(1, slot_bytes=slot_bytes, reply_bytes=8, epoch=1, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_room_that_ends_while_it_is_reserved_is_an_error_and_no_sigbus(tmp_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
from distributed_fi.errors import ResourceError
from distributed_fi.workers.ring.writer import RingWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    RingWriter.create(1, slot_bytes=1 << 16, reply_bytes=8, epoch=1, directory=Path({str(tmp_path)!r}))
except ResourceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert re.search(r"\d+ bytes of shared memory for the step ring needed, fewer \(File too large\)", done.stdout)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"nowhere: .* no such folder to write to"):
        Segment.create(LAYOUT, epoch=1, directory=tmp_path / "nowhere")
    assert sweep(tmp_path / "nowhere") == []


def test_sweep_removes_only_what_a_killed_owner_left(tmp_path: Path, start: Callable[..., Any]) -> None:
    owner = start("own", str(tmp_path), "1")
    orphan = owner.handle().path
    owner.end()
    living = Segment.create(LAYOUT, epoch=1, directory=tmp_path)
    recycled = Segment.create(LAYOUT, epoch=1, directory=tmp_path)
    me = ProcessId.current()
    write_process(recycled.words, at.OWNER_WORD, dataclasses.replace(me, start_ticks=me.start_ticks - 1))
    newer = Segment.create(LAYOUT, epoch=1, directory=tmp_path)
    newer.words[at.VERSION_WORD] = at.VERSION + 1
    write_process(newer.words, at.OWNER_WORD, ProcessId(2**22 + 1, 1, me.namespace))
    foreign = tmp_path / "dfi-notes.txt"
    foreign.write_bytes(b"somebody else's")
    young, old = tmp_path / "dfi-1-00000000", tmp_path / "dfi-1-11111111"
    young.write_bytes(bytes(4096))
    old.write_bytes(bytes(100))
    os.utime(old, (1.0, 1.0))

    removed = sweep(tmp_path)

    assert sorted(map(str, removed)) == sorted([orphan, recycled.handle.path, str(old)])
    left = {living.handle.path, newer.handle.path, str(foreign), str(young)}
    assert {str(path) for path in tmp_path.iterdir()} == left


def test_new_ring_sweeps_first(tmp_path: Path, start: Callable[..., Any]) -> None:
    owner = start("own", str(tmp_path), "1")
    orphan = Path(owner.handle().path)
    owner.end()
    assert orphan.exists()
    with RingWriter.create(1, slot_bytes=8, reply_bytes=8, epoch=1, directory=tmp_path):
        assert not orphan.exists()


def test_host_id_is_the_machines_unless_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFI_HOST_ID", raising=False)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert host_id() == f"{boot_id}-{os.uname().nodename}"
    monkeypatch.setenv("DFI_HOST_ID", "left")
    assert host_id() == "left"
