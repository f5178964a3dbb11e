# SPDX-License-Identifier: Apache-2.0
"""A cache of its own for each test, and kernels small enough to be built in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_fi.kernels.jit.spec import KernelSpec
from distributed_fi.kernels.jit.toolchain import find_toolchain

# Exports through tvm-ffi's C ABI by hand: its C++ headers take seconds to compile, and one test with them is enough.
SCALE_CPP = """
#include "factor.h"
#include <tvm/ffi/c_api.h>
extern "C" __attribute__((visibility("default")))
int __tvm_ffi_scale(void*, const TVMFFIAny* args, int32_t, TVMFFIAny* result) {
  result->type_index = kTVMFFIInt;
  result->v_int64 = args[0].v_int64 * FACTOR * BONUS;
  return 0;
}
"""
COPY_CU = """
__global__ void copy_rows(const float4* x, float4* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i];
}
void launch_copy(const void* x, void* out, int n) {
  copy_rows<<<(n + 127) / 128, 128>>>(static_cast<const float4*>(x), static_cast<float4*>(out), n);
}
"""


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DFI_CACHE_DIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("distributed_fi.kernels.jit.compiler_answers._answers", {})
    return folder


@pytest.fixture
def scale_spec(tmp_path: Path) -> KernelSpec:
    """Host code only: scale(x) = x * 3 * 2, with the 3 in a header and the 2 a parameter."""
    (tmp_path / "factor.h").write_text("#define FACTOR 3\n")
    (tmp_path / "scale.cpp").write_text(SCALE_CPP)
    return KernelSpec("test/scale", (str(tmp_path / "scale.cpp"),), defines=(("BONUS", "2"),))


@pytest.fixture
def copy_spec(tmp_path: Path) -> KernelSpec:
    """A copy in 16-byte pieces on the device; needs nvcc."""
    (tmp_path / "copy.cu").write_text(COPY_CU)
    return KernelSpec("test/copy", (str(tmp_path / "copy.cu"),))


@pytest.fixture
def scaled() -> Callable[[Path, int], int]:
    """Loads a library anew and calls its scale(x)."""

    def call(library: Path, x: int) -> int:
        from tvm_ffi import load_module

        return int(load_module(str(library))["scale"](x))

    return call


@pytest.fixture(scope="session")
def needs_nvcc() -> None:
    from distributed_fi.errors import CompilerNotFoundError

    try:
        find_toolchain("sm_90a", needs_nvcc=True)
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
