# SPDX-License-Identifier: Apache-2.0
"""The compiled kernel of the page append: what it is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from distributed_fi.kernels.dispatch.compiled import CompiledOp
from distributed_fi.kernels.jit.spec import KernelSpec, SassExpectation

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def heads_objection(x: Tensor) -> str | None:
    """None for tokens or a cache of float32, bfloat16 or float16 with the head dimension contiguous."""
    if x.dtype not in FLOATS:
        return f"dtype {x.dtype}"
    if x.dim() and x.stride(-1) != 1:
        return f"strides {x.stride()}: the last dimension is not contiguous"
    return None


SPEC = KernelSpec(
    name="kv_cache/append",
    sources=("kv_cache/append.cu", "kv_cache/append.cpp"),
    expected=SassExpectation(opcodes=("LDG.E.128", "STG.E.128"), forbidden=("LDL", "STL"), max_registers=48),
)
APPEND_WITH_SLOTS = CompiledOp("append_with_slots", SPEC, heads_objection)
