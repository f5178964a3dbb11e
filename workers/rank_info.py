# SPDX-License-Identifier: Apache-2.0
"""Who a rank is: its host, process and GPU, known by UUID because ordinals differ between processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from distributed_fi.kernels.jit.device_arch import device_arch
from distributed_fi.workers.ring.segment import host_id


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """What a rank process says of itself before it is given a rank number."""

    host_id: str
    node_ip: str
    pid: int
    gpu_uuid: str | None
    device_name: str
    kernel_arch: str | None  # of its GPU, like "sm_90a"


def rank_info(*, node_ip: str, device: torch.device) -> RankInfo:
    """Look at this process; touches CUDA only where `device` is a GPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu_uuid, name, arch = f"GPU-{properties.uuid}", properties.name, device_arch(device)
    else:
        gpu_uuid, name, arch = None, "CPU", None
    return RankInfo(
        host_id=host_id(),
        node_ip=node_ip,
        pid=os.getpid(),
        gpu_uuid=gpu_uuid,
        device_name=name,
        kernel_arch=arch,
    )
