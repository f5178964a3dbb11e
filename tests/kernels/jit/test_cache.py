# SPDX-License-Identifier: Apache-2.0
"""A cache that others use too: builders at the same time, killed builders, damage, folders that cannot be written."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_fi.kernels.jit import cache
from distributed_fi.kernels.jit.build import build_kernel
from distributed_fi.kernels.jit.spec import KernelSpec

Scaled = Callable[[Path, int], int]
BUILDER = """
import sys
import tvm_ffi
from distributed_fi.kernels.jit.build import build_kernel
from distributed_fi.kernels.jit.spec import KernelSpec
print("ready", flush=True)
sys.stdin.readline()
print(build_kernel(KernelSpec("test/scale", (sys.argv[1],), defines=(("BONUS", "2"),)), "cpu").library)
"""


def start_builders(spec: KernelSpec, number: int) -> list[subprocess.Popen[str]]:
    """Processes that have all imported what they need, and wait for a line."""
    command = [sys.executable, "-c", BUILDER, *spec.sources]
    builders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(number)
    ]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "ready\n"
    return builders


def go(builder: subprocess.Popen[str]) -> None:
    assert builder.stdin is not None
    builder.stdin.write("go\n")
    builder.stdin.flush()


def slow_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Path:
    """A g++ that compiles after some time, and leaves a file when it starts to."""
    wrapper, started = tmp_path / "bin" / "g++", tmp_path / "started"
    wrapper.parent.mkdir()
    version = '[ "$1" = --version ] && exec /usr/bin/g++ "$@"'
    wrapper.write_text(f'#!/bin/sh\n{version}\necho >> {started}\nsleep {seconds}\nexec /usr/bin/g++ "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    return started


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_two_processes_that_build_the_same_kernel_end_with_the_same_one(
    scale_spec: KernelSpec, scaled: Scaled, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = slow_compiler(tmp_path, monkeypatch, 0.5)
    builders = start_builders(scale_spec, 2)
    for builder in builders:
        go(builder)
    (library,) = {builder.communicate(timeout=60)[0] for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0]
    assert scaled(Path(library.strip()), 7) == 42
    assert len(started.read_text().splitlines()) == 4, "each compiled and linked by itself"
    assert list((cache_dir / "staging").iterdir()) == []


def test_the_loser_of_a_race_uses_what_the_winner_published(scale_spec: KernelSpec, tmp_path: Path) -> None:
    winner = build_kernel(scale_spec, "cpu")
    shared = cache.kernel_cache()
    with shared.staging() as folder:
        loser = folder / "0"
        loser.mkdir()
        (loser / "kernel.so").write_bytes(b"built by the loser")
        assert shared.publish(loser, winner.manifest) == winner
    assert b"built by the loser" not in winner.library.read_bytes()


def test_killed_builder_leaves_nothing_that_the_next_one_would_use(
    scale_spec: KernelSpec, scaled: Scaled, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = slow_compiler(tmp_path, monkeypatch, 1.0)
    (builder,) = start_builders(scale_spec, 1)
    go(builder)
    wait_for(started)
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)
    (abandoned,) = (cache_dir / "staging").iterdir()
    assert scaled(build_kernel(scale_spec, "cpu").library, 7) == 42
    assert abandoned.exists(), "it may belong to a builder that still runs"


def test_old_staging_folders_are_swept_by_the_next_build(
    scale_spec: KernelSpec, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned, young = cache_dir / "staging" / "old", cache_dir / "staging" / "young"
    for folder in (abandoned, young):
        folder.mkdir(parents=True)
        (folder / "0.0.o").write_bytes(b"half")
    for path in (abandoned / "0.0.o", abandoned):
        os.utime(path, (0, time.time() - cache.ABANDONED_AFTER_S - 60))
    build_kernel(scale_spec, "cpu")
    assert list((cache_dir / "staging").iterdir()) == [young]


@pytest.mark.parametrize("damage", ["cut library", "changed byte", "no library", "no manifest", "manifest is no JSON"])
def test_damaged_artifact_is_built_again(scale_spec: KernelSpec, scaled: Scaled, damage: str) -> None:
    artifact = build_kernel(scale_spec, "cpu")
    contents = artifact.library.read_bytes()
    if damage == "cut library":
        artifact.library.write_bytes(contents[: len(contents) // 2])
    elif damage == "changed byte":
        artifact.library.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    elif damage == "no library":
        artifact.library.unlink()
    elif damage == "no manifest":
        (artifact.folder / "manifest.json").unlink()
    else:
        (artifact.folder / "manifest.json").write_text("{")
    again = build_kernel(scale_spec, "cpu")
    assert again.folder == artifact.folder
    assert json.loads((again.folder / "manifest.json").read_text())["name"] == "test/scale"
    assert scaled(again.library, 7) == 42


def test_cache_that_cannot_be_written_is_read_and_built_beside(
    scale_spec: KernelSpec,
    scaled: Scaled,
    tmp_path: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    there = build_kernel(scale_spec, "cpu")
    # A file where the staging folder should be refuses writers and not readers, and refuses root as well.
    (cache_dir / "staging").rmdir()
    (cache_dir / "staging").touch()
    with caplog.at_level(logging.WARNING):
        assert build_kernel(scale_spec, "cpu") == there
        assert caplog.messages == []
        for factor in (4, 5):
            (tmp_path / "factor.h").write_text(f"#define FACTOR {factor}\n")
            beside = build_kernel(scale_spec, "cpu")
            assert scaled(beside.library, 1) == 2 * factor
            assert build_kernel(scale_spec, "cpu") == beside
    private = tmp_path / f"distributed_fi-{os.getuid()}"
    assert beside.folder.is_relative_to(private)
    assert private.stat().st_mode & 0o777 == 0o700
    assert len(caplog.messages) == 1
    assert f"{cache_dir} cannot be written" in caplog.messages[0]


def test_private_folder_that_others_can_write_is_refused(
    scale_spec: KernelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("DFI_CACHE_DIR", str(tmp_path / "a_file" / "cache"))
    private = tmp_path / f"distributed_fi-{os.getuid()}"
    private.mkdir()
    private.chmod(0o777)
    with pytest.raises(PermissionError, match="others can write there"):
        build_kernel(scale_spec, "cpu")
