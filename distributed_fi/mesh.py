# SPDX-License-Identifier: Apache-2.0
"""The parallel axes and where each rank stands on them."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_fi.errors import InvalidArgumentError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class MeshCoord:
    """Where one rank stands: its index on each axis of the mesh."""

    rank: int
    dp_rank: int
    tp_rank: int


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the parallel axes.

    Attention runs on dp x tp: `dp` replicas serve different requests, each split over `tp` ranks.
    rank = dp_rank * tp + tp_rank, so the ranks of one tensor-parallel group are neighbours.
    `ep` (experts) and `dcp` (KV sequence inside a tp group) re-use the same ranks.

    Raises:
        InvalidArgumentError: an axis is not a positive integer.
        UnsupportedError: ep or dcp is not 1, until the models that use them are served.
    """

    dp: int = 1
    tp: int = 1
    ep: int = 1
    dcp: int = 1

    def __post_init__(self) -> None:
        for axis in ("dp", "tp", "ep", "dcp"):
            size = getattr(self, axis)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise InvalidArgumentError(axis, size, "an integer >= 1")
        for axis in ("ep", "dcp"):
            if getattr(self, axis) != 1:
                raise UnsupportedError(axis, getattr(self, axis), "1 (no served model uses this axis yet)")

    @property
    def world_size(self) -> int:
        return self.dp * self.tp

    def coord(self, rank: int) -> MeshCoord:
        if not 0 <= rank < self.world_size:
            raise InvalidArgumentError("rank", rank, f"0 <= rank < {self.world_size}")
        return MeshCoord(rank=rank, dp_rank=rank // self.tp, tp_rank=rank % self.tp)

    def tp_groups(self) -> list[list[int]]:
        """Ranks of each tensor-parallel group, one per dp replica."""
        return [list(range(first, first + self.tp)) for first in range(0, self.world_size, self.tp)]
