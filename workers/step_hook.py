# SPDX-License-Identifier: Apache-2.0
"""A context manager of the user's around every step: profilers, tracers, guards."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType

from distributed_fi.errors import InvalidArgumentError

StepHook = Callable[[str], AbstractContextManager[object]]


def load_step_hook(spec: str | None) -> StepHook:
    """The function named by `spec`: called with "coordinator" or "rank N", it returns a context manager.

    Args:
        spec: "MODULE:FUNCTION" or "FILE.py:FUNCTION", loaded in each process; None does nothing.
    Raises:
        InvalidArgumentError: there is no such module, file or function.
    """
    if spec is None:
        return lambda role: nullcontext()
    place, _, name = spec.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, name)
    except Exception as error:  # the user's module may fail in any way
        expected = f"MODULE:FUNCTION or FILE.py:FUNCTION that loads ({error})"
        raise InvalidArgumentError("step_hook", spec, expected) from error


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"dfi_step_hook_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
