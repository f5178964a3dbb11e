# SPDX-License-Identifier: Apache-2.0
"""What went wrong, in the compiler's first words."""

from __future__ import annotations

import re

from distributed_fi.errors import KernelBuildError
from distributed_fi.kernels.jit.commands import Step
from distributed_fi.kernels.jit.spec import KernelSpec

# g++ "a.cpp:3:5: error: …", nvcc "a.cu(3): error: …", ptxas "ptxas fatal   : …", ld "undefined reference to …"
_ERROR = re.compile(r"\b(error|fatal)\b[^:]*:|undefined reference|cannot find|\bcommand not found|\bKilled\b")


def first_error(log: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    wrong = next((line for line in lines if _ERROR.search(line)), None)
    return wrong or (lines[-1] if lines else "ended without a word, as when memory runs out")


def build_error(spec: KernelSpec, failed: Step, log: str, kept_log: str) -> KernelBuildError:
    """The error of a kernel one step of which failed."""
    source = "linking" if failed.source is None else str(failed.source)
    return KernelBuildError(spec.name, source, first_error(log), kept_log)
