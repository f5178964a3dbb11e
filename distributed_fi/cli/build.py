# SPDX-License-Identifier: Apache-2.0
"""`distributed-fi build`: compiles every kernel ahead of time, on a machine that needs no GPU."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from distributed_fi.cli.console import stderr_console
from distributed_fi.errors import InvalidArgumentError


def build(
    arch: Annotated[list[str], typer.Option(help="GPU architecture, like sm_90a; may be given again.")],
    out: Annotated[Path, typer.Option(help="Archive to write, for DFI_KERNEL_BUNDLE.")],
) -> None:
    """Compile every kernel for one or more architectures into one archive."""
    from distributed_fi.coordinator.kernel_catalog import compiled_kernels
    from distributed_fi.kernels.jit.build import build_all
    from distributed_fi.kernels.jit.bundle import pack

    if not out.parent.is_dir():
        raise InvalidArgumentError("out", str(out), "a file in a folder that exists")
    start = time.monotonic()
    specs = compiled_kernels()
    archive = pack([artifact for name in dict.fromkeys(arch) for artifact in build_all(specs, name)])
    _write(out, archive)
    kernels = f"{len(specs)} kernels for {', '.join(dict.fromkeys(arch))}"
    stderr_console().print(f"{out}: {kernels}, {len(archive) / 2**20:.1f} MiB, {time.monotonic() - start:.1f} s")


def _write(out: Path, archive: bytes) -> None:
    """Write all of a file or nothing."""
    with tempfile.NamedTemporaryFile(dir=out.parent, delete=False) as file:
        file.write(archive)
    Path(file.name).chmod(0o644)
    os.replace(file.name, out)
