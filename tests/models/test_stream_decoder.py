# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from distributed_fi.models.stream_decoder import StreamDecoder


def decode_bytes(token_ids: Sequence[int]) -> str:
    """A byte-level tokenizer with one token a byte; 256 is a special token, left out."""
    return bytes(token for token in token_ids if token < 256).decode(errors="replace")


def decode_words(token_ids: Sequence[int]) -> str:
    """As sentencepiece: every word brings its space, and the first space of a text is dropped."""
    return "".join(["", " the", " ", "ing", " a"][token] for token in token_ids).removeprefix(" ")


def stream(decode, token_ids: Sequence[int]) -> list[str]:
    decoder = StreamDecoder(decode)
    return [*map(decoder.push, token_ids), decoder.flush()]


def test_a_character_is_given_out_when_its_last_byte_comes() -> None:
    assert stream(decode_bytes, "aé€😀".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]


def test_an_incomplete_character_comes_out_at_the_end() -> None:
    assert stream(decode_bytes, "a€".encode()[:-1]) == ["a", "", "", "\ufffd"]


def test_a_space_inside_a_text_is_kept() -> None:
    assert stream(decode_words, [1, 3, 4]) == ["the", "ing", " a", ""]


def test_nothing_gives_nothing() -> None:
    assert stream(decode_bytes, []) == [""]


@given(st.text())
def test_pieces_of_any_text_add_up_to_it(text: str) -> None:
    pieces = stream(decode_bytes, text.encode())
    assert "".join(pieces) == text


@given(st.lists(st.integers(0, 256)))
def test_pieces_of_any_bytes_add_up_to_what_decode_makes_of_them(token_ids: list[int]) -> None:
    assert "".join(stream(decode_bytes, token_ids)) == decode_bytes(token_ids)


@given(st.lists(st.integers(0, 4)))
def test_pieces_of_words_add_up_to_what_decode_makes_of_them(token_ids: list[int]) -> None:
    assert "".join(stream(decode_words, token_ids)) == decode_words(token_ids)


def test_the_cost_of_a_token_does_not_grow() -> None:
    lengths = []

    def decode(token_ids: Sequence[int]) -> str:
        lengths.append(len(token_ids))
        return decode_bytes(token_ids)

    stream(decode, b"a" * 500)
    assert max(lengths) <= 2
