# SPDX-License-Identifier: Apache-2.0
"""What compilers say of themselves, remembered: asking three of them costs more than loading a kernel."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from distributed_fi import env
from distributed_fi.errors import CompilerNotFoundError

MEMO = "compilers.json"
ASK_TIMEOUT_S = 60
_answers: dict[str, str] = {}


def ask(program: Path, *args: str) -> str:
    """Output of a program that is asked about itself; asked again only when its file changes.

    Remembered in this process and, where it can be written, in the kernel cache.

    Raises:
        CompilerNotFoundError: it does not run.
    """
    found = program.stat()
    question = json.dumps([str(program), *args, found.st_mtime_ns, found.st_size])
    if question not in _answers:
        memo = env.cache_dir() / MEMO
        remembered = _read(memo)
        if question not in remembered:
            remembered[question] = _run(program, args)
            _write(memo, remembered)
        _answers[question] = remembered[question]
    return _answers[question]


def _run(program: Path, args: tuple[str, ...]) -> str:
    command = [str(program), *args]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerNotFoundError(program.name, str(program), f"repair it: it does not run ({error})") from None
    return done.stdout


def _read(memo: Path) -> dict[str, str]:
    try:
        found = json.loads(memo.read_text())
    except (OSError, ValueError):
        return {}
    return {q: a for q, a in found.items() if isinstance(a, str)} if isinstance(found, dict) else {}


def _write(memo: Path, answers: dict[str, str]) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=memo.parent, prefix=MEMO)
        with os.fdopen(handle, "w") as file:
            json.dump(answers, file)
        os.replace(name, memo)
    except OSError:
        return  # a cache that cannot be written costs the question again, nothing else
