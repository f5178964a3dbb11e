# SPDX-License-Identifier: Apache-2.0
"""Quantisation operators: eight- and four-bit numbers with their scales, and packed bits."""

from __future__ import annotations

from distributed_fi.kernels.quant.fp8 import fp8_dequantize, fp8_quantize
from distributed_fi.kernels.quant.int8 import int8_dequantize, int8_quantize
from distributed_fi.kernels.quant.mxfp4 import mxfp4_dequantize, mxfp4_quantize
from distributed_fi.kernels.quant.nvfp4 import nvfp4_dequantize, nvfp4_quantize
from distributed_fi.kernels.quant.packbits import packbits, segment_packbits

__all__ = [
    "fp8_dequantize",
    "fp8_quantize",
    "int8_dequantize",
    "int8_quantize",
    "mxfp4_dequantize",
    "mxfp4_quantize",
    "nvfp4_dequantize",
    "nvfp4_quantize",
    "packbits",
    "segment_packbits",
]
