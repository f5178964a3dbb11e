# SPDX-License-Identifier: Apache-2.0
"""The architecture that kernels of a device are compiled for."""

from __future__ import annotations

import torch


def device_arch(device: torch.device) -> str:
    """Compute capability 8.0 -> "sm_80"; 9.0 -> "sm_90a", with the features only it has; a CPU -> "cpu"."""
    if device.type != "cuda":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"
