# SPDX-License-Identifier: Apache-2.0
"""Which slices of a checkpoint make a parameter of one rank, and the loop that loads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from distributed_fi.errors import CorruptWeightsError, UnsupportedError
from distributed_fi.plan.sharding import Span

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class WeightSlice:
    """A contiguous part of one checkpoint tensor.

    `shape` is the whole tensor's; the part is `tensor.narrow(dim, span.start, len(span))`.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    span: Span

    @classmethod
    def whole(cls, name: str, shape: tuple[int, ...]) -> WeightSlice:
        return cls(name, shape, 0, Span(0, shape[0]))

    @property
    def sliced_shape(self) -> tuple[int, ...]:
        return tuple(len(self.span) if d == self.dim else size for d, size in enumerate(self.shape))

    def span_of(self, dim: int) -> Span:
        """The range of indices this slice takes along `dim`."""
        return self.span if dim == self.dim else Span(0, self.shape[dim])


@dataclass(frozen=True)
class WeightSpec:
    """One parameter of a rank: its slices stacked along dim 0."""

    name: str
    slices: tuple[WeightSlice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.slices[0].sliced_shape
        return (sum(piece.sliced_shape[0] for piece in self.slices), *first[1:])


class WeightSource(Protocol):
    """What hands out slices of a checkpoint's tensors."""

    def read(self, piece: WeightSlice, out: torch.Tensor) -> None:
        """Fill `out` [piece.sliced_shape] with the slice, converted to its dtype, on its device."""
        ...


def load_weights(
    source: WeightSource,
    specs: Sequence[WeightSpec],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    on_progress: OnProgress | None = None,
) -> dict[str, torch.Tensor]:
    """Read every parameter of a rank.

    Args:
        source: an open checkpoint.
        specs: what to read, from `weight_specs`.
        dtype: of the parameters; values are converted once, from the checkpoint's.
        device: where they live.
        on_progress: called with (bytes loaded, bytes in all) of the parameters after each slice.
    Returns:
        One contiguous tensor of `spec.shape` per spec, by its name.
    Raises:
        CorruptWeightsError: a tensor cannot be read.
    """
    total = sum(math.prod(spec.shape) for spec in specs) * dtype.itemsize
    done = 0
    weights = {}
    for spec in specs:
        weights[spec.name] = torch.empty(spec.shape, dtype=dtype, device=device)
        parts = weights[spec.name].split([piece.sliced_shape[0] for piece in spec.slices])
        for piece, part in zip(spec.slices, parts, strict=True):
            source.read(piece, part)
            done += part.numel() * dtype.itemsize
            if on_progress is not None:
                on_progress(done, total)
    return weights


def check_tensors(
    path: str, expected: Iterable[tuple[str, tuple[int, ...]]], present: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise unless a checkpoint holds exactly the model's tensors, each with the shape its config says.

    Args:
        path: the file or folder, for the message.
        expected: name and shape of each tensor of the model; taken one by one, so that a garbled
            number of layers ends at the first one that is missing.
        present: shape of each tensor of the checkpoint, without those that are known to be no weights.
    Raises:
        CorruptWeightsError: a tensor is missing or has another shape.
        UnsupportedError: a tensor is there that the model would silently leave out, such as a bias.
    """
    unknown = set(present)
    for name, shape in expected:
        if name not in present:
            raise CorruptWeightsError(path, f"lacks the tensor {name}")
        if present[name] != shape:
            raise CorruptWeightsError(path, f"{name} is {list(present[name])}, its config says {list(shape)}")
        unknown.discard(name)
    if unknown:
        raise UnsupportedError("weights", min(unknown), "only the tensors of its architecture")
