# SPDX-License-Identifier: Apache-2.0
"""The compiler and linker commands of kernels, written as one ninja file."""

from __future__ import annotations

import functools
import shlex
from dataclasses import dataclass
from pathlib import Path

from distributed_fi.kernels.jit.artifact import LIBRARY
from distributed_fi.kernels.jit.spec import INCLUDE_DIRS, KernelSpec
from distributed_fi.kernels.jit.toolchain import Toolchain

LINKED = "dfi-linked-"
# Names of one module must not be found by another: only what tvm-ffi exports is visible.
_CXX_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall")
_NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v")


@dataclass(frozen=True)
class Step:
    """One run of a compiler: of `source`, or of the linker where that is None. Its output goes to `log`."""

    output: str
    inputs: tuple[str, ...]
    command: tuple[str, ...]
    source: Path | None

    @property
    def log(self) -> str:
        return self.output.replace("/", ".") + ".log"


def build_steps(spec: KernelSpec, arch: str, toolchain: Toolchain, index: int) -> list[Step]:
    """Compilations of a kernel and, last, its linking; all outputs relative to the build folder."""
    compiles = [_compile(spec, arch, toolchain, path, f"{index}.{i}.o") for i, path in enumerate(spec.source_paths())]
    objects = tuple(step.output for step in compiles)
    output = f"{index}/{LIBRARY}"
    _, tvm_library = _tvm_ffi_folders()
    link = [str(toolchain.cxx), "-shared", *objects, "-o", output, f"-L{tvm_library}", "-ltvm_ffi", "-Wl,-z,defs"]
    if toolchain.cuda is not None:
        link += [f"-L{toolchain.cuda.library_dir}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return [*compiles, Step(output, objects, tuple(link), None)]


def ninja_file(kernels: list[list[Step]]) -> str:
    """Text of a ninja file whose last step of kernel i announces itself as LINKED + i."""
    lines = ["rule run", "  command = $cmd", "  description = $announce", ""]
    for index, steps in enumerate(kernels):
        for step in steps:
            command = f"{shlex.join(step.command)} > {step.log} 2>&1"
            announce = f"{LINKED}{index}" if step.source is None else step.output
            lines += [f"build {step.output}: run {' '.join(step.inputs)}".rstrip()]
            lines += [f"  cmd = {command.replace('$', '$$')}", f"  announce = {announce}"]
    return "\n".join(lines) + "\n"


def _compile(spec: KernelSpec, arch: str, toolchain: Toolchain, source: Path, output: str) -> Step:
    defines = [f"-D{name}={value}" for name, value in spec.defines]
    includes = [f"-I{folder}" for folder in INCLUDE_DIRS if folder.is_dir()]
    if source.suffix == ".cu":
        assert toolchain.cuda is not None
        number = arch.removeprefix("sm_")
        # The shorthand -arch=sm_90a also runs a pass without the features of 90a.
        target = f"-gencode=arch=compute_{number},code=sm_{number}"
        command = [str(toolchain.cuda.nvcc), "-c", target, *_NVCC_FLAGS, f"-ccbin={toolchain.cxx}"]
    else:
        command = [str(toolchain.cxx), "-c", *_CXX_FLAGS, *(f"-isystem{folder}" for folder in _tvm_ffi_folders()[0])]
        command += [f"-isystem{toolchain.cuda.include_dir}"] if toolchain.cuda is not None else []
    return Step(output, (), (*command, *includes, *defines, *spec.flags, str(source), "-o", output), source)


@functools.cache
def _tvm_ffi_folders() -> tuple[tuple[str, ...], str]:
    """Include folders and library folder of the installed tvm-ffi."""
    from tvm_ffi import libinfo

    return tuple(libinfo.include_paths()), str(Path(libinfo.find_libtvm_ffi()).parent)
