# SPDX-License-Identifier: Apache-2.0
"""Probabilities as integers, so that their sums do not depend on the order of addition.

A prefix sum of floats is computed in another order on each device, and need not even ascend: a token of
probability zero could be drawn at a dip, and ranks that sample the same row could differ. Integers add up
the same everywhere. Scaled to the row's largest probability, they keep 62 - log2(vocab_size) bits, 45 for
a vocabulary of 128 Ki; a token with less than 2^-45 of the largest one's probability is never drawn.
"""

from __future__ import annotations

from torch import Tensor


def weight_scale(probs: Tensor) -> Tensor:
    """float64 [batch, 1]: multiplies a row's probabilities so that all their sums stay below 2^62."""
    bits = 62 - (probs.shape[-1] - 1).bit_length()
    return 2.0**bits / probs.amax(-1, keepdim=True).double()


def to_weights(probs: Tensor, scale: Tensor) -> Tensor:
    """int64, probs' shape: floor(probs * scale); negative ones count as zero. Rows with NaN are meaningless."""
    return probs.double().mul_(scale).long().clamp_(min=0)
