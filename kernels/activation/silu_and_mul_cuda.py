# SPDX-License-Identifier: Apache-2.0
"""The compiled kernel of SiLU-and-mul: what it is made of."""

from __future__ import annotations

from distributed_fi.kernels.dispatch.compiled import CompiledOp, rows_objection
from distributed_fi.kernels.jit.spec import KernelSpec, SassExpectation

SPEC = KernelSpec(
    name="activation/silu_and_mul",
    sources=("activation/silu_and_mul.cu", "activation/silu_and_mul.cpp"),
    expected=SassExpectation(opcodes=("LDG.E.NA.128", "STG.E.128"), forbidden=("LDL", "STL"), max_registers=48),
)
SILU_AND_MUL = CompiledOp("silu_and_mul", SPEC, rows_objection)
