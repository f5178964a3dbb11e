# SPDX-License-Identifier: Apache-2.0
"""What a decoder layer does after its attention: the gated MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from distributed_fi.config import ModelConfig
from distributed_fi.kernels.activation.silu_and_mul import silu_and_mul
from distributed_fi.kernels.gemm.gemm_nt import gemm_nt

Mlp = Callable[[Tensor], Tensor]


def gelu_tanh_and_mul(input: Tensor) -> Tensor:
    """GELU, in its tanh form, of the first half of the last dimension times the second half.

    out = a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3))) / 2 * b,  [a, b] = input

    Args:
        input: [..., 2 * d], float32, bfloat16 or float16.
    Returns:
        [..., d] in input's dtype; computed in float32 and rounded once.
    """
    gate, up = input.chunk(2, -1)
    return F.gelu(gate.float(), approximate="tanh").mul_(up).to(input.dtype)


def gated_activation(config: ModelConfig) -> Mlp:
    """The model's activation: [..., 2 * d], gate then up, to [..., d]."""
    return silu_and_mul if config.activation == "silu" else gelu_tanh_and_mul


@dataclass(frozen=True, eq=False)
class DenseMlp:
    """down @ activation(gate_up @ x): this rank's share, yet to be summed over the group.

    Args:
        gate_up: [2 I, H], the rank's rows of gate, then of up.
        down: [H, I], the rank's columns.
        activation: [..., 2 I] -> [..., I].
    """

    gate_up: Tensor
    down: Tensor
    activation: Mlp

    def __call__(self, hidden: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        return gemm_nt(self.activation(gemm_nt(hidden, self.gate_up)), self.down)
