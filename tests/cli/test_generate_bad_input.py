# SPDX-License-Identifier: Apache-2.0
"""Every mistake a user can make on the command line: one line that names it, exit code 2, nothing left running."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from distributed_fi.cli.main import run

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("own_signals_and_cluster")]
COMMAND = (sys.executable, "-m", "distributed_fi", "generate", "Hello", "--max-tokens", "4")


@pytest.fixture
def own_signals_and_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command line run inside this process changes its SIGTERM handler, and would join RAY_ADDRESS."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def complaint(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run `generate` in this process, which must refuse; its one line on stderr."""
    before = psutil.Process().children(recursive=True)
    assert run(["generate", "--max-tokens", "4", *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert set(psutil.Process().children(recursive=True)) <= set(before)
    return captured.err


def complaint_of_process(*command: str) -> str:
    """The same by a process of its own, as a user would start it."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--top-p", "0"], "top_p: expected a number in (0, 1], got 0.0"),
        (["--top-p", "1.5"], "top_p: expected a number in (0, 1], got 1.5"),
        (["--min-p", "-0.1"], "min_p: expected a number in [0, 1], got -0.1"),
        (["--temperature", "-1"], "temperature: expected a finite number >= 0, got -1.0"),
        (["--temperature", "nan"], "temperature: expected a finite number >= 0, got nan"),
        (["--dtype", "float7"], "dtype: expected one of auto, float32, bfloat16, float16, got float7"),
        (["--device", "tpu"], "device: expected one of auto, cpu, cuda, got tpu"),
        (["--load-format", "zip"], "load_format: expected one of auto, safetensors, gguf, dummy, got zip"),
        (["--max-tokens", "0"], "max_tokens: expected an integer >= 1, got 0"),
        (["--tp", "0"], "tp: expected an integer >= 1, got 0"),
        (["--tp", "10"], "tp: expected 1 <= tp <= 9, the model's query heads, got 10"),
        (["--model", "/no/such/model"], "model: "),
        (["--model", "package:no_such_package"], "model: "),
        (["--max-model-len", "100000"], "max_model_len: expected at most the model's"),
        (["--step-hook", "nowhere:nothing"], "step_hook: expected MODULE:FUNCTION"),
        (["--ray-address", "127.0.0.1:1"], "Ray at 127.0.0.1:1: Connection refused"),
        (["--ray-address", "nonsense"], "ray_address: expected HOST:PORT of a cluster's head, or auto, got nonsense"),
        (["--no-such-option"], "No such option: --no-such-option"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_option(capsys: pytest.CaptureFixture[str], options: list[str], named: str) -> None:
    assert named in complaint(capsys, "Hello", *options)


def test_more_ranks_than_the_machine_runs() -> None:
    ranks = 9 * (os.cpu_count() or 1)
    line = complaint_of_process(*COMMAND, "--dp", str(ranks))
    assert f"ranks on this machine: {ranks} needed, {8 * (os.cpu_count() or 1)} (8 for each" in line


def test_something_else_than_ray_at_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        line = complaint(capsys, "Hello", "--ray-address", address)
    assert f"Ray at {address}: what listens there did not answer as Ray does" in line


def test_text_that_is_no_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    assert "prompt: expected UTF-8 text" in complaint(capsys, "caf\udce9")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_gpus_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "GPUs in the Ray cluster: 1 needed, 0 " in complaint(capsys, "Hello", "--device", "cuda")


def test_empty_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert "prompt: expected text, as an argument or on stdin" in complaint(capsys, "")
    assert "prompt: expected text, as an argument or on stdin" in complaint(capsys, "Hello", "  ")


def test_prompt_longer_than_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, "word " * 200, "--max-model-len", "64")
    assert "prompt: expected fewer than 64 tokens, the context of prompt and answer, got 20" in line


def test_truncated_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path, smollm2_gguf: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(smollm2_gguf, broken)
    os.truncate(broken, 50_000_000)
    assert f"{broken}: is 50000000 bytes" in complaint(capsys, "Hello", "--model", str(broken))


def test_corrupt_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(range(256)) * 8)
    assert f"{broken}: " in complaint(capsys, "Hello", "--model", str(broken))


def test_shared_memory_too_small(tmp_path: Path) -> None:
    """A mount namespace of its own whose /dev/shm holds 64 KiB."""
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    line = complaint_of_process(*unshare, "sh", "-c", script, "sh", *COMMAND)
    assert "/dev/shm: " in line and "bytes of shared memory for the step ring needed, 65536 bytes available" in line
