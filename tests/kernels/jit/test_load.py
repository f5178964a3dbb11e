# SPDX-License-Identifier: Apache-2.0
"""From a spec to a function: through tvm-ffi's C++ binding, with its errors, and without work the second time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distributed_fi.kernels.jit import load
from distributed_fi.kernels.jit.load import load_kernel
from distributed_fi.kernels.jit.spec import KernelSpec

ADD_CPP = """
#include <tvm/ffi/tvm_ffi.h>
static int64_t add(int64_t a, int64_t b) {
  if (a < 0) TVM_FFI_THROW(ValueError) << "a: expected >= 0, got " << a;
  return a + b;
}
TVM_FFI_DLL_EXPORT_TYPED_FUNC(add, add);
"""


def test_exported_function_runs_and_its_errors_are_pythons(tmp_path: Path) -> None:
    (tmp_path / "add.cpp").write_text(ADD_CPP)
    module = load_kernel(KernelSpec("test/add", (str(tmp_path / "add.cpp"),)), arch="cpu")
    assert module.add(3, 4) == module["add"](3, 4) == 7
    with pytest.raises(ValueError, match="a: expected >= 0, got -1"):
        module.add(-1, 4)


def test_second_load_is_a_look_up_and_a_fresh_process_compiles_nothing(
    scale_spec: KernelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_kernel(scale_spec, arch="cpu")
    script = f"""
import subprocess
from distributed_fi.kernels.jit.load import load_kernel
from distributed_fi.kernels.jit.spec import KernelSpec
def forbidden(*args, **kwargs): raise RuntimeError("a process was started")
import tvm_ffi
subprocess.Popen.__init__ = forbidden
print(load_kernel({scale_spec!r}, arch="cpu")["scale"](7))
"""
    fresh = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (fresh.stdout, fresh.returncode) == ("42\n", 0), fresh.stderr
    monkeypatch.setattr(load, "build_kernel", lambda *_: pytest.fail("looked for again"))
    assert load_kernel(scale_spec, arch="cpu") is module
