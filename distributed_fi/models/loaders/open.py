# SPDX-License-Identifier: Apache-2.0
"""From what a user names a model by, to an open checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from distributed_fi.config import LOAD_FORMATS
from distributed_fi.errors import CorruptWeightsError, DfiError, InvalidArgumentError, NotFoundError
from distributed_fi.kernels.rope.frequencies import rope_frequencies
from distributed_fi.models.hf_config import read_hf_config
from distributed_fi.models.loaders.checkpoint import Checkpoint
from distributed_fi.models.loaders.dummy import DummyCheckpoint

PACKAGE_PREFIX = "package:"
MODEL_FORMS = "a Hugging Face folder, a .gguf file, or package:NAME (nothing is downloaded)"
CONFIG_NAME = "config.json"
GGUF_SUFFIX = ".gguf"


def open_checkpoint(model: str, load_format: str = "auto", *, seed: int = 0) -> Checkpoint:
    """Open a model and check it as far as its headers go, without reading its weights.

    Args:
        model: a folder with config.json and safetensors, a .gguf file, a folder with exactly one
            .gguf, or `package:NAME` for either of these inside an installed Python package, which is
            not imported. For dummy weights a path to a config.json does as well.
        load_format: "auto" looks what is there; "safetensors" or "gguf" insist; "dummy" reads the
            config alone and draws the weights.
        seed: of dummy weights.
    Raises:
        NotFoundError: no such model, or no weights in it.
        InvalidArgumentError: unknown load_format, or one the model is not in.
        UnsupportedError: an architecture, setting or type that is not served.
        CorruptWeightsError: a file is truncated, garbled, or contradicts the config.
    """
    if load_format not in LOAD_FORMATS:
        raise InvalidArgumentError("load_format", load_format, f"one of {', '.join(LOAD_FORMATS)}")
    try:
        path = _package_folder(model) if model.startswith(PACKAGE_PREFIX) else Path(model).expanduser()
        is_there = bool(model) and path.exists()
    except DfiError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a home that nobody has, a NUL in it
        raise NotFoundError("model", repr(model), MODEL_FORMS) from error
    if not is_there:
        raise NotFoundError("model", repr(model), MODEL_FORMS)
    try:
        checkpoint = _open(_find_weights(path, load_format), load_format, seed)
        # Raises here what would otherwise stop every rank: a rotary base or head dimension that cannot be.
        rope_frequencies(checkpoint.config.rope, checkpoint.config.head_dim)
    except DfiError:
        raise
    except PermissionError as error:
        raise NotFoundError("model", str(error.filename or path), "a model this user may read") from error
    except Exception as error:  # garbled headers and configs fail in as many ways as there are values in them
        problem = f"its config or header makes no sense ({type(error).__name__}: {str(error)[:120]})"
        raise CorruptWeightsError(str(path), problem) from error
    return checkpoint


def _open(path: Path, load_format: str, seed: int) -> Checkpoint:
    """Open a .gguf file, a config.json, or a folder with one."""
    found = "gguf" if path.suffix == GGUF_SUFFIX else "safetensors"
    if load_format not in ("auto", "dummy", found):
        raise InvalidArgumentError("load_format", load_format, f"{found}, which {path} holds")
    if found == "gguf":
        from distributed_fi.models.loaders.gguf import GgufCheckpoint, read_dummy_config

        return DummyCheckpoint(path, read_dummy_config(path), seed) if load_format == "dummy" else GgufCheckpoint(path)
    if load_format == "dummy":
        folder = path if path.is_dir() else path.parent
        return DummyCheckpoint(folder, read_hf_config(folder / CONFIG_NAME if path.is_dir() else path), seed)
    from distributed_fi.models.loaders.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path, read_hf_config(path / CONFIG_NAME))


def _find_weights(path: Path, load_format: str) -> Path:
    """What to open at `path`: itself, or the one .gguf in a folder that has no safetensors."""
    if path.is_file():
        if path.suffix == GGUF_SUFFIX or (path.suffix == ".json" and load_format == "dummy"):
            return path
        raise NotFoundError("model", str(path), MODEL_FORMS)
    ggufs = sorted(path.glob("*" + GGUF_SUFFIX))
    if (path / CONFIG_NAME).is_file():
        prefers_config = load_format in ("dummy", "safetensors") or any(path.glob("*.safetensors"))
        if not ggufs or (prefers_config and load_format != "gguf"):
            return path
    if len(ggufs) == 1:
        return ggufs[0]
    found = f"{path} with {len(ggufs)} .gguf files" + "".join(f", {file.name}" for file in ggufs[:4])
    raise NotFoundError("model", found, f"a folder with {CONFIG_NAME} or exactly one .gguf file")


def _package_folder(model: str) -> Path:
    """The one folder of an installed package that holds a model; the package is not imported."""
    name = model.removeprefix(PACKAGE_PREFIX)
    # A dotted name would import the parent.
    spec = find_spec(name) if name.isidentifier() else None
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not roots:
        raise NotFoundError("model", model, f"{PACKAGE_PREFIX}NAME of an installed Python package")
    files = [file for pattern in ("*" + GGUF_SUFFIX, CONFIG_NAME) for file in Path(roots[0]).rglob(pattern)]
    folders = sorted({file.parent for file in files})
    if len(folders) != 1:
        problem = f"{model}, with {len(folders)} folders that hold a .gguf file or a {CONFIG_NAME}"
        raise NotFoundError("model", problem, "a package with one model")
    return folders[0]
