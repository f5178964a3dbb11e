# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens through a chain of processors that fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.sampling.filters import renormalized
from distributed_fi.kernels.sampling.processors import (
    LogitsProcessor,
    MinP,
    Sample,
    Softmax,
    Temperature,
    TensorType,
    TopK,
    TopP,
)
from distributed_fi.kernels.sampling.row_params import RULES, to_rows
from distributed_fi.kernels.sampling.sample import check_source, greedy
from distributed_fi.kernels.sampling.sampling_ops import check_rows

KINDS = (Temperature, Softmax, TopK, TopP, MinP, Sample)


class LogitsPipe:
    """A chain of processors, checked when it is built, applied to a batch of logits or probabilities.

        pipe = LogitsPipe([Temperature(), Softmax(), TopP(), Sample()])
        tokens = pipe(logits, temperature=0.7, top_p=0.9)

    Temperature takes and gives logits; Softmax turns logits into probabilities; TopK takes either; TopP and MinP
    take probabilities; Sample takes either and ends the chain with token ids.

    Args:
        processors: at least one.
        input_type: what the first processor gets, TensorType.LOGITS or .PROBS (or "logits", "probs"). Needed only
            where the chain would fit both.
    Raises:
        InvalidArgumentError: no processors, or one that does not fit what comes before it.
    """

    def __init__(self, processors: Sequence[LogitsProcessor], *, input_type: TensorType | str | None = None) -> None:
        self.processors = tuple(processors)
        if not self.processors:
            raise InvalidArgumentError("processors", [], "at least one processor")
        for i, processor in enumerate(self.processors):
            if not isinstance(processor, LogitsProcessor):
                known = ", ".join(f"{kind.__name__}()" for kind in KINDS)
                raise InvalidArgumentError(f"processors[{i}]", processor, f"one of {known}")
        self.input_type = _input_type(self.processors, input_type)
        self._kinds = _chain(self.processors, self.input_type)

    def __repr__(self) -> str:
        return f"LogitsPipe([{', '.join(map(repr, self.processors))}])"

    def __call__(self, x: Tensor, **params: Any) -> Tensor:
        """Run the chain.

        Args:
            x: [batch, vocab_size], float32, bfloat16 or float16, of the pipe's input type.
            params: by name, each a number for all rows or a tensor [batch]: `temperature`, `top_k`, `top_p`, `min_p`
                as the processors need them (a value here replaces the constructor's); and for Sample, all optional,
                `seed` with `position`, or `generator`. See SamplingParams for their meaning and range. Tensors on
                the CPU are checked; those on another device are not looked at, and cost full sorts.
        Returns:
            [batch] int32 tokens if the pipe ends with Sample, -1 for a row that has a NaN or nothing to draw from;
            else [batch, vocab_size] logits or (normalised) probabilities.
        Raises:
            InvalidArgumentError: a missing or unknown parameter, or one whose value, shape or dtype does not fit.
        Notes: a row's token depends on its own logits, parameters, seed and position only. Rows of temperature 0 get
            their largest logit (equals: the smallest id) whatever the seed; if all are known to be, nothing else is
            computed. Filters touch only the rows they are set for. Current stream. The host does not wait for the
            device: parameters on the CPU go there through pinned memory (whose allocation, in the first calls, may).
        """
        batch = check_rows(str(self.input_type), x)
        self._check_names(params)
        given = [self._given(processor, params, batch) for processor in self.processors]
        if self._is_greedy(given):
            return greedy(x)
        start = x
        for processor, kind, values in zip(self.processors, self._kinds, given, strict=False):
            x = processor.apply(x, kind, values)
        if self._kinds[-1] is TensorType.PROBS:
            return renormalized(x.float())
        return x.clone() if x is start else x

    def _check_names(self, params: dict[str, Any]) -> None:
        names = [name for p in self.processors for name in (*p.required, *p.optional)]
        for name, value in params.items():
            if name not in names:
                takes = ", ".join(dict.fromkeys(names)) or "none"
                raise InvalidArgumentError(name, value, f"only the parameters of this pipe ({takes})")

    def _given(self, processor: LogitsProcessor, params: dict[str, Any], batch: int) -> dict[str, Any]:
        """The processor's parameters by name, numeric ones checked, one value per row."""
        given: dict[str, Any] = {}
        for name in (*processor.required, *processor.optional):
            value = params.get(name, processor.preset.get(name))
            if value is not None:
                given[name] = to_rows(name, value, batch) if name in RULES else value
            elif name in processor.required:
                wanted = f"{RULES[name].expected}, or a tensor [batch], for {type(processor).__name__}()"
                raise InvalidArgumentError(name, None, wanted)
        if isinstance(processor, Sample):
            check_source(**given)
        return given

    def _is_greedy(self, given: list[dict[str, Any]]) -> bool:
        """Whether every row's token is known to be that of its largest logit; the filters always leave that one."""
        if self._kinds[-1] is not TensorType.INDICES:
            return False
        rows = [values["temperature"] for values in given if "temperature" in values]
        return any(isinstance(temperature, np.ndarray) and not temperature.any() for temperature in rows)


def _input_type(processors: Sequence[LogitsProcessor], asked: TensorType | str | None) -> TensorType:
    accepted = [kind for kind in (TensorType.LOGITS, TensorType.PROBS) if kind in processors[0].gives]
    if asked is not None:
        named = {**{kind.value: kind for kind in accepted}, **{kind: kind for kind in accepted}}
        if asked not in named:
            wanted = " or ".join(kind.value for kind in accepted)
            raise InvalidArgumentError(
                "input_type", str(asked), f"{wanted}, which {type(processors[0]).__name__} takes"
            )
        return named[asked]
    misfits = {kind: _first_misfit(processors, kind) for kind in accepted}
    fitting = [kind for kind, misfit in misfits.items() if misfit is None]
    if len(fitting) == 2:
        expected = "logits or probs, since the processors take either"
        raise InvalidArgumentError("input_type", None, expected)
    # If neither fits, the error to show is that of the reading that gets furthest.
    return fitting[0] if fitting else max(accepted, key=lambda kind: (misfits[kind] or (0,))[0])


def _chain(processors: Sequence[LogitsProcessor], kind: TensorType) -> list[TensorType]:
    """Type before each processor, and after the last."""
    misfit = _first_misfit(processors, kind)
    if misfit is not None:
        i, found = misfit
        name, before = type(processors[i]).__name__, type(processors[i - 1]).__name__
        takes = " or ".join(str(kind) for kind in processors[i].gives)
        follows = ", ".join(k.__name__ for k in KINDS if set(k.gives.values()) & set(processors[i].gives))
        expected = f"{name} after a processor that gives {takes} ({follows})"
        raise InvalidArgumentError(f"processors[{i}]", f"{name} after {before}, which gives {found}", expected)
    kinds = [kind]
    for processor in processors:
        kinds.append(processor.gives[kinds[-1]])
    return kinds


def _first_misfit(processors: Sequence[LogitsProcessor], kind: TensorType) -> tuple[int, TensorType] | None:
    """Index of the first processor that does not take what it gets, and what that is."""
    for i, processor in enumerate(processors):
        if kind not in processor.gives:
            return i, kind
        kind = processor.gives[kind]
    return None
