# SPDX-License-Identifier: Apache-2.0
"""The compiled kernel of RMSNorm and of its fused form: what it is made of."""

from __future__ import annotations

from distributed_fi.kernels.dispatch.compiled import CompiledOp, rows_objection
from distributed_fi.kernels.jit.spec import KernelSpec, SassExpectation

SPEC = KernelSpec(
    name="norm/rmsnorm",
    sources=("norm/rmsnorm.cu", "norm/rmsnorm.cpp"),
    expected=SassExpectation(opcodes=("LDG.E.NA.128", "STG.E.128"), forbidden=("LDL", "STL"), max_registers=56),
)
RMSNORM = CompiledOp("rmsnorm", SPEC, rows_objection)
FUSED_ADD_RMSNORM = CompiledOp("fused_add_rmsnorm", SPEC, rows_objection)
