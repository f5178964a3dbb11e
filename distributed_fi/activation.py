# SPDX-License-Identifier: Apache-2.0
"""Activation operators."""

from __future__ import annotations

from distributed_fi.kernels.activation.silu_and_mul import silu_and_mul

__all__ = ["silu_and_mul"]
