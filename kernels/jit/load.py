# SPDX-License-Identifier: Apache-2.0
"""From a spec to functions that can be called: finds or builds the artifact and loads it, once in a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from distributed_fi.errors import UnsupportedError
from distributed_fi.kernels.jit.build import build_kernel
from distributed_fi.kernels.jit.spec import KernelSpec

if TYPE_CHECKING:
    from tvm_ffi import Module

_loaded: dict[tuple[KernelSpec, str], Module] = {}


def load_kernel(spec: KernelSpec, arch: str) -> Module:
    """The module of a kernel; `module.rmsnorm(...)` calls what its binding exports as `rmsnorm`.

    Args:
        spec: what it is made of.
        arch: "sm_90a", … or "cpu" for kernels without CUDA sources.
    Raises:
        CompilerNotFoundError, KernelBuildError: it is not built yet and cannot be; as `build_all`.
        UnsupportedError: a CUDA graph is being captured; load every kernel of a graph before.
    Notes: builds where nothing is built yet: the first call costs seconds then and milliseconds else, the next ones
        a look-up.
    """
    module = _loaded.get((spec, arch))
    if module is None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise UnsupportedError(spec.name, "a first use during CUDA graph capture", "a call before the capture")
        from tvm_ffi import load_module

        # Two threads may both come here: both load the same library, and one module is kept.
        module = _loaded.setdefault((spec, arch), load_module(str(build_kernel(spec, arch).library)))
    return module
