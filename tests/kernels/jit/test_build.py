# SPDX-License-Identifier: Apache-2.0
"""What is built, when it is built again, and what a failure says."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_fi.errors import CompilerNotFoundError, KernelBuildError, NotFoundError, UnsupportedError
from distributed_fi.kernels.jit.build import build_all, build_kernel
from distributed_fi.kernels.jit.spec import KernelSpec

Scaled = Callable[[Path, int], int]


def test_host_code_is_built_once_and_runs(scale_spec: KernelSpec, scaled: Scaled, cache_dir: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    first = build_all([scale_spec], "cpu", lambda *report: reports.append(report))
    again = build_all([scale_spec], "cpu", lambda *report: reports.append(report))
    assert scaled(first[0].library, 7) == 42
    assert again == first
    assert reports == [("test/scale", 1, 1)]
    assert sorted(p.name for p in first[0].folder.iterdir()) == ["build.log", "kernel.so", "manifest.json"]
    assert list((cache_dir / "staging").iterdir()) == []


def test_changed_header_is_a_new_kernel_and_the_old_one_stays(
    scale_spec: KernelSpec, scaled: Scaled, tmp_path: Path
) -> None:
    old = build_kernel(scale_spec, "cpu")
    (tmp_path / "factor.h").write_text('#include "deeper.h"\n')
    (tmp_path / "deeper.h").write_text("#define FACTOR 4\n")
    new = build_kernel(scale_spec, "cpu")
    (tmp_path / "deeper.h").write_text("#define FACTOR 5\n")
    newest = build_kernel(scale_spec, "cpu")
    assert [scaled(a.library, 1) for a in (old, new, newest)] == [6, 8, 10]


def test_touched_but_equal_source_is_the_same_kernel(scale_spec: KernelSpec, tmp_path: Path) -> None:
    first = build_kernel(scale_spec, "cpu")
    os.utime(tmp_path / "factor.h", (1, 1))
    assert build_kernel(scale_spec, "cpu") == first


def test_parameters_and_flags_make_different_kernels(scale_spec: KernelSpec, scaled: Scaled) -> None:
    five = dataclasses.replace(scale_spec, defines=(("BONUS", "5"),))
    unoptimised = dataclasses.replace(scale_spec, flags=("-O0",))
    built = build_all([scale_spec, five, unoptimised, scale_spec], "cpu")
    assert [scaled(a.library, 1) for a in built] == [6, 15, 6, 6]
    assert len({a.folder for a in built}) == 3


def test_changed_compiler_is_a_new_kernel(
    scale_spec: KernelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_kernel(scale_spec, "cpu")
    wrapper = tmp_path / "bin" / "g++"
    wrapper.parent.mkdir()
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    keys = {first.manifest.key}
    for version in ("98.1.0", "99.0.0"):
        wrapper.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "g++ {version}" && exit\nexec /usr/bin/g++ "$@"\n')
        wrapper.chmod(0o755)
        artifact = build_kernel(scale_spec, "cpu")
        assert f"cxx=g++ {version}" in artifact.manifest.toolchain
        keys.add(artifact.manifest.key)
    assert len(keys) == 3


def test_compiler_settings_in_the_environment_are_part_of_the_key(
    scale_spec: KernelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_kernel(scale_spec, "cpu")
    monkeypatch.setenv("CPATH", str(tmp_path))
    assert build_kernel(scale_spec, "cpu").manifest.key != first.manifest.key


def test_failed_compile_names_the_first_error_its_source_and_a_log(scale_spec: KernelSpec, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int f() {\n  return nothing_here;\n}\nint g() { return nor_here; }\n")
    with pytest.raises(KernelBuildError, match=r"kernel test/broken: .*broken\.cpp: .*:2:.*nothing_here") as caught:
        build_all([KernelSpec("test/broken", (str(broken),)), scale_spec], "cpu")
    assert caught.value.source == str(broken)
    log = Path(caught.value.log).read_text()
    assert "nor_here" in log
    assert log.startswith("$ ")
    # The kernel beside it was built all the same: it is found though nothing can be compiled any more.
    assert build_all([scale_spec], "cpu", lambda *_: pytest.fail("built again"))


def test_failed_linking_says_which_symbol(tmp_path: Path) -> None:
    (tmp_path / "open_end.cpp").write_text("int elsewhere();\nint f() { return elsewhere(); }\n")
    spec = KernelSpec("test/open_end", (str(tmp_path / "open_end.cpp"),))
    with pytest.raises(KernelBuildError, match=r"linking: .*undefined reference to `elsewhere\(\)'"):
        build_kernel(spec, "cpu")


def test_compiler_that_never_ends_is_ended(
    scale_spec: KernelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "bin" / "g++"
    wrapper.parent.mkdir()
    wrapper.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "g++ 1" && exit\nexec sleep 600\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("distributed_fi.kernels.jit.build.BUILD_DEADLINE_S", 0.75)
    with pytest.raises(KernelBuildError, match="compiler: not done after 1 s"):
        build_kernel(scale_spec, "cpu")


def test_no_compiler_says_where_it_was_looked_for_and_what_to_install(
    copy_spec: KernelSpec, scale_spec: KernelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "g++").symlink_to("/usr/bin/g++")
    monkeypatch.setattr("distributed_fi.kernels.jit.toolchain._nvidia_wheels", list)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(CompilerNotFoundError, match=r"nvcc: not found in CUDA_HOME \(not set\), PATH.*\[cuda13\]"):
        build_kernel(copy_spec, "sm_90a")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerNotFoundError, match="g\\+\\+: not found in PATH; install a C\\+\\+ compiler"):
        build_kernel(scale_spec, "cpu")


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.cpp"):
        build_kernel(KernelSpec("test/gone", (str(tmp_path / "gone.cpp"),)), "cpu")


def test_device_code_is_not_built_for_the_host(copy_spec: KernelSpec) -> None:
    with pytest.raises(UnsupportedError, match="sm_90a for test/copy, which has CUDA sources, got cpu"):
        build_kernel(copy_spec, "cpu")
