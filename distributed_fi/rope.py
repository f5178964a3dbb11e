# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding operators."""

from __future__ import annotations

from distributed_fi.kernels.rope.cos_sin_cache import (
    apply_rope_with_cos_sin_cache,
    apply_rope_with_cos_sin_cache_inplace,
)
from distributed_fi.kernels.rope.frequencies import make_cos_sin_cache, rope_frequencies, yarn_mscale
from distributed_fi.kernels.rope.rope import (
    apply_llama31_rope_pos_ids,
    apply_llama31_rope_pos_ids_inplace,
    apply_rope_pos_ids,
    apply_rope_pos_ids_inplace,
)
from distributed_fi.kernels.rope.segments import (
    apply_llama31_rope,
    apply_llama31_rope_inplace,
    apply_rope,
    apply_rope_inplace,
)

__all__ = [
    "apply_llama31_rope",
    "apply_llama31_rope_inplace",
    "apply_llama31_rope_pos_ids",
    "apply_llama31_rope_pos_ids_inplace",
    "apply_rope",
    "apply_rope_inplace",
    "apply_rope_pos_ids",
    "apply_rope_pos_ids_inplace",
    "apply_rope_with_cos_sin_cache",
    "apply_rope_with_cos_sin_cache_inplace",
    "make_cos_sin_cache",
    "rope_frequencies",
    "yarn_mscale",
]
