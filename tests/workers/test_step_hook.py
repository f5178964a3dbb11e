# SPDX-License-Identifier: Apache-2.0
"""A hook named by a user: from a file, from a module, or one that does not load."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.workers.step_hook import load_step_hook

HOOK = """
from contextlib import contextmanager

roles = []

@contextmanager
def record(role):
    roles.append(role)
    yield roles
"""


def test_no_hook_does_nothing() -> None:
    with load_step_hook(None)("coordinator") as entered:
        assert entered is None


def test_function_of_a_file_is_entered_with_the_role(tmp_path: Path) -> None:
    (tmp_path / "hook.py").write_text(HOOK)
    hook = load_step_hook(f"{tmp_path}/hook.py:record")
    with hook("coordinator"), hook("rank 1") as roles:
        assert roles == ["coordinator", "rank 1"]


def test_function_of_a_module_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_users_hook.py").write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    with load_step_hook("a_users_hook:record")("rank 0") as roles:
        assert roles == ["rank 0"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("no_such_module_here:record", "No module named 'no_such_module_here'"),
        ("{folder}/missing.py:record", "No such file"),
        ("{folder}/hook.py:other", "has no attribute 'other'"),
        ("{folder}/broken.py:record", "division by zero"),
        ("only_a_name", "Empty module name"),
    ],
)
def test_hook_that_does_not_load_is_named_with_the_reason(tmp_path: Path, spec: str, reason: str) -> None:
    (tmp_path / "hook.py").write_text(HOOK)
    (tmp_path / "broken.py").write_text("1 / 0")
    spec = spec.format(folder=tmp_path)
    with pytest.raises(InvalidArgumentError, match=reason) as raised:
        load_step_hook(spec)
    assert (raised.value.argument, raised.value.value) == ("step_hook", spec)
