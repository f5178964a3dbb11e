# SPDX-License-Identifier: Apache-2.0
"""The norm of a decoder: RMSNorm, by weight or by 1 + weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from distributed_fi.config import ModelConfig
from distributed_fi.kernels.norm.rmsnorm import rmsnorm


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm of the last dimension with one weight.

    out = input / sqrt(mean(input^2) + eps) * weight, or * (1 + weight) where `adds_one`

    Args:
        weight: [n], the activations' dtype.
        eps: added to the mean square.
        adds_one: Gemma's form, whose weights are stored around 0.
    """

    weight: Tensor
    eps: float
    adds_one: bool

    def __call__(self, input: Tensor) -> Tensor:
        """The norm of [..., n], in its dtype; computed in float32 and rounded once."""
        if not self.adds_one:
            return rmsnorm(input, self.weight, self.eps)
        # In float32: in bfloat16 the sum would lose most of a small weight.
        return F.rms_norm(input.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(input.dtype)


def make_norm(config: ModelConfig, weight: Tensor) -> Norm:
    """A norm of the model's form."""
    return Norm(weight, config.rms_norm_eps, config.norm_adds_one)
