# SPDX-License-Identifier: Apache-2.0
"""The norm of a decoder: RMSNorm, by weight or by 1 + weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distributed_fi.config import ModelConfig
from distributed_fi.kernels.norm.gemma_rmsnorm import gemma_rmsnorm
from distributed_fi.kernels.norm.rmsnorm import rmsnorm


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm of the last dimension with one weight: `rmsnorm`, or `gemma_rmsnorm` where `adds_one`.

    Args:
        weight: [n], the activations' dtype.
        eps: added to the mean square.
        adds_one: Gemma's form, whose weights are stored as the distance from one.
    """

    weight: Tensor
    eps: float
    adds_one: bool

    def __call__(self, input: Tensor) -> Tensor:
        """The norm of [..., n], in its dtype."""
        return (gemma_rmsnorm if self.adds_one else rmsnorm)(input, self.weight, self.eps)


def make_norm(config: ModelConfig, weight: Tensor) -> Norm:
    """A norm of the model's form."""
    return Norm(weight, config.rms_norm_eps, config.norm_adds_one)
