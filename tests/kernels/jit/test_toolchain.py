# SPDX-License-Identifier: Apache-2.0
"""Where nvcc is found: CUDA_HOME first, behind a wrapper on PATH, and in pip's folders that lack lib64."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distributed_fi.kernels.jit.toolchain import find_toolchain


def make_toolkit(root: Path, version: str, library_dir: str) -> Path:
    """A folder that looks like a CUDA toolkit, with a compiler that answers as nvcc does."""
    for folder in ("bin", "include", library_dir):
        (root / folder).mkdir(parents=True)
    (root / "include/cuda_runtime.h").touch()
    (root / library_dir / "libcudart_static.a").touch()
    nvcc = root / "bin/nvcc"
    dryrun = f'[ "$1" = -dryrun ] && echo "#$ TOP={root}/bin/.." && exit'
    nvcc.write_text(f'#!/bin/sh\n{dryrun}\necho "Cuda compilation tools, release 13.0, V{version}"\n')
    nvcc.chmod(0o755)
    return nvcc


def test_nvcc_behind_a_wrapper_script_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = make_toolkit(tmp_path / "cuda", "13.0.1", "lib64")
    wrapper = tmp_path / "bin/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    cuda = find_toolchain("sm_90a", needs_nvcc=True).cuda
    assert cuda is not None
    assert (cuda.nvcc, cuda.version, cuda.library_dir) == (nvcc, "13.0.1", tmp_path / "cuda/lib64")


def test_cuda_home_comes_first_and_pip_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toolkit(tmp_path / "home", "13.0.2", "targets/x86_64-linux/lib")
    make_toolkit(tmp_path / "site/nvidia/cu13", "13.0.3", "lib")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/g++").symlink_to("/usr/bin/g++")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("distributed_fi.kernels.jit.toolchain._nvidia_wheels", lambda: [str(tmp_path / "site/nvidia")])
    versions = []
    for home in (str(tmp_path / "home"), ""):
        monkeypatch.setenv("CUDA_HOME", home)
        cuda = find_toolchain("sm_90a", needs_nvcc=True).cuda
        assert cuda is not None
        versions.append(cuda.version)
    assert versions == ["13.0.2", "13.0.3"]


def test_host_code_needs_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed_fi.kernels.jit.toolchain._find_cuda", lambda: pytest.fail("looked for nvcc"))
    assert find_toolchain("cpu", needs_nvcc=False).cuda is None
