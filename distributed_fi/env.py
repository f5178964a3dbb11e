# SPDX-License-Identifier: Apache-2.0
"""The only reader of os.environ: every variable this project looks at, typed, in one place.

| variable | meaning | default |
|---|---|---|
| DFI_HOST_ID | what this process calls its host; ranks with another one are reached through a relay | machine id |
| DFI_SHM_DIR | folder for shared memory, a tmpfs | /dev/shm |
| DFI_SPIN_US | how long a waiter spins before it sleeps, microseconds | 100 |
| DFI_CACHE_DIR | folder of built kernels | ~/.cache/distributed_fi/kernels |
| DFI_KERNEL_BUNDLE | archive of kernels built ahead of time; what it holds is not compiled | - |
| DFI_BUILD_JOBS | compilers run at once | by cores and memory |
| CUDA_HOME | CUDA toolkit that builds kernels | PATH, then pip's nvidia/cu13 |
| NVCC_PREPEND_FLAGS, NVCC_APPEND_FLAGS, CPATH, CPLUS_INCLUDE_PATH | heeded by compilers: part of a kernel's key | - |
| RAY_ADDRESS | cluster to join; `ray job submit` sets it | a local Ray is started |
| RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT | set by torchrun | - |
| TORCHELASTIC_RESTART_COUNT | how often torchrun has started the ranks again | 0 |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from distributed_fi.errors import InvalidArgumentError


@dataclass(frozen=True, kw_only=True)
class TorchrunEnv:
    """What torchrun tells each process it starts."""

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int
    restart_count: int = 0


def torchrun_env() -> TorchrunEnv:
    """Read torchrun's variables.

    Raises:
        InvalidArgumentError: one is missing or no integer; names it.
    """
    return TorchrunEnv(
        rank=_int("RANK"),
        world_size=_int("WORLD_SIZE"),
        local_rank=_int("LOCAL_RANK"),
        master_addr=_text("MASTER_ADDR"),
        master_port=_int("MASTER_PORT"),
        restart_count=_int("TORCHELASTIC_RESTART_COUNT") if os.environ.get("TORCHELASTIC_RESTART_COUNT") else 0,
    )


def host_id_override() -> str | None:
    """DFI_HOST_ID, or None where it is unset or empty."""
    return os.environ.get("DFI_HOST_ID") or None


def shm_dir() -> Path:
    """Folder in which shared-memory segments are created."""
    return Path(os.environ.get("DFI_SHM_DIR") or "/dev/shm")


def spin_us() -> int | None:
    """DFI_SPIN_US, or None where it is unset."""
    return _int("DFI_SPIN_US") if os.environ.get("DFI_SPIN_US") else None


def cache_dir() -> Path:
    """Folder of built kernels."""
    given = os.environ.get("DFI_CACHE_DIR")
    return Path(given).absolute() if given else Path.home() / ".cache/distributed_fi/kernels"


def kernel_bundle() -> Path | None:
    """DFI_KERNEL_BUNDLE, or None where it is unset or empty."""
    given = os.environ.get("DFI_KERNEL_BUNDLE")
    return Path(given).absolute() if given else None


def build_jobs() -> int | None:
    """DFI_BUILD_JOBS, or None where it is unset."""
    return _int("DFI_BUILD_JOBS") if os.environ.get("DFI_BUILD_JOBS") else None


def cuda_home() -> Path | None:
    """CUDA_HOME, or None where it is unset or empty."""
    given = os.environ.get("CUDA_HOME")
    return Path(given).absolute() if given else None


def compiler_settings() -> list[str]:
    """NAME=value of each variable that changes what a compiler makes of the same command."""
    names = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "CPATH", "CPLUS_INCLUDE_PATH")
    return [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]


def ray_address() -> str | None:
    """RAY_ADDRESS, or None where it is unset or empty."""
    return os.environ.get("RAY_ADDRESS") or None


def _text(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InvalidArgumentError(name, "nothing", "an environment variable, as torchrun sets it")
    return value


def _int(name: str) -> int:
    text = _text(name)
    if not text.isdecimal():
        raise InvalidArgumentError(name, text, "an integer >= 0 in this environment variable")
    return int(text)
