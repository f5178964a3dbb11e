# SPDX-License-Identifier: Apache-2.0
"""A group of the processes that torchrun, or a launcher that sets the same variables, has started."""

from __future__ import annotations

import contextlib

import torch
from torch.distributed import PrefixStore, Store

from distributed_fi.comm.bootstrap.store import connect_store, serve_store
from distributed_fi.comm.group import Group
from distributed_fi.env import TorchrunEnv, torchrun_env
from distributed_fi.errors import InvalidArgumentError, UnreachableError


def group_from_torchrun(
    *, device: torch.device | str | None = None, timeout_s: float = 30.0, name: str = "world"
) -> Group:
    """The group of all ranks of this torchrun job.

    Args:
        device: None takes cuda:LOCAL_RANK where there are GPUs (cuda:0 where the process sees only one), else the CPU.
        timeout_s: bound of joining and of every call, seconds.
        name: tells several groups of one job apart.
    Raises:
        InvalidArgumentError: a variable of torchrun is missing; LOCAL_RANK has no GPU.
        UnreachableError: no store answers at MASTER_ADDR:MASTER_PORT.
        CollectiveTimeoutError: a rank did not join in time.
    """
    env = torchrun_env()
    where = _device_of(env) if device is None else device
    # torchrun's store outlives the ranks: those started again must not meet one that has yet to end.
    store = PrefixStore(f"restart{env.restart_count}", _store(env, timeout_s))
    return Group.from_store(store, env.rank, env.world_size, device=where, timeout_s=timeout_s, name=name)


def _store(env: TorchrunEnv, timeout_s: float) -> Store:
    address = f"{env.master_addr}:{env.master_port}"
    if env.rank == 0:
        # torchrun's agent serves the store already and then holds the port; launchers without an agent do not.
        with contextlib.suppress(UnreachableError):
            return serve_store(env.master_addr, timeout_s, port=env.master_port)[0]
    return connect_store(address, timeout_s)


def _device_of(env: TorchrunEnv) -> torch.device:
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 0:
        return torch.device("cpu")
    if num_gpus > 1 and env.local_rank >= num_gpus:
        raise InvalidArgumentError("LOCAL_RANK", env.local_rank, f"less than the {num_gpus} GPUs of this host")
    return torch.device("cuda", 0 if num_gpus == 1 else env.local_rank)
