# SPDX-License-Identifier: Apache-2.0
"""A model as an engine will serve it: everything about it that can be known before a process is started."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from distributed_fi.config import EngineConfig
from distributed_fi.coordinator.limits import Limits, limits_of
from distributed_fi.errors import InvalidArgumentError
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.models.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class ServedModel:
    """Checkpoint, limits and tokenizer of one configuration.

    Raises:
        InvalidArgumentError, NotFoundError, UnsupportedError, CorruptWeightsError: the model cannot be served so.
    """

    def __init__(self, config: EngineConfig):
        self.config = config
        self.checkpoint = open_checkpoint(config.model, config.load_format)
        self.shape = self.checkpoint.config
        self.limits: Limits = limits_of(config, self.shape)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt given as text or as ids.

        Raises:
            InvalidArgumentError: empty, without room for an answer in the context, or an id outside the vocabulary.
        """
        token_ids = tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        return self._checked(token_ids)

    def encode_chat(self, text: str) -> tuple[int, ...]:
        """Token ids of one user message in the model's chat template; errors as `encode`."""
        return self._checked(tuple(self.tokenizer.encode_chat([{"role": "user", "content": text}])))

    def _checked(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        if not token_ids:
            raise InvalidArgumentError("prompt", "", "at least one token")
        if len(token_ids) >= self.limits.max_model_len:
            room = f"fewer than {self.limits.max_model_len} tokens, the context of prompt and answer"
            raise InvalidArgumentError("prompt", f"{len(token_ids)} tokens", room)
        if not all(0 <= token < self.shape.vocab_size for token in token_ids):
            raise InvalidArgumentError("prompt", str(token_ids), f"token ids in [0, {self.shape.vocab_size})")
        return token_ids
