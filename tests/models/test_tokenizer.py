# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from distributed_fi.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from distributed_fi.models.tokenizer import Tokenizer, load_tokenizer

SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BYTES = {character: i + len(SPECIALS) for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with a tokenizer of one token a byte, which puts <s> before a prompt."""
    vocab = {**{token: i for i, token in enumerate(SPECIALS)}, **BYTES}
    backend = RustTokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIALS[2:],
        chat_template=TEMPLATE,
    ).save_pretrained(tmp_path)  # fmt: skip
    return tmp_path


def ids(text: str) -> list[int]:
    return [BYTES[character] for character in text]


def test_a_prompt_starts_with_begin_of_sequence(folder: Path) -> None:
    assert load_tokenizer(folder).encode("Hi") == [0, *ids("Hi")]


def test_a_chat_follows_the_template_up_to_the_answer(folder: Path) -> None:
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert load_tokenizer(folder).encode_chat(chat) == [0, 2, *ids("a"), 3, *ids("b"), 2, *ids("c"), 3]


def test_decode_leaves_special_tokens_out(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode([0, *ids("Hi"), 1]) == "Hi"
    assert tokenizer.decode([]) == ""


def test_a_stream_adds_up_to_decode(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    token_ids = [*tokenizer.encode("Größe: 3 €, ok 😀."), 1]
    decoder = tokenizer.stream_decoder()
    pieces = [*map(decoder.push, token_ids), decoder.flush()]
    assert "".join(pieces) == tokenizer.decode(token_ids) == "Größe: 3 €, ok 😀."
    assert all("\ufffd" not in piece for piece in pieces)


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="prompt: expected at least one character, got ''"):
        load_tokenizer(folder).encode("")


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], r"messages: expected at least one message, got \[\]"),
        ([{"role": "user", "content": ""}], r"messages\[0\]\.content: expected a non-empty string, got ''"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], r"messages\[1\]\.role: expected a non-empty.*got None"),
        ([{"role": "system", "content": "a"}], r"messages: expected a chat that the template takes \(no system here\)"),
    ],
)
def test_a_chat_that_cannot_be_is_refused(folder: Path, messages: list, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        load_tokenizer(folder).encode_chat(messages)


def test_a_chat_needs_a_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(UnsupportedError, match="messages: expected a model with a chat template, or a prompt"):
        tokenizer.encode_chat([{"role": "user", "content": "Hi"}])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"tokenizer: expected a folder with tokenizer\.json or"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_cannot_be_loaded_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        UnsupportedError, match=r"tokenizer: expected one that transformers can load, got .* fails with"
    ):
        load_tokenizer(folder)


def write_sentencepiece_gguf(path: Path, adds_bos: bool | None) -> Path:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-5.0, -4.0, -3.0, -2.0, -1.0])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 5)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("adds_bos, expected", [(None, [1, 263, 260]), (True, [1, 263, 260]), (False, [263, 260])])
def test_a_sentencepiece_gguf_puts_begin_of_sequence_first_unless_told(
    tmp_path: Path, adds_bos: bool | None, expected: list[int]
) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_gguf(tmp_path / "model.gguf", adds_bos))
    assert tokenizer.encode("aba") == expected
    assert tokenizer.decode(expected) == "aba"


def test_a_sentencepiece_stream_keeps_its_spaces(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_gguf(tmp_path / "model.gguf", None))
    token_ids = tokenizer.encode("ab a €a")
    decoder = tokenizer.stream_decoder()
    pieces = [*map(decoder.push, token_ids), decoder.flush()]
    assert "".join(pieces) == tokenizer.decode(token_ids) == "ab a €a"
    assert "€" in pieces


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> Tokenizer:
    return load_tokenizer(smollm2_file)


@pytest.mark.model
def test_smollm2s_chat_is_its_template(smollm2: Tokenizer) -> None:
    token_ids = smollm2.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    text = smollm2._backend.decode(token_ids)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.model
def test_smollm2s_prompts_are_encoded_as_auto_tokenizer_does(smollm2: Tokenizer, smollm2_file: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name, local_files_only=True)
    for text in ("Hello world", " café 123\n\n\tdef f(x):", "<|im_end|> 😀 中文"):
        assert smollm2.encode(text) == theirs.encode(text)
        assert smollm2.decode(smollm2.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
