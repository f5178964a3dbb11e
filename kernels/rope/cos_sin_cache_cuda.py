# SPDX-License-Identifier: Apache-2.0
"""The compiled kernel of the rotary embedding from a table: what it is made of."""

from __future__ import annotations

from torch import Tensor

from distributed_fi.kernels.dispatch.compiled import CompiledOp
from distributed_fi.kernels.jit.spec import KernelSpec, SassExpectation


def heads_objection(x: Tensor) -> str | None:
    """None for queries or keys whose last dimension is contiguous."""
    return None if x.dim() and x.stride(-1) == 1 else f"strides {x.stride()}: the last dimension is not contiguous"


SPEC = KernelSpec(
    name="rope/cos_sin_cache",
    sources=("rope/cos_sin_cache.cu", "rope/cos_sin_cache.cpp"),
    expected=SassExpectation(opcodes=("LDG.E.128", "STG.E.128"), forbidden=("LDL", "STL"), max_registers=64),
)
ROPE_WITH_COS_SIN_CACHE = CompiledOp("apply_rope_with_cos_sin_cache_inplace", SPEC, heads_objection)
