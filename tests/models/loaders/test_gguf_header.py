# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest

from distributed_fi.errors import CorruptWeightsError, UnsupportedError
from distributed_fi.models.loaders.gguf_header import read_gguf_header


def test_metadata_and_tensors_are_those_that_ggufs_own_reader_finds(make_gguf) -> None:
    path, _ = make_gguf("Q4_0")
    header, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF.") and field.types[-1] != gguf.GGUFValueType.STRING:
            assert header.metadata[key] == field.contents()
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] is None
    ours = [(t.name, list(t.shape)[::-1], t.type, t.offset, t.num_bytes) for t in header.tensors.values()]
    wanted = [(t.name, t.shape.tolist(), t.tensor_type, t.data_offset, t.n_bytes) for t in theirs.tensors]
    assert ours == wanted


def test_a_truncated_file_tells_both_lengths(make_gguf) -> None:
    path, _ = make_gguf()
    length = path.stat().st_size
    # The writer pads the last tensor, which the header does not promise.
    promised = max(t.offset + t.num_bytes for t in read_gguf_header(path).tensors.values())
    assert promised <= length < promised + 32
    path.write_bytes(path.read_bytes()[:12345])
    with pytest.raises(CorruptWeightsError) as caught:
        read_gguf_header(path)
    assert str(caught.value) == f"{path}: is 12345 bytes, its header promises {promised}"


@pytest.mark.parametrize("length", [4, 7, 20, 100, 700, 2000])
def test_a_file_cut_inside_its_header_is_corrupt(make_gguf, length: int) -> None:
    path, _ = make_gguf()
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptWeightsError, match=f"is {length} bytes and ends inside its header"):
        read_gguf_header(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_not_gguf_is_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CorruptWeightsError, match=f"is {len(content)} bytes and does not start with GGUF"):
        read_gguf_header(path)


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    with pytest.raises(UnsupportedError, match=f"GGUF version: expected 2 or 3, little endian, got {version}"):
        read_gguf_header(path)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


HUGE = struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    "body, problem",
    [
        (key(b"a", 99, b""), "has a garbled GGUF header"),
        (key(b"a", 8, HUGE), "ends inside its header"),
        (key(b"a", 9, struct.pack("<I", 5) + HUGE), "ends inside its header"),
        (key(b"a", 9, struct.pack("<I", 8) + HUGE), "ends inside its header"),
        (key(b"\xff\xfe", 4, bytes(4)), "has a garbled GGUF header"),
        (key(b"general.alignment", 4, bytes(4)), "general.alignment is 0"),
    ],
)
def test_garbled_metadata_is_corrupt(tmp_path: Path, body: bytes, problem: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + body)
    with pytest.raises(CorruptWeightsError, match=problem):
        read_gguf_header(path)


def tensor(num_dims: int, *rest: int) -> bytes:
    *dims, kind, offset = rest
    return struct.pack(f"<Q1sI{len(dims)}QIQ", 1, b"t", num_dims, *dims, kind, offset)


@pytest.mark.parametrize(
    "entry, problem",
    [
        (tensor(5, 1, 1, 1, 1, 1, 0, 0), "has 5 dimensions"),
        (tensor(1, 32, 999, 0), "999 is not a valid GGMLQuantizationType"),
        (tensor(2, 33, 4, 8, 0), "a row of t is 33 values, no multiple of the 32 of Q8_0"),
        (tensor(2, 2**40, 2**40, 0, 0), "its header promises"),
    ],
)
def test_a_garbled_tensor_table_is_corrupt(tmp_path: Path, entry: bytes, problem: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry)
    with pytest.raises(CorruptWeightsError, match=problem):
        read_gguf_header(path)


def test_a_model_in_several_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key(b"split.count", 2, struct.pack("<H", 3)))
    with pytest.raises(UnsupportedError, match=r"split\.count: expected 1"):
        read_gguf_header(path)
