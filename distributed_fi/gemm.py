# SPDX-License-Identifier: Apache-2.0
"""Matrix products."""

from __future__ import annotations

from distributed_fi.kernels.gemm.bmm import bmm
from distributed_fi.kernels.gemm.gemm_nt import gemm_nt
from distributed_fi.kernels.gemm.grouped_gemm import grouped_gemm_nt
from distributed_fi.kernels.gemm.segment_gemm import segment_gemm

__all__ = ["bmm", "gemm_nt", "grouped_gemm_nt", "segment_gemm"]
