# SPDX-License-Identifier: Apache-2.0
"""Normalisation operators."""

from __future__ import annotations

from distributed_fi.kernels.norm.gemma_rmsnorm import gemma_fused_add_rmsnorm, gemma_rmsnorm
from distributed_fi.kernels.norm.layernorm import layernorm
from distributed_fi.kernels.norm.rmsnorm import fused_add_rmsnorm, rmsnorm

__all__ = ["fused_add_rmsnorm", "gemma_fused_add_rmsnorm", "gemma_rmsnorm", "layernorm", "rmsnorm"]
