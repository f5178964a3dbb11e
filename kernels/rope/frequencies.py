# SPDX-License-Identifier: Apache-2.0
"""The angles of the rotary embedding, and their table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distributed_fi.config import RopeConfig
from distributed_fi.errors import InvalidArgumentError


def rope_frequencies(rope: RopeConfig, rotary_dim: int, device: torch.device | str | None = None) -> Tensor:
    """Radians that each pair of dimensions turns per position.

    f[i] = theta^(-2i / rotary_dim);  "linear": f / factor;  "llama3": s * f + (1 - s) * f / factor with
    s = clamp((original_max_position * f / (2 pi) - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1);
    "yarn": the same with s = 1 - clamp((i - d(beta_fast)) / (d(beta_slow) - d(beta_fast)), 0, 1), where d(turns) is
    the pair that makes so many turns in original_max_position tokens, rounded outwards if `truncate`.

    Args:
        rope: the base and the scaling.
        rotary_dim: dimensions that are rotated, even.
    Returns:
        [rotary_dim / 2], float64.
    Raises:
        InvalidArgumentError: rotary_dim is odd or not positive; a theta, factor or scaling out of range.
    Notes: Su et al. 2021, "RoFormer"; the Llama 3.1 scaling after its published model code; Peng et al. 2023, "YaRN".
    """
    _check_config(rope)
    if not isinstance(rotary_dim, int) or rotary_dim <= 0 or rotary_dim % 2:
        raise InvalidArgumentError("rotary_dim", rotary_dim, "an even integer >= 2")
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
    frequencies = rope.theta**-exponents
    if rope.scaling == "none":
        return frequencies
    slow = frequencies / rope.factor
    if rope.scaling == "linear":
        return slow
    if rope.scaling == "yarn":
        return torch.lerp(frequencies, slow, _yarn_ramp(rope, rotary_dim).to(frequencies.device))
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return torch.lerp(slow, frequencies, share.clamp(0, 1))


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's correction of the attention's temperature, 0.1 mscale ln(factor) + 1, or 1 for a factor up to 1.

    With the default mscale, what cosines and sines are multiplied by. DeepSeek's models take the quotient of two of
    them for that, and multiply sm_scale by the square of one.
    """
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def attention_factor(rope: RopeConfig) -> float:
    """What a model's cosines and sines are multiplied by; 1 but for "yarn"."""
    if rope.scaling != "yarn":
        return 1.0
    return yarn_mscale(rope.factor) if rope.attention_factor is None else rope.attention_factor


def cos_sin(frequencies: Tensor, positions: Tensor, magnitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles positions x frequencies, times magnitude.

    float32, [num_positions, rotary_dim / 2] each.

    The angle is formed in float64: in float32, position 100,000 would already be 0.004 rad off.
    """
    angles = positions.double()[:, None] * frequencies
    if magnitude == 1.0:
        return angles.cos().float(), angles.sin().float()
    return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()


def make_cos_sin_cache(
    rope: RopeConfig, head_dim: int, max_position: int, device: torch.device | str | None = None
) -> Tensor:
    """Table of the rotary embedding's cosines and sines for all positions of a model.

    cache[p] = [cos(p f[0]), ..., cos(p f[head_dim/2 - 1]), sin(p f[0]), ..., sin(p f[head_dim/2 - 1])], times
    the attention factor for "yarn"

    Args:
        rope: the base and the scaling.
        head_dim: dimensions that are rotated, even (the rotary dim, where a model rotates fewer than all).
        max_position: positions, from 0 on.
        device: where the table lives; None is the CPU.
    Returns:
        [max_position, head_dim], float32, as `apply_rope_with_cos_sin_cache` takes it.
    Raises:
        InvalidArgumentError: a size or a value of `rope` is out of range.
    Notes: angles in float64, rounded once to float32. Made once at load time.
    """
    if not isinstance(max_position, int) or max_position < 0:
        raise InvalidArgumentError("max_position", max_position, "an integer >= 0")
    frequencies = rope_frequencies(rope, head_dim, device)
    positions = torch.arange(max_position, device=frequencies.device)
    return torch.cat(cos_sin(frequencies, positions, attention_factor(rope)), dim=-1)


def _yarn_ramp(rope: RopeConfig, rotary_dim: int) -> Tensor:
    """float64 [rotary_dim / 2]: 0 for the pairs that keep their frequency, 1 for those that are slowed down."""
    first, last = (
        rotary_dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        for turns in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    width = last - first or 0.001  # where both fall on one pair, a step
    return ((torch.arange(rotary_dim // 2, dtype=torch.float64) - first) / width).clamp_(0, 1)


def _check_config(rope: RopeConfig) -> None:
    if not rope.theta > 0:
        raise InvalidArgumentError("rope_theta", rope.theta, "a number > 0")
    if rope.scaling not in ("none", "linear", "llama3", "yarn"):
        raise InvalidArgumentError("rope.scaling", rope.scaling, "one of none, linear, llama3, yarn")
    if rope.scaling != "none" and not rope.factor > 0:
        raise InvalidArgumentError("rope_scale", rope.factor, "a number > 0")
    if rope.scaling == "llama3" and not rope.high_freq_factor > rope.low_freq_factor:
        expected = f"more than low_freq_factor={rope.low_freq_factor}"
        raise InvalidArgumentError("high_freq_factor", rope.high_freq_factor, expected)
    if rope.scaling == "yarn":
        _check_yarn(rope)


def _check_yarn(rope: RopeConfig) -> None:
    if not rope.theta > 1:
        raise InvalidArgumentError("rope_theta", rope.theta, "a number > 1 for yarn")
    if not rope.beta_fast > rope.beta_slow > 0:
        expected = "beta_fast > beta_slow > 0"
        raise InvalidArgumentError("beta_fast, beta_slow", (rope.beta_fast, rope.beta_slow), expected)
    if not rope.original_max_position > 0:
        raise InvalidArgumentError("original_max_position", rope.original_max_position, "an integer >= 1")
    if rope.attention_factor is not None and not rope.attention_factor > 0:
        raise InvalidArgumentError("attention_factor", rope.attention_factor, "a number > 0, or None")
