# SPDX-License-Identifier: Apache-2.0
"""Kernels built on one machine and used on another, which has no compiler and an empty cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_fi.errors import CompilerNotFoundError, InvalidArgumentError, NotFoundError
from distributed_fi.kernels.jit import bundle
from distributed_fi.kernels.jit.build import build_kernel
from distributed_fi.kernels.jit.bundle import KernelBundle, pack, receive_bundle
from distributed_fi.kernels.jit.spec import KernelSpec

Scaled = Callable[[Path, int], int]


@pytest.fixture
def archive(scale_spec: KernelSpec) -> bytes:
    return pack([build_kernel(scale_spec, "cpu")])


@pytest.fixture
def bare_machine(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """From here on there is no compiler, and the cache is another, empty one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DFI_CACHE_DIR", str(tmp_path / "bare"))
    monkeypatch.setattr(bundle, "_received", [])
    return tmp_path / "bare"


def test_bundle_named_in_the_environment_needs_no_compiler(
    scale_spec: KernelSpec,
    scaled: Scaled,
    archive: bytes,
    bare_machine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(CompilerNotFoundError):
        build_kernel(scale_spec, "cpu")
    (tmp_path / "kernels.tar").write_bytes(archive)
    monkeypatch.setenv("DFI_KERNEL_BUNDLE", str(tmp_path / "kernels.tar"))
    artifact = build_kernel(scale_spec, "cpu")
    assert artifact.folder.parent == bare_machine
    assert scaled(artifact.library, 7) == 42


def test_received_bundle_serves_and_repairs_what_is_damaged_later(
    scale_spec: KernelSpec, scaled: Scaled, archive: bytes, bare_machine: Path
) -> None:
    assert receive_bundle(archive, "the coordinator") == 1
    artifact = build_kernel(scale_spec, "cpu")
    artifact.library.write_bytes(b"")
    assert scaled(build_kernel(scale_spec, "cpu").library, 7) == 42


def test_kernel_of_other_sources_is_not_taken_from_a_bundle(
    scale_spec: KernelSpec, archive: bytes, bare_machine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receive_bundle(archive, "the coordinator")
    (tmp_path / "factor.h").write_text("#define FACTOR 4\n")
    with caplog.at_level(logging.WARNING), pytest.raises(CompilerNotFoundError):
        build_kernel(scale_spec, "cpu")
    assert caplog.messages == ["test/scale for cpu is not in the coordinator, or was built from other sources"]


def test_same_artifacts_make_the_same_archive(scale_spec: KernelSpec, archive: bytes) -> None:
    artifact = build_kernel(scale_spec, "cpu")
    assert pack([artifact, artifact]) == archive


def test_library_damaged_on_the_way_is_refused(archive: bytes) -> None:
    at = archive.index(b"\x7fELF") + 4096
    damaged = archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]
    with pytest.raises(InvalidArgumentError, match="expected an undamaged test/scale in it, got rank 0's"):
        KernelBundle(damaged, "rank 0's")


@pytest.mark.parametrize("part", [0, 1, 600, 2000])
def test_archive_that_is_cut_off_or_no_archive_is_refused(archive: bytes, part: int) -> None:
    for contents in (archive[:part], b"x" * part):
        with pytest.raises(InvalidArgumentError, match=r"expected an archive made by distributed-fi build, got a\.tar"):
            KernelBundle(contents, "a.tar")


def test_missing_bundle_is_named(
    scale_spec: KernelSpec, bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone.tar"
    monkeypatch.setenv("DFI_KERNEL_BUNDLE", str(gone))
    with pytest.raises(NotFoundError, match=f"DFI_KERNEL_BUNDLE: expected a readable.*{re.escape(str(gone))}"):
        build_kernel(scale_spec, "cpu")
