# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, through transformers, which is imported when a tokenizer is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed_fi.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from distributed_fi.models.stream_decoder import StreamDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Tokenizer:
    """A model's tokenizer and chat template.

    Args:
        backend: the tokenizer of transformers that does the work.
        path: where it came from, for messages.
    """

    def __init__(self, backend: PreTrainedTokenizerBase, path: Path):
        self._backend, self._path = backend, path

    @property
    def has_chat_template(self) -> bool:
        return bool(self._backend.chat_template)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, begin-of-sequence included where the model wants it.

        Raises:
            InvalidArgumentError: the prompt is empty.
        """
        if not text:
            raise InvalidArgumentError("prompt", repr(text), "at least one character")
        return _token_ids(self._backend.encode(text))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat template, up to where its answer begins.

        Args:
            messages: each with a `role` (system, user, assistant) and a `content`.
        Raises:
            InvalidArgumentError: no message, one without role or content, or an order the template refuses.
            UnsupportedError: the model has no chat template.
        """
        if not messages:
            raise InvalidArgumentError("messages", messages, "at least one message")
        for i, message in enumerate(messages):
            for key in ("role", "content"):
                if not isinstance(message.get(key), str) or not message[key]:
                    raise InvalidArgumentError(f"messages[{i}].{key}", repr(message.get(key)), "a non-empty string")
        if not self.has_chat_template:
            raise UnsupportedError("messages", f"a chat for {self._path}", "a model with a chat template, or a prompt")
        return self._apply_template([dict(message) for message in messages])

    def _apply_template(self, messages: list[dict[str, str]]) -> list[int]:
        from jinja2 import TemplateError

        try:
            text = self._backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidArgumentError("messages", messages, f"a chat that the template takes ({error})") from error
        # The template wrote the special tokens, begin-of-sequence among them.
        return _token_ids(self._backend.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text = self._backend.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for one growing answer."""
        return StreamDecoder(self.decode)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder or a GGUF file; reads nothing but local files.

    Raises:
        NotFoundError: the folder has no tokenizer.
        UnsupportedError: transformers cannot build it.
    """
    if path.is_dir() and not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise NotFoundError("tokenizer", str(path), f"a folder with {' or '.join(TOKENIZER_FILES)}")
    try:
        return Tokenizer(_load_folder(path) if path.is_dir() else _load_gguf(path), path)
    except Exception as error:  # transformers raises what its many tokenizers happen to raise.
        problem = f"{path}, where transformers fails with {type(error).__name__}: {error}"
        raise UnsupportedError("tokenizer", problem, "one that transformers can load") from error


def _load_folder(path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _load_gguf(path: Path) -> PreTrainedTokenizerBase:
    # AutoTokenizer gives the same object, after reading the file a second time for a model config: 5 s.
    from transformers import PreTrainedTokenizerFast

    from distributed_fi.models.loaders.gguf_header import read_gguf_header

    # Sentencepiece models put BOS first unless their metadata says otherwise; byte-level ones don't.
    metadata = read_gguf_header(path, needs_weights=False).metadata
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")
    return PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name, add_bos_token=bool(adds_bos), local_files_only=True
    )


def _token_ids(token_ids: Any) -> list[int]:
    return [int(token) for token in token_ids]
