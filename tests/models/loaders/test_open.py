# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from distributed_fi.errors import CorruptWeightsError, DfiError, InvalidArgumentError, NotFoundError
from distributed_fi.models.loaders.dummy import DummyCheckpoint
from distributed_fi.models.loaders.gguf import GgufCheckpoint
from distributed_fi.models.loaders.gguf_header import read_gguf_header
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.models.loaders.safetensors import SafetensorsCheckpoint


def test_auto_tells_a_folder_of_safetensors_from_a_gguf_file(make_hf, make_gguf) -> None:
    folder, _ = make_hf()
    file, _ = make_gguf()
    assert isinstance(open_checkpoint(str(folder)), SafetensorsCheckpoint)
    assert isinstance(open_checkpoint(str(file)), GgufCheckpoint)


def test_a_folder_with_one_gguf_file_is_that_file(make_gguf) -> None:
    file, _ = make_gguf()
    assert open_checkpoint(str(file.parent)).path == file


def test_a_folder_with_two_gguf_files_is_refused_by_their_names(make_gguf) -> None:
    make_gguf("Q8_0")
    file, _ = make_gguf("F32")
    with pytest.raises(NotFoundError, match=r"2 \.gguf files, F32\.gguf, Q8_0\.gguf"):
        open_checkpoint(str(file.parent))


def test_a_gguf_beside_safetensors_is_taken_when_asked_for(make_hf, make_gguf) -> None:
    folder, _ = make_hf()
    file, _ = make_gguf()
    shutil.copy(file, folder / "model.gguf")
    assert isinstance(open_checkpoint(str(folder)), SafetensorsCheckpoint)
    assert isinstance(open_checkpoint(str(folder), "gguf"), GgufCheckpoint)


def test_dummy_needs_nothing_but_the_config(make_hf, tmp_path: Path) -> None:
    folder, _ = make_hf()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "config.json", alone)
    for model in (alone, alone / "config.json"):
        checkpoint = open_checkpoint(str(model), "dummy")
        assert isinstance(checkpoint, DummyCheckpoint)
        assert checkpoint.config == open_checkpoint(str(folder)).config


def test_dummy_needs_nothing_but_the_header_of_a_gguf_file(make_gguf) -> None:
    file, _ = make_gguf()
    config = open_checkpoint(str(file)).config
    file.write_bytes(file.read_bytes()[:-1000])
    assert open_checkpoint(str(file), "dummy").config == config


def test_a_model_in_a_package_is_found_without_importing_it(make_gguf, tmp_path: Path, monkeypatch) -> None:
    file, _ = make_gguf()
    package = tmp_path / "site" / "carries_a_model"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not to be imported')")
    shutil.copy(file, package / "weights")
    monkeypatch.syspath_prepend(str(package.parent))
    assert open_checkpoint("package:carries_a_model").path == package / "weights" / file.name
    assert "carries_a_model" not in sys.modules


@pytest.mark.parametrize("name", ["no_such_package", "os.path", "", "a/b"])
def test_an_unknown_package_is_named(name: str) -> None:
    with pytest.raises(NotFoundError, match=f"model: expected package:NAME of an installed.*got package:{name}$"):
        open_checkpoint(f"package:{name}")


def test_a_package_without_a_model_is_refused() -> None:
    with pytest.raises(NotFoundError, match="expected a package with one model, got package:json, with 0 folders"):
        open_checkpoint("package:json")


@pytest.mark.parametrize("model", ["", "no/such/model", "meta-llama/Llama-3.1-8B"])
def test_a_model_that_does_not_exist_is_named(model: str) -> None:
    with pytest.raises(NotFoundError, match=r"model: expected a Hugging Face folder.*nothing is downloaded") as caught:
        open_checkpoint(model)
    assert str(caught.value).endswith(f"got '{model}'")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    with pytest.raises(NotFoundError, match=r"expected a Hugging Face folder, a \.gguf file"):
        open_checkpoint(str(file))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"expected a folder with config\.json or exactly one \.gguf file"):
        open_checkpoint(str(tmp_path))


def test_an_unknown_load_format_lists_those_there_are() -> None:
    expected = "load_format: expected one of auto, safetensors, gguf, dummy, got pickle"
    with pytest.raises(InvalidArgumentError, match=expected):
        open_checkpoint("anything", "pickle")


def test_a_load_format_the_model_is_not_in_is_refused(make_hf, make_gguf) -> None:
    folder, _ = make_hf()
    file, _ = make_gguf()
    with pytest.raises(InvalidArgumentError, match=r"load_format: expected gguf, which .* holds, got safetensors"):
        open_checkpoint(str(file), "safetensors")
    with pytest.raises(InvalidArgumentError, match=r"load_format: expected safetensors, which .* holds, got gguf"):
        open_checkpoint(str(folder), "gguf")


@pytest.mark.parametrize("setting, message", [({"rope_theta": -1.0}, "rope_theta: expected a number > 0, got -1.0")])
def test_a_rotary_embedding_that_cannot_be_is_refused(make_hf, setting: dict, message: str) -> None:
    folder, _ = make_hf(rope_parameters={"rope_type": "default", **setting})
    with pytest.raises(CorruptWeightsError, match=message):
        open_checkpoint(str(folder))


def header_bytes(file: Path) -> int:
    if file.suffix == ".gguf":
        return min(tensor.offset for tensor in read_gguf_header(file).tensors.values())
    if file.suffix == ".safetensors":
        return 8 + int.from_bytes(file.read_bytes()[:8], "little")
    return file.stat().st_size


@pytest.mark.parametrize("damaged", ["Q8_0.gguf", "llama/model.safetensors", "llama/config.json"])
def test_damaged_bytes_of_a_header_open_or_are_a_typed_error(make_hf, make_gguf, tmp_path: Path, damaged: str) -> None:
    make_gguf("Q8_0")
    make_hf(shard_size="1GB")
    file, rng = tmp_path / damaged, random.Random(0)
    content, size = file.read_bytes(), header_bytes(file)
    opened = refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 2, 8])):
            changed[rng.randrange(size)] = rng.randrange(256)
        file.write_bytes(changed)
        try:
            open_checkpoint(str(file if file.suffix == ".gguf" else file.parent))
            opened += 1
        except DfiError as error:
            assert "\n" not in str(error)
            refused += 1
    assert opened + refused == 150 and refused > 50


@pytest.mark.parametrize("name", ["x" * 300, "~nosuchuser/model", "a\0b"])
def test_a_name_that_no_file_can_have_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError, match="model: expected a Hugging Face folder"):
        open_checkpoint(name)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"architectures": ["LlamaForCausalLM"], "model_type": []}', "[1, 2]"],
    ids=["deep", "type", "list"],
)
def test_a_config_that_makes_no_sense_is_a_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DfiError):
        open_checkpoint(str(tmp_path), "dummy")
