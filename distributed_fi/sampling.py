# SPDX-License-Identifier: Apache-2.0
"""Sampling operators."""

from __future__ import annotations

from distributed_fi.kernels.sampling.philox import philox_uniform
from distributed_fi.kernels.sampling.sampling_ops import (
    min_p_renorm_probs,
    min_p_sampling_from_probs,
    sampling_from_logits,
    sampling_from_probs,
    softmax,
    top_k_mask_logits,
    top_k_renorm_probs,
    top_k_sampling_from_probs,
    top_k_top_p_sampling_from_logits,
    top_k_top_p_sampling_from_probs,
    top_p_renorm_probs,
    top_p_sampling_from_probs,
)
from distributed_fi.kernels.sampling.speculative import chain_speculative_sampling
from distributed_fi.kernels.sampling.top_k import top_k

__all__ = [
    "chain_speculative_sampling",
    "min_p_renorm_probs",
    "min_p_sampling_from_probs",
    "philox_uniform",
    "sampling_from_logits",
    "sampling_from_probs",
    "softmax",
    "top_k",
    "top_k_mask_logits",
    "top_k_renorm_probs",
    "top_k_sampling_from_probs",
    "top_k_top_p_sampling_from_logits",
    "top_k_top_p_sampling_from_probs",
    "top_p_renorm_probs",
    "top_p_sampling_from_probs",
]
