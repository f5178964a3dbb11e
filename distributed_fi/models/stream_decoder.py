# SPDX-License-Identifier: Apache-2.0
"""Text of a growing list of token ids, given out as soon as it can no longer change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Turns the tokens of one answer into pieces of text whose concatenation is `decode(all tokens)`.

    A token may end in the middle of a UTF-8 character, and a tokenizer may treat the first token of a
    text differently (sentencepiece drops its leading space). So a window of tokens is decoded with and
    without the new ones, and what they add is given out once it does not end in an incomplete
    character; the window then begins at the tokens given out before, which have text of their own and
    end at a character's boundary. The cost of a token does not grow with the answer.

    Args:
        decode: token ids to text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._token_ids: list[int] = []
        self._num_given = 0  # tokens of the window whose text is given out

    def push(self, token_id: int) -> str:
        """Append one token; returns the text that is now certain, often "" inside a character."""
        self._token_ids.append(token_id)
        fresh = self._fresh()
        if not fresh or fresh.endswith(REPLACEMENT):
            return ""
        self._token_ids = self._token_ids[self._num_given :]
        self._num_given = len(self._token_ids)
        return fresh

    def flush(self) -> str:
        """What is left when the answer ends, an incomplete last character as U+FFFD."""
        fresh = self._fresh()
        self._token_ids, self._num_given = [], 0
        return fresh

    def _fresh(self) -> str:
        given = self._decode(self._token_ids[: self._num_given])
        return self._decode(self._token_ids)[len(given) :]
