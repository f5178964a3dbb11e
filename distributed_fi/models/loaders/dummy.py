# SPDX-License-Identifier: Apache-2.0
"""Random weights for a model's shape: for measuring without the model's files."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import torch

from distributed_fi.config import ModelConfig
from distributed_fi.models.loaders.checkpoint import Checkpoint
from distributed_fi.models.weights import WeightSlice

WEIGHT_STD = 0.02
BLOCK_ROWS = 64


class DummyCheckpoint(Checkpoint):
    """Seeded normal weights of standard deviation 0.02; norms multiply by 1, biases are 0.

    Every block of 64 rows of a tensor has a seed of its own, made of `seed`, the tensor's name and
    the block's number, so a rank draws only the blocks its slice touches, and the whole tensors are the same for
    every tp. They differ between a CPU and a GPU, whose generators differ.
    """

    def __init__(self, path: Path, config: ModelConfig, seed: int = 0):
        super().__init__(path, config)
        self.seed = seed

    def read(self, piece: WeightSlice, out: torch.Tensor) -> None:
        if len(piece.shape) == 1:
            is_scale = "norm" in piece.name and not self.config.norm_adds_one
            out.fill_(1.0 if is_scale else 0.0)
            return
        rows, cols = piece.span_of(0), piece.span_of(1)
        drawn = torch.empty(BLOCK_ROWS, piece.shape[1], device=out.device)
        generator = torch.Generator(device=out.device)
        for first in range(rows.start // BLOCK_ROWS * BLOCK_ROWS, rows.stop, BLOCK_ROWS):
            generator.manual_seed(_block_seed(self.seed, piece.name, first // BLOCK_ROWS))
            drawn.normal_(std=WEIGHT_STD, generator=generator)
            start, stop = max(first, rows.start), min(first + BLOCK_ROWS, rows.stop)
            block = drawn[start - first : stop - first, cols.start : cols.stop]
            out[start - rows.start : stop - rows.start].copy_(block)


def _block_seed(seed: int, name: str, block: int) -> int:
    digest = blake2b(f"{seed}:{name}:{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
