# SPDX-License-Identifier: Apache-2.0
"""`distributed-fi build` writes an archive that DFI_KERNEL_BUNDLE takes, and says in one line what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_fi.cli.main import run
from distributed_fi.coordinator import kernel_catalog
from distributed_fi.kernels.jit.bundle import KernelBundle
from distributed_fi.kernels.jit.spec import KernelSpec


@pytest.fixture(autouse=True)
def one_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog is one host kernel, built in a cache of this test."""
    (tmp_path / "nothing.cpp").write_text("int nothing() { return 0; }\n")
    spec = KernelSpec("test/nothing", (str(tmp_path / "nothing.cpp"),))
    monkeypatch.setattr(kernel_catalog, "compiled_kernels", lambda: [spec])
    monkeypatch.setenv("DFI_CACHE_DIR", str(tmp_path / "cache"))


def test_archive_holds_every_kernel_of_every_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.tar"
    assert run(["build", "--arch", "cpu", "--out", str(out)]) == 0
    assert len(KernelBundle(out.read_bytes(), str(out))) == 1
    assert "1 kernels for cpu" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arch", "out", "wrong"),
    [("9.0", "kernels.tar", "error: arch: expected"), ("cpu", "no_folder/kernels.tar", "error: out: expected")],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arch: str, out: str, wrong: str
) -> None:
    assert run(["build", "--arch", arch, "--out", str(tmp_path / out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert wrong in line
