# SPDX-License-Identifier: Apache-2.0
"""Parameters of sampling: one value for all rows, or one per row; checked where that needs no synchronisation."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.check import Dims, check_tensor
from distributed_fi.kernels.upload import upload

# [batch]: a numpy array where the host knows the values, a tensor where only the device does.
Rows = NDArray[Any] | Tensor
# What callers pass.
Param = float | int | Tensor

INTS = (torch.int32, torch.int64)
NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, *INTS)


class Rule(NamedTuple):
    """What a parameter must be; the wording is that of SamplingParams."""

    expected: str
    is_int: bool
    allows: Callable[[Any], bool]


RULES = {
    "temperature": Rule("a finite number >= 0", False, lambda v: 0 <= v < math.inf),
    "top_k": Rule("an integer in [0, 2^31) (0 keeps all)", True, lambda v: 0 <= v < 2**31),
    "top_p": Rule("a number in (0, 1]", False, lambda v: 0 < v <= 1),
    "min_p": Rule("a number in [0, 1]", False, lambda v: 0 <= v <= 1),
    "seed": Rule("an integer in [0, 2^63)", True, lambda v: 0 <= v < 2**63),
    "position": Rule("an integer in [0, 2^63)", True, lambda v: 0 <= v < 2**63),
}


def check_number(name: str, value: object) -> None:
    """Raise InvalidArgumentError unless `value` is a number this parameter may have."""
    rule = RULES[name]
    kind = numbers.Integral if rule.is_int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind) or not rule.allows(value):
        raise InvalidArgumentError(name, value, rule.expected)


def to_rows(name: str, value: Param, batch: int) -> Rows:
    """The parameter's value in each row, float64 or int64.

    Args:
        name: a key of RULES.
        value: a number, or [batch]: integers of 32 or 64 bits for an integer parameter, else any of NUMBERS.
        batch: number of rows.
    Raises:
        InvalidArgumentError: a value out of range, with its row; a wrong shape or dtype. A tensor on another
            device than the CPU is not looked into.
    """
    rule = RULES[name]
    dtype = np.int64 if rule.is_int else np.float64
    if not isinstance(value, Tensor):
        check_number(name, value)
        return np.full(batch, value, dtype=dtype)
    dtypes = INTS if rule.is_int else NUMBERS
    if value.shape != (batch,) or value.dtype not in dtypes:
        check_tensor(name, value, ("batch",), Dims(batch=batch), dtype=dtypes)
    if value.device.type != "cpu":
        return value.to(torch.int64 if rule.is_int else torch.float64)
    rows = value.tolist()  # for the few rows of a batch, Python's comparisons are quicker than numpy's calls
    for row, entry in enumerate(rows):
        if not rule.allows(entry):
            raise InvalidArgumentError(name, f"{entry} in row {row}", rule.expected)
    return np.array(rows, dtype=dtype)


def to_tensor(rows: Rows, device: torch.device) -> Tensor:
    """[batch] on `device`."""
    return rows.to(device, non_blocking=True) if isinstance(rows, Tensor) else upload(rows, device)
