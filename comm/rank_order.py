# SPDX-License-Identifier: Apache-2.0
"""Sums whose result does not depend on who computes them: in rank order, in a wide type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_NARROW = (torch.bfloat16, torch.float16)


def sum_in_rank_order(parts: Sequence[Tensor], out: Tensor) -> None:
    """Add the ranks' contributions.

    out = ((parts[0] + parts[1]) + parts[2]) + ...

    Args:
        parts: one [numel] per rank, in rank order, of one dtype; at least two.
        out: [numel], the same dtype; may be one of `parts`, else shares no memory with them.
    Notes: bfloat16 and float16 accumulate in float32 and are rounded once; the others in their own dtype
        (integers wrap). An element's sum does not depend on where the tensor is cut.
    """
    first, second, *rest = parts
    if out.dtype in _NARROW:
        total = first.float().add_(second)
        for part in rest:
            total.add_(part)
        out.copy_(total)
        return
    # With out among the later parts, writing out early would destroy a contribution.
    is_safe = all(out.data_ptr() != part.data_ptr() for part in rest)
    total = torch.add(first, second, out=out) if is_safe else first + second
    for part in rest:
        total.add_(part)
    if total is not out:
        out.copy_(total)
