# SPDX-License-Identifier: Apache-2.0
"""The header of a GGUF file: metadata and tensor table, checked against the file's length.

gguf's own reader makes an array object of every vocabulary entry (seconds) and does not notice a
truncated file; this one walks over string arrays and reads nothing else twice.
Source: the GGUF specification, versions 2 and 3, little endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from distributed_fi.errors import CorruptWeightsError, UnsupportedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

MetadataValue = int | float | bool | str | list | None


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: shape as [rows, columns], the type of its blocks, and its bytes [offset, offset + num_bytes)."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors by name. A list of strings is None: the tokenizer reads those itself."""

    path: Path
    metadata: dict[str, MetadataValue]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path, *, needs_weights: bool = True) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Args:
        needs_weights: whether the file must be as long as its tensor table promises.

    Raises:
        CorruptWeightsError: not GGUF, garbled, or shorter than its tensor table promises.
        UnsupportedError: another version, or a model split over several files.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise CorruptWeightsError(str(path), f"is {file_bytes} bytes and does not start with GGUF")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                header = _Reader(path, view).header()
            except struct.error as error:
                raise CorruptWeightsError(str(path), f"is {file_bytes} bytes and ends inside its header") from error
            except (UnicodeDecodeError, KeyError, ValueError, OverflowError, MemoryError) as error:
                if isinstance(error, UnsupportedError):
                    raise
                raise CorruptWeightsError(str(path), f"has a garbled GGUF header: {error}") from error
    promised = max((tensor.offset + tensor.num_bytes for tensor in header.tensors.values()), default=0)
    if needs_weights and promised > file_bytes:
        raise CorruptWeightsError(str(path), f"is {file_bytes} bytes, its header promises {promised}")
    return header


class _Reader:
    """A cursor over the header."""

    def __init__(self, path: Path, view: mmap.mmap):
        self.path, self.view, self.pos = path, view, len(MAGIC)

    def header(self) -> GgufHeader:
        version = self.scalar("I")
        if version not in VERSIONS:
            raise UnsupportedError("GGUF version", version, "2 or 3, little endian")
        num_tensors, num_keys = self.scalar("Q"), self.scalar("Q")
        metadata = {}
        for _ in range(num_keys):
            key = self.string()
            metadata[key] = self.value(self.scalar("I"))
        if metadata.get("split.count", 1) not in (0, 1):
            raise UnsupportedError("split.count", metadata["split.count"], "1 (a model in one GGUF file)")
        table = [self.table_entry() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        data_start = -(-self.pos // alignment) * alignment
        tensors = {name: _stored(name, dims, kind, data_start + at) for name, dims, kind, at in table}
        return GgufHeader(self.path, metadata, tensors)

    def table_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        num_dims = self.scalar("I")
        if num_dims > 4:
            raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
        return name, self.scalars("Q", num_dims), self.scalar("I"), self.scalar("Q")

    def value(self, kind: int) -> MetadataValue:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALAR_FORMATS[kind])
        item_kind, count = self.scalar("I"), self.scalar("Q")
        if item_kind != STRING:
            return list(self.scalars(SCALAR_FORMATS[item_kind], count))
        for _ in range(count):
            self.skip(self.scalar("Q"))
        return None

    def scalar(self, code: str) -> int:
        return self.scalars(code, 1)[0]

    def scalars(self, code: str, count: int) -> tuple:
        layout = f"<{count}{code}"
        items = struct.unpack_from(layout, self.view, self.pos)
        self.pos += struct.calcsize(layout)
        return items

    def string(self) -> str:
        start = self.pos + 8
        self.skip(self.scalar("Q"))
        return self.view[start : self.pos].decode("utf-8")

    def skip(self, num_bytes: int) -> None:
        if self.pos + num_bytes > len(self.view):
            raise struct.error(f"{num_bytes} bytes at {self.pos}")
        self.pos += num_bytes


def _stored(name: str, dims: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    block_type = GGMLQuantizationType(kind)
    block_size, block_bytes = GGML_QUANT_SIZES[block_type]
    shape = tuple(reversed(dims))
    if shape and shape[-1] % block_size != 0:
        raise ValueError(f"a row of {name} is {shape[-1]} values, no multiple of the {block_size} of {block_type.name}")
    return GgufTensor(name, shape, block_type, offset, math.prod(shape) // block_size * block_bytes)
