# SPDX-License-Identifier: Apache-2.0
"""Activation operators."""

from __future__ import annotations

from distributed_fi.kernels.activation.gelu_and_mul import gelu_and_mul, gelu_tanh_and_mul
from distributed_fi.kernels.activation.silu_and_mul import silu_and_mul

__all__ = ["gelu_and_mul", "gelu_tanh_and_mul", "silu_and_mul"]
