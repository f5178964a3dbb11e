# SPDX-License-Identifier: Apache-2.0
"""Matrix products."""

from __future__ import annotations

from distributed_fi.kernels.gemm.gemm_nt import gemm_nt

__all__ = ["gemm_nt"]
