# SPDX-License-Identifier: Apache-2.0
"""What a kernel is made of: the description from which its artifact is built, found again and judged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distributed_fi.errors import InvalidArgumentError, UnsupportedError

KERNELS_DIR = Path(__file__).resolve().parents[1]
INCLUDE_DIRS = (KERNELS_DIR / "include", KERNELS_DIR)
CPU = "cpu"
_NAME = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*")
_ARCH = re.compile(r"sm_\d+[af]?")


@dataclass(frozen=True)
class SassExpectation:
    """What the compiled code of a kernel must look like.

    Args:
        opcodes: SASS opcodes that must occur somewhere; "LDG.E.128" also means "LDG.E.128.CONSTANT", "LDG" any.
        forbidden: SASS opcodes that must occur nowhere.
        max_registers: largest register count of a thread; None for any.
        max_spill_bytes: largest spill stores or loads of a kernel function, bytes.
    """

    opcodes: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    max_registers: int | None = None
    max_spill_bytes: int = 0


@dataclass(frozen=True)
class KernelSpec:
    """Sources and parameters of one kernel module.

    Args:
        name: "family/kernel"; names the artifact, the progress line and the errors.
        sources: `.cu` (nvcc; without tvm-ffi headers, which cost seconds there) and `.cpp` (the C++ compiler; exports
            functions through tvm-ffi), relative to the kernels folder or absolute.
        defines: preprocessor parameters, (name, value).
        flags: further flags of every compilation.
        expected: what the machine code must look like; no part of the artifact's key.
    Raises:
        InvalidArgumentError: a name or a source that cannot be.
    """

    name: str
    sources: tuple[str, ...]
    defines: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()
    expected: SassExpectation | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidArgumentError("name", self.name, "letters, digits, _ . - in parts divided by /")
        wrong = [s for s in self.sources if not s.endswith((".cu", ".cpp"))]
        if wrong or not self.sources:
            raise InvalidArgumentError("sources", self.sources, "at least one file, each ending in .cu or .cpp")

    @property
    def has_device_code(self) -> bool:
        return any(s.endswith(".cu") for s in self.sources)

    def source_paths(self) -> tuple[Path, ...]:
        """Absolute paths of the sources, in order."""
        return tuple(KERNELS_DIR / s for s in self.sources)


def check_arch(spec: KernelSpec, arch: str) -> None:
    """Raise where `arch` is no architecture, or not one this kernel can be built for."""
    if arch != CPU and not _ARCH.fullmatch(arch):
        raise InvalidArgumentError("arch", arch, 'an architecture like "sm_80" or "sm_90a", or "cpu" for host code')
    if arch == CPU and spec.has_device_code:
        raise UnsupportedError("arch", arch, f"an architecture like sm_90a for {spec.name}, which has CUDA sources")
