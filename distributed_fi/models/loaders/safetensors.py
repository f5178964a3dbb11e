# SPDX-License-Identifier: Apache-2.0
"""Weights of a Hugging Face folder: one model.safetensors, or shards named by an index."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distributed_fi.config import ModelConfig
from distributed_fi.errors import CorruptWeightsError, NotFoundError, UnsupportedError
from distributed_fi.models.decoder_weights import LM_HEAD, iter_tensor_shapes
from distributed_fi.models.loaders.checkpoint import Checkpoint
from distributed_fi.models.weights import WeightSlice, check_tensors

INDEX_NAME = "model.safetensors.index.json"
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER_BYTES = 100_000_000  # The format's own limit; a larger length is no header.


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies, from its file's header."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class SafetensorsCheckpoint(Checkpoint):
    """A Hugging Face folder with safetensors; a slice is copied out of the memory-mapped shard.

    Raises:
        NotFoundError: the folder has no safetensors.
        CorruptWeightsError: a shard is missing, truncated or garbled, or a tensor is missing or
            has another shape than the config says.
        UnsupportedError: a dtype or a tensor that is not served.
    """

    def __init__(self, path: Path, config: ModelConfig):
        super().__init__(path, config)
        self._shards: dict[Path, Any] = {}
        self._tensors = {name: tensor for file in shard_files(path) for name, tensor in read_header(file).items()}
        shapes = {name: t.shape for name, t in self._tensors.items() if not _is_derived(name, config)}
        check_tensors(str(path), iter_tensor_shapes(config), shapes)
        for name in shapes:
            dtype = self._tensors[name].dtype
            if dtype not in DTYPE_BYTES:
                raise UnsupportedError(f"dtype of {name}", dtype, f"one of {', '.join(DTYPE_BYTES)}")

    def read(self, piece: WeightSlice, out: torch.Tensor) -> None:
        stored = self._tensors[piece.name]
        index = (slice(None),) * piece.dim + (slice(piece.span.start, piece.span.stop),)
        try:
            tensor: torch.Tensor = self._shard(stored.file).get_slice(piece.name)[index]
        except (SafetensorError, OSError) as error:
            raise CorruptWeightsError(str(stored.file), f"{piece.name} cannot be read: {error}") from error
        self.bytes_read += tensor.numel() * tensor.element_size()
        out.copy_(tensor)

    def _shard(self, file: Path) -> Any:
        # Kept open: a model with experts reads thousands of slices, and opening parses the header each time.
        if file not in self._shards:
            self._shards[file] = safe_open(file, framework="pt", device="cpu")
        return self._shards[file]


def shard_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, each of which exists.

    Raises:
        NotFoundError: there are none.
        CorruptWeightsError: the index is garbled or names a file that is missing.
    """
    index_path = folder / INDEX_NAME
    if not index_path.is_file():
        files = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
        files = files or sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            found = f"{folder} with {len(files)} of them"
            raise NotFoundError("model", found, f"a folder with one .safetensors file, or {INDEX_NAME}")
        return files
    try:
        names = sorted(set(json.loads(index_path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeightsError(str(index_path), "is not JSON with a weight_map from tensor to file") from error
    for name in names:
        if not (folder / name).is_file():
            raise CorruptWeightsError(str(folder / name), f"is missing, {INDEX_NAME} names it")
    return [folder / name for name in names]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors a safetensors file holds, by name, once its length agrees with its header.

    Raises:
        CorruptWeightsError: the header is garbled, or the file's length is not what it promises.
    """
    file_bytes = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
        if header_bytes is None or header_bytes > MAX_HEADER_BYTES:
            raise CorruptWeightsError(str(file), f"is {file_bytes} bytes and does not start with a safetensors header")
        if file_bytes < 8 + header_bytes:
            raise _wrong_length(file, file_bytes, 8 + header_bytes)
        header = stream.read(header_bytes)
    try:
        entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        tensors = {name: StoredTensor(file, tuple(e["shape"]), e["dtype"]) for name, e in entries.items()}
        ends = [_checked_end(file, name, e) for name, e in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeightsError(str(file), "has a garbled safetensors header") from error
    promised = 8 + header_bytes + max(ends, default=0)
    if promised != file_bytes:
        raise _wrong_length(file, file_bytes, promised)
    return tensors


def _checked_end(file: Path, name: str, entry: dict) -> int:
    start, end = entry["data_offsets"]
    item_bytes = DTYPE_BYTES.get(entry["dtype"])
    if item_bytes is not None and end - start != math.prod(entry["shape"]) * item_bytes:
        problem = f"{name} is {end - start} bytes, not those of {entry['shape']} {entry['dtype']}"
        raise CorruptWeightsError(str(file), problem)
    return int(end)


def _wrong_length(file: Path, file_bytes: int, promised: int) -> CorruptWeightsError:
    return CorruptWeightsError(str(file), f"is {file_bytes} bytes, its header promises {promised}")


def _is_derived(name: str, config: ModelConfig) -> bool:
    # Old exports store rotary frequencies, and some tied models their embedding a second time.
    return name.endswith(".rotary_emb.inv_freq") or (name == LM_HEAD and config.tie_word_embeddings)
