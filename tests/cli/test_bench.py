# SPDX-License-Identifier: Apache-2.0
"""`bench control-plane`: what it refuses, and one small measurement as a user would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_fi.cli.main import run


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A command line run inside this process changes its SIGTERM handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--ranks", "two"], "ranks: expected integers >= 1 with commas between, like 1,2,4, got two"),
        (["--ranks", "1,,2"], "ranks: expected integers >= 1 with commas between, like 1,2,4, got 1,,2"),
        (["--ranks", "1,0"], "ranks: expected integers >= 1 with commas between, like 1,2,4, got 1,0"),
        (["--out", "/no/such/folder/out.json"], "out: expected a file in a folder that exists"),
    ],
)
def test_bad_option_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert run(["bench", "control-plane", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"distributed-fi: error: {complaint}")
    assert captured.err.count("\n") == 1


@pytest.mark.ray
def test_json_on_stdout_is_the_one_in_the_file(tmp_path: Path) -> None:
    out, shm = tmp_path / "report.json", tmp_path / "shm"
    shm.mkdir()
    command = [sys.executable, "-m", "distributed_fi", "bench", "control-plane", "--ranks", "1", "--iterations", "3"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [*command, "--plan-bytes", "100", "--json", "--out", str(out)],
        check=False,
        capture_output=True,
        text=True,
        env={**environment, "DFI_SHM_DIR": str(shm)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads(out.read_text()) == report
    assert report["benchmark"] == "control_plane"
    assert [(row["num_ranks"], row["plan_bytes"]) for row in report["rows"]] == [(1, 100)] * 3
    assert all(0 < row["p50_us"] <= row["p99_us"] for row in report["rows"])
    assert list(shm.iterdir()) == []
