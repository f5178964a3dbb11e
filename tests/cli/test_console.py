# SPDX-License-Identifier: Apache-2.0
"""Answers and progress on their own streams: a terminal on stderr, a file on stdout, in a process of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ANSWER = "Paris is the capital.\n" * 50
SCRIPT = """
import sys
from distributed_fi.cli.console import loading_bar, stderr_console

with loading_bar(stderr_console(), "Loading", quiet="quiet" in sys.argv) as on_load:
    for done in range(0, 101, 10):
        on_load(done * 10**6, 100 * 10**6)
        print("loaded", done)
for line in range(50):
    print("Paris is the capital.", flush=True)
"""
LOADED = "".join(f"loaded {done}\n" for done in range(0, 101, 10))


def read_all(terminal: int) -> str:
    """What a terminal shows until its last writer is gone, which Linux reports as an error."""
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            return shown.decode()
        if not piece:
            return shown.decode()
        shown += piece


def run_on_a_terminal(out: Path, *arguments: str) -> str:
    """Run the script with stdout in `out`; returns what its terminal, stderr, showed."""
    ours, theirs = pty.openpty()
    try:
        with out.open("w") as stdout:
            command = [sys.executable, "-c", SCRIPT, *arguments]
            environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
            process = subprocess.Popen(command, stdout=stdout, stderr=theirs, env=environment)
        os.close(theirs)
        shown = read_all(ours)
        assert process.wait(30) == 0
        return shown
    finally:
        os.close(ours)


def test_answer_goes_to_the_file_whole_and_the_bar_to_the_terminal(tmp_path: Path) -> None:
    shown = run_on_a_terminal(tmp_path / "answer")
    assert (tmp_path / "answer").read_text() == LOADED + ANSWER
    assert "Loading" in shown
    assert "Paris" not in shown and "loaded" not in shown


def test_quiet_shows_nothing_on_the_terminal(tmp_path: Path) -> None:
    assert run_on_a_terminal(tmp_path / "answer", "quiet") == ""
    assert (tmp_path / "answer").read_text() == LOADED + ANSWER


@pytest.mark.parametrize("arguments", [(), ("quiet",)], ids=["loud", "quiet"])
def test_without_a_terminal_there_is_no_bar(arguments: tuple[str, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout == LOADED + ANSWER
    assert done.stderr.strip() == ""
