# SPDX-License-Identifier: Apache-2.0
"""Every kernel of the Llama path compiles without a GPU, and so do its binding and their matcher."""

from __future__ import annotations

import importlib
import shutil

import pytest

from distributed_fi.kernels.dispatch.compiled import arch_of
from distributed_fi.kernels.jit.build import build_kernel

MODULES = (
    "norm.rmsnorm_cuda",
    "activation.silu_and_mul_cuda",
    "rope.cos_sin_cache_cuda",
    "kv_cache.append_cuda",
)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("module", MODULES)
def test_kernel_and_binding_compile(module: str, arch: str) -> None:
    spec = importlib.import_module(f"distributed_fi.kernels.{module}").SPEC
    assert build_kernel(spec, arch).library.stat().st_size > 0


def test_the_architecture_of_a_device() -> None:
    assert arch_of((8, 0)) == ("sm_80", False)
    assert arch_of((8, 9)) == ("sm_89", False)
    assert arch_of((9, 0)) == ("sm_90a", True)
    assert arch_of((12, 0)) == ("sm_120a", True)
