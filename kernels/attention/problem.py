# SPDX-License-Identifier: Apache-2.0
"""What one attention plan computes: heads, dtypes and variant, apart from lengths and pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from distributed_fi.config import check_range
from distributed_fi.errors import InvalidArgumentError, UnsupportedError


class Variant(TypedDict, total=False):
    """The keyword arguments of a plan that choose the attention variant; `AttentionProblem` says what each means."""

    causal: bool
    sm_scale: float | None
    logits_soft_cap: float | None
    window_left: int


@dataclass(frozen=True, kw_only=True)
class AttentionProblem:
    """Shape and variant of an attention.

    With q_pos = kv_len - qo_len + qo_idx, key kv_idx is visible to query qo_idx iff
    (not causal or kv_idx <= q_pos) and (window_left < 0 or kv_idx >= q_pos - window_left).

    Args:
        causal: aligned to the bottom right: the last query sees every key.
        sm_scale: multiplies q @ k; None is 1 / sqrt(head_dim_qk).
        logits_soft_cap: c > 0 replaces each scaled logit x by c * tanh(x / c); 0 or None is off.
        window_left: keys visible to the left of the query's own position; -1 is off.
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim_qk: int
    head_dim_vo: int
    dtype_q: torch.dtype
    dtype_kv: torch.dtype
    dtype_o: torch.dtype
    kv_layout: str = "NHD"
    causal: bool = False
    sm_scale: float | None = None
    logits_soft_cap: float | None = None
    window_left: int = -1

    def __post_init__(self) -> None:
        for name in ("num_qo_heads", "num_kv_heads", "head_dim_qk", "head_dim_vo"):
            size = getattr(self, name)
            check_range(name, size, "an integer >= 1", is_int(size) and size >= 1)
        grouped = self.num_qo_heads % self.num_kv_heads == 0
        check_range("num_qo_heads", self.num_qo_heads, f"a multiple of num_kv_heads={self.num_kv_heads}", grouped)
        cap, window = self.logits_soft_cap, self.window_left
        check_range("sm_scale", self.sm_scale, "a finite number or None", _is_finite(self.sm_scale))
        check_range("logits_soft_cap", cap, "a finite number >= 0 or None", _is_finite(cap) and (cap or 0) >= 0)
        check_range("window_left", window, "an integer >= -1", is_int(window) and window >= -1)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_qo_heads // self.num_kv_heads

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim_qk) if self.sm_scale is None else float(self.sm_scale)


def to_dtype(name: str, value: torch.dtype | str) -> torch.dtype:
    """A torch dtype given as itself or by name, such as "float16"."""
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype):
        raise InvalidArgumentError(name, value, "a torch.dtype or its name")
    return dtype


def to_device(name: str, value: torch.device | str) -> torch.device:
    """A torch device given as itself or by name, such as "cuda:0"."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        raise InvalidArgumentError(name, value, "a torch.device or its name, such as cpu or cuda:0") from None


def check_variant(variant: dict[str, object]) -> None:
    """Raise UnsupportedError for a keyword that no attention variant knows."""
    for name, value in variant.items():
        if name not in Variant.__annotations__:
            raise UnsupportedError(name, value, f"no such argument; variants are {', '.join(Variant.__annotations__)}")


def is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_finite(value: float | None) -> bool:
    return value is None or (isinstance(value, (int, float, np.number)) and math.isfinite(value))
