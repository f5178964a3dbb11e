# SPDX-License-Identifier: Apache-2.0
"""The compilers of this machine: where they were found, which version they are, and what they must be told."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from distributed_fi import env
from distributed_fi.errors import CompilerNotFoundError
from distributed_fi.kernels.jit.compiler_answers import ask
from distributed_fi.kernels.jit.spec import CPU


@dataclass(frozen=True)
class CudaToolkit:
    """One CUDA toolkit: its compiler, not a wrapper of it, and its folders."""

    nvcc: Path
    version: str
    include_dir: Path
    library_dir: Path


@dataclass(frozen=True)
class Toolchain:
    """The programs that build a kernel; `cuda` is None where only host code is built."""

    cxx: Path
    cxx_version: str
    ninja: Path
    cuda: CudaToolkit | None

    def identity(self) -> list[str]:
        """What of it the machine code depends on."""
        nvcc = "-" if self.cuda is None else self.cuda.version
        return [f"cxx={self.cxx_version}", f"nvcc={nvcc}", *env.compiler_settings()]


def find_toolchain(arch: str, *, needs_nvcc: bool) -> Toolchain:
    """Find g++, ninja and, for a GPU architecture, a CUDA toolkit.

    Looks for nvcc in CUDA_HOME, on PATH (behind a wrapper script too), and in pip's nvidia/cu13.

    Raises:
        CompilerNotFoundError: names what was looked for, where, and what to install.
    """
    cxx = shutil.which("g++")
    if cxx is None:
        raise CompilerNotFoundError("g++", "PATH", "install a C++ compiler (Debian: apt-get install g++)")
    cuda = None if arch == CPU else _find_cuda()
    if cuda is None and needs_nvcc:
        where = f"CUDA_HOME ({env.cuda_home() or 'not set'}), PATH, and nvidia/cu13 of this Python"
        remedy = "pip install 'distributed-fi[cuda13]', or a bundle of built kernels in DFI_KERNEL_BUNDLE"
        raise CompilerNotFoundError("nvcc", where, remedy)
    return Toolchain(cxx=Path(cxx), cxx_version=_version(Path(cxx)), ninja=_find_ninja(), cuda=cuda)


@functools.cache
def abi() -> tuple[str, ...]:
    """What a built module must agree on with the process that loads it."""
    return (f"tvm-ffi={importlib.metadata.version('apache-tvm-ffi')}", f"platform={sysconfig.get_platform()}")


def _find_ninja() -> Path:
    beside = Path(sys.executable).parent / "ninja"
    found = str(beside) if beside.is_file() else shutil.which("ninja")
    if found is None:
        raise CompilerNotFoundError("ninja", f"{beside.parent} and PATH", "pip install ninja")
    return Path(found)


def _find_cuda() -> CudaToolkit | None:
    home = env.cuda_home()
    candidates = [home / "bin/nvcc"] if home is not None else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    candidates += [Path(folder) / "cu13/bin/nvcc" for folder in _nvidia_wheels()]
    for nvcc in candidates:
        if nvcc.is_file() and (toolkit := _toolkit(nvcc)) is not None:
            return toolkit
    return None


def _nvidia_wheels() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    return list(spec.submodule_search_locations or []) if spec is not None else []


def _toolkit(nvcc: Path) -> CudaToolkit | None:
    """The toolkit an nvcc belongs to, or None where its folder lacks headers or libraries."""
    roots = [nvcc.resolve().parent.parent]
    if not (roots[0] / "bin/nvcc").is_file() or not _include_dir(roots[0]):
        # A wrapper script somewhere on PATH: the compiler itself says where it lives.
        match = re.search(r"^#\$ TOP=(.+)$", ask(nvcc, "-dryrun", "-x", "cu", "-c", "/dev/null"), re.MULTILINE)
        roots = [Path(match[1]).resolve()] if match else []
    for root in roots:
        include_dir, library_dir = _include_dir(root), _library_dir(root)
        if include_dir is not None and library_dir is not None:
            real = root / "bin/nvcc"
            return CudaToolkit(real, _version(real), include_dir, library_dir)
    return None


def _include_dir(root: Path) -> Path | None:
    folders = (root / "include", *sorted(root.glob("targets/*/include")))
    return next((f for f in folders if (f / "cuda_runtime.h").is_file()), None)


def _library_dir(root: Path) -> Path | None:
    # pip's toolkit has lib/ without lib64/, and no libcudart.so: the static library is what all of them carry.
    folders = (root / "lib64", root / "lib", *sorted(root.glob("targets/*/lib")))
    return next((f for f in folders if (f / "libcudart_static.a").is_file()), None)


def _version(compiler: Path) -> str:
    text = ask(compiler, "--version")
    release = re.search(r"\bV(\d+\.\d+\.\d+)", text)
    return release[1] if release else text.split("\n", 1)[0].strip()
