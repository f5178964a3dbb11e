# SPDX-License-Identifier: Apache-2.0
"""LogitsPipe and its processors."""

from __future__ import annotations

from distributed_fi.kernels.sampling.logits_pipe import LogitsPipe
from distributed_fi.kernels.sampling.processors import (
    LogitsProcessor,
    MinP,
    Sample,
    Softmax,
    Temperature,
    TensorType,
    TopK,
    TopP,
)

__all__ = [
    "LogitsPipe",
    "LogitsProcessor",
    "MinP",
    "Sample",
    "Softmax",
    "Temperature",
    "TensorType",
    "TopK",
    "TopP",
]
