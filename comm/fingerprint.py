# SPDX-License-Identifier: Apache-2.0
"""What all ranks must agree on when they meet in a collective, as 96 bytes that travel with the payload.

| bytes | field |
|---|---|
| 0-3 | crc32 of the group's name |
| 4-11 | number of the collective in its group, from 1 |
| 12, 13, 14, 15 | operation, dtype, number of dimensions, 0 |
| 16-79 | sizes of up to 8 dimensions; -1 where ranks may differ |
| 80-87 | detail: broadcast's source, or a digest of the sizes given for all ranks |
| 88-95 | bytes of payload for the receiving rank; the only field that may differ between the ranks |
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch

from distributed_fi.errors import UnsupportedError

OPS = ("barrier", "all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.int8,
    torch.int16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
MAX_DIMS = 8
HEADER_BYTES = 96
AGREED_BYTES = 88  # all but the payload's size

_OP_CODES = {op: code for code, op in enumerate(OPS)}
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_HEADER = struct.Struct("<IQBBBx8qqQ")
_SEQ = struct.Struct("<Q")
_NO_DIMS = (0,) * MAX_DIMS


class Call(NamedTuple):
    """One collective as one rank calls it: the operation, its number in the group, and what it works on."""

    op: str
    seq: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    detail: int = 0

    def header(self, group_id: int, payload_bytes: int) -> bytes:
        """The 96 bytes of this call.

        Raises:
            UnsupportedError: a dtype or number of dimensions that the header cannot say.
        """
        if self.dtype not in _DTYPE_CODES:
            allowed = ", ".join(_dtype_name(d) for d in DTYPES)
            raise UnsupportedError("dtype", _dtype_name(self.dtype), f"one of {allowed}")
        if len(self.shape) > MAX_DIMS:
            raise UnsupportedError("shape", list(self.shape), f"at most {MAX_DIMS} dimensions")
        dims = (*self.shape, *_NO_DIMS[len(self.shape) :])
        codes = (_OP_CODES[self.op], _DTYPE_CODES[self.dtype], len(self.shape))
        return _HEADER.pack(group_id, self.seq, *codes, *dims, self.detail, payload_bytes)

    def __str__(self) -> str:
        sizes = ", ".join("*" if n < 0 else str(n) for n in self.shape)
        text = "barrier" if self.op == "barrier" else f"{self.op} of {_dtype_name(self.dtype)} [{sizes}]"
        if self.op == "broadcast":
            return f"{text} from rank {self.detail}"
        return f"{text} (sizes {self.detail:08x})" if self.detail else text


def group_digest(name: str) -> int:
    """The group's name as 32 bits."""
    return zlib.crc32(name.encode())


def sizes_digest(sizes: Sequence[int], *, dim: int = 0) -> int:
    """Sizes that every rank must pass alike, and the dimension they belong to, as 32 bits; never 0."""
    return zlib.crc32(struct.pack(f"<{len(sizes) + 1}q", dim, *sizes)) | 1


def describe_header(header: bytes, group_id: int) -> str:
    """What the sender of these 96 bytes called, in words."""
    sender, seq, op, dtype, num_dims, *dims, detail, _ = _HEADER.unpack(header)
    call = Call(OPS[op], seq, DTYPES[dtype], tuple(dims[:num_dims]), detail)
    where = "" if sender == group_id else " in another group"
    return f"{call} as collective {seq}{where}"


def renumbered(header: bytearray, seq: int) -> bytearray:
    """`header`, changed in place to that of collective number `seq`: a fifth of the time of a new one."""
    _SEQ.pack_into(header, 4, seq)
    return header


def payload_bytes(header: bytes) -> int:
    """Bytes of payload that the sender announces."""
    return int.from_bytes(header[AGREED_BYTES:HEADER_BYTES], "little")


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks in words: "rank 2", "ranks 0, 2"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
