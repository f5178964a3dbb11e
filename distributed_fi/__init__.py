# SPDX-License-Identifier: Apache-2.0
"""distributed_fi: a Ray-distributed multi-GPU kernel service for LLM inference.

Names below load on first use (PEP 562): importing the package starts nothing and imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed_fi.comm.group import Group
    from distributed_fi.config import EngineConfig, ModelConfig, RopeConfig, SamplingParams
    from distributed_fi.coordinator.engine import Engine
    from distributed_fi.errors import DfiError, InvalidArgumentError, UnsupportedError
    from distributed_fi.kernels.attention.batch_attention import BatchAttention
    from distributed_fi.kernels.sampling.logits_pipe import LogitsPipe
    from distributed_fi.mesh import Mesh

__version__ = "0.1.0"

_HOME = {
    "BatchAttention": "distributed_fi.kernels.attention.batch_attention",
    "DfiError": "distributed_fi.errors",
    "Engine": "distributed_fi.coordinator.engine",
    "EngineConfig": "distributed_fi.config",
    "Group": "distributed_fi.comm.group",
    "InvalidArgumentError": "distributed_fi.errors",
    "LogitsPipe": "distributed_fi.kernels.sampling.logits_pipe",
    "Mesh": "distributed_fi.mesh",
    "ModelConfig": "distributed_fi.config",
    "RopeConfig": "distributed_fi.config",
    "SamplingParams": "distributed_fi.config",
    "UnsupportedError": "distributed_fi.errors",
}

__all__ = [
    "BatchAttention",
    "DfiError",
    "Engine",
    "EngineConfig",
    "Group",
    "InvalidArgumentError",
    "LogitsPipe",
    "Mesh",
    "ModelConfig",
    "RopeConfig",
    "SamplingParams",
    "UnsupportedError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
