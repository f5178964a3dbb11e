# SPDX-License-Identifier: Apache-2.0
"""What every weight format offers once it is open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import torch

from distributed_fi.config import ModelConfig
from distributed_fi.models.tokenizer import Tokenizer, load_tokenizer
from distributed_fi.models.weights import WeightSlice


class Checkpoint(ABC):
    """An open, validated model on disk: its config, its tokenizer, and slices of its weights.

    Attributes:
        path: the folder or file it was read from.
        config: the model's shape.
        bytes_read: bytes of tensors read so far, as they lie in the file.
    """

    def __init__(self, path: Path, config: ModelConfig):
        self.path, self.config = path, config
        self.bytes_read = 0

    @abstractmethod
    def read(self, piece: WeightSlice, out: torch.Tensor) -> None:
        """Fill a tensor with one slice, reading no more of the file than the slice needs.

        Args:
            piece: the slice, under its tensor's Hugging Face name.
            out: [piece.sliced_shape], any float dtype and device; values are converted once.
        Raises:
            CorruptWeightsError: the tensor cannot be read.
        """

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded on the first call (seconds: it imports transformers).

        Raises:
            NotFoundError: the checkpoint has none.
        """
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path)
