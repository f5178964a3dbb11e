# SPDX-License-Identifier: Apache-2.0
"""What a decoder layer does after its attention: one gated MLP, or several of which each token takes some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from distributed_fi.config import ModelConfig
from distributed_fi.kernels.activation.gelu_and_mul import gelu_tanh_and_mul
from distributed_fi.kernels.activation.silu_and_mul import silu_and_mul
from distributed_fi.kernels.gemm.gemm_nt import gemm_nt
from distributed_fi.kernels.gemm.grouped_gemm import grouped_gemm_nt
from distributed_fi.kernels.moe.permute import moe_permute, moe_unpermute, sort_by_expert
from distributed_fi.kernels.moe.routing import topk_softmax

Mlp = Callable[[Tensor], Tensor]


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


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpertMlp:
    """The weighted sum of a token's top_k experts, each a gated MLP: this rank's share, yet to be summed.

    Every rank holds its slice of every expert's intermediate size and routes all tokens, alike because the hidden
    states are the same bit for bit on all ranks.

    Args:
        router: [E, H], whole.
        gate_up: [E, 2 I, H], per expert the rank's rows of gate, then of up.
        down: [E, H, I], the rank's columns.
        activation: [..., 2 I] -> [..., I].
        top_k: experts of a token.
        renormalize: the weights of a token's experts sum to one.
    Notes: on CUDA the host waits once for the number of each expert's tokens.
    """

    router: Tensor
    gate_up: Tensor
    down: Tensor
    activation: Mlp
    top_k: int
    renormalize: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        topk_weights, topk_idx = topk_softmax(gemm_nt(hidden, self.router), self.top_k, renormalize=self.renormalize)
        order = sort_by_expert(topk_idx, len(self.router))
        m_indptr = order.m_indptr.cpu()
        gate_up = grouped_gemm_nt(moe_permute(hidden, order), self.gate_up, m_indptr)  # [T * top_k, 2 I]
        return moe_unpermute(grouped_gemm_nt(self.activation(gate_up), self.down, m_indptr), order, topk_weights)
