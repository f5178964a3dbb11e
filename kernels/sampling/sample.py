# SPDX-License-Identifier: Apache-2.0
"""Drawing one token per row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling.philox import philox_uniform
from distributed_fi.kernels.sampling.row_params import Rows, to_tensor
from distributed_fi.kernels.sampling.weights import to_weights, weight_scale
from distributed_fi.kernels.upload import upload

# Below it, dividing a logit could overflow float32; no such temperature differs from this one.
MIN_TEMPERATURE = 1e-30
# Probabilities drawn from at a time on the CPU, so that their 64-bit weights stay in its cache.
CHUNK = 1 << 16


def greedy(logits: Tensor) -> Tensor:
    """int32 [batch]: token of the largest logit, the smallest id among equals; -1 where that is not finite."""
    peak = logits.amax(-1)
    return torch.where(peak.isfinite(), _argmax(logits), -1).int()


def scaled(logits: Tensor, temperature: Rows) -> Tensor:
    """float32 logits / temperature; where that is 0, 0 for the greedy token and -inf for the others."""
    logits = logits.float()
    if isinstance(temperature, np.ndarray) and (temperature == 1).all():
        return logits
    divisor = to_tensor(temperature, logits.device)[:, None]
    hot = logits / divisor.clamp(min=MIN_TEMPERATURE).float()
    if isinstance(temperature, Tensor):
        return torch.where(divisor == 0, _one_hot(logits), hot)
    if (temperature == 0).any():
        index = upload((temperature == 0).nonzero()[0], logits.device)
        return hot.index_copy_(0, index, _one_hot(logits.index_select(0, index)))
    return hot


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the running sum of a row's probabilities, in token order, passes uniform x its total.

    Args:
        probs: [batch, vocab_size], float32, in any scale.
        uniform: [batch], float64, in [0, 1).
    Returns:
        int32 [batch]: a token of non-zero probability; -1 where the row has a NaN or no probability at all.
    """
    if probs.device.type == "cpu" and probs.numel() > CHUNK:
        rows = max(1, CHUNK // probs.shape[-1])
        return torch.cat([_draw(*chunk) for chunk in zip(probs.split(rows), uniform.split(rows), strict=True)])
    return _draw(probs, uniform)


def _draw(probs: Tensor, uniform: Tensor) -> Tensor:
    peak = probs.amax(-1)
    running = to_weights(probs, weight_scale(probs)).cumsum_(-1)
    total = running[:, -1:]
    # Rounding could lift the product to the total itself, past the last token.
    target = torch.minimum((uniform[:, None] * total).long(), total - 1)
    token = torch.searchsorted(running, target, right=True).squeeze(-1)
    return torch.where((peak > 0) & peak.isfinite(), token, -1).int()


def row_uniform(
    batch: int,
    device: torch.device,
    seed: Rows | None = None,
    position: Rows | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[batch], float64, in [0, 1): by (seed, position) where given, else drawn from `generator`."""
    check_source(seed, position, generator)
    if seed is None or position is None:
        return torch.rand(batch, dtype=torch.float64, device=device, generator=generator)
    # Rows known to the host are counted there; rows on the device stay there.
    if isinstance(seed, Tensor) or isinstance(position, Tensor):
        return philox_uniform(to_tensor(seed, device), to_tensor(position, device))
    return upload(philox_uniform(torch.from_numpy(seed), torch.from_numpy(position)), device)


def check_source(seed: object = None, position: object = None, generator: object = None) -> None:
    """Raise InvalidArgumentError unless it is seed with position, or a generator, or nothing."""
    if seed is None and position is not None:
        raise InvalidArgumentError("seed", None, "a seed, since a position is given")
    if seed is not None and position is None:
        raise InvalidArgumentError("position", None, "the position of the token, since a seed is given")
    if seed is not None and generator is not None:
        raise InvalidArgumentError("generator", generator, "None, since a seed is given")


def _one_hot(logits: Tensor) -> Tensor:
    peak = logits.amax(-1, keepdim=True)
    # peak - peak is 0, or NaN where the row has no finite maximum.
    return torch.full_like(logits, -torch.inf).scatter_(-1, _argmax(logits)[:, None], peak - peak)


def _argmax(logits: Tensor) -> Tensor:
    """int64 [batch]; the smallest id among equals, as torch and numpy both promise."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # numpy's is vectorised, torch's is not.
        return torch.from_numpy(logits.detach().numpy().argmax(-1))
    return logits.argmax(-1)
