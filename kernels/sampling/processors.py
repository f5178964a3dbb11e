# SPDX-License-Identifier: Apache-2.0
"""The steps a LogitsPipe is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from distributed_fi.kernels.sampling.filters import keep_min_p, keep_top_k, keep_top_p
from distributed_fi.kernels.sampling.row_params import Param, check_number
from distributed_fi.kernels.sampling.sample import draw, row_uniform, scaled


class TensorType(Enum):
    """What a tensor in the pipe means."""

    LOGITS = "logits"
    PROBS = "probs"
    INDICES = "token ids"

    def __str__(self) -> str:
        return self.value


LOGITS, PROBS, INDICES = TensorType


class LogitsProcessor(ABC):
    """One step: what it takes, what it makes of it, and the parameters it reads.

    `gives` maps each type it takes to the type it returns. `required` parameters must come with the call or the
    constructor, `optional` ones may.
    """

    gives: ClassVar[dict[TensorType, TensorType]]
    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.preset: dict[str, Param] = {}

    def _set(self, name: str, value: Param | None) -> None:
        self.preset = {} if value is None else {name: value}
        if value is not None and not isinstance(value, Tensor):
            check_number(name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in self.preset.items())})"

    @abstractmethod
    def apply(self, x: Tensor, kind: TensorType, given: dict[str, Any]) -> Tensor:
        """The step.

        Args:
            x: [batch, vocab_size], of type `kind`; never written to.
            given: this processor's parameters by name, numeric ones as checked Rows.
        """


class Temperature(LogitsProcessor):
    """Divides logits by `temperature` (>= 0); 0 leaves only the largest logit of the row, whatever the seed."""

    gives: ClassVar = {LOGITS: LOGITS}
    required = ("temperature",)

    def __init__(self, temperature: Param | None = None) -> None:
        self._set("temperature", temperature)

    def apply(self, x: Tensor, kind: TensorType, given: dict[str, Any]) -> Tensor:
        return scaled(x, given["temperature"])


class Softmax(LogitsProcessor):
    """Turns logits into probabilities."""

    gives: ClassVar = {LOGITS: PROBS}

    def apply(self, x: Tensor, kind: TensorType, given: dict[str, Any]) -> Tensor:
        return x.float().softmax(-1)


class TopK(LogitsProcessor):
    """Keeps the `top_k` largest (0: all; equals: smallest ids); logits elsewhere become -inf, probabilities 0."""

    gives: ClassVar = {LOGITS: LOGITS, PROBS: PROBS}
    required = ("top_k",)

    def __init__(self, top_k: Param | None = None) -> None:
        self._set("top_k", top_k)

    def apply(self, x: Tensor, kind: TensorType, given: dict[str, Any]) -> Tensor:
        return keep_top_k(x, given["top_k"], -torch.inf if kind is LOGITS else 0.0)


class TopP(LogitsProcessor):
    """Keeps the smallest head of the probabilities that reaches `top_p`, in (0, 1], of their sum."""

    gives: ClassVar = {PROBS: PROBS}
    required = ("top_p",)

    def __init__(self, top_p: Param | None = None) -> None:
        self._set("top_p", top_p)

    def apply(self, x: Tensor, kind: TensorType, given: dict[str, Any]) -> Tensor:
        return keep_top_p(x, given["top_p"])


class MinP(LogitsProcessor):
    """Keeps the probabilities that are at least `min_p`, in [0, 1], times the largest."""

    gives: ClassVar = {PROBS: PROBS}
    required = ("min_p",)

    def __init__(self, min_p: Param | None = None) -> None:
        self._set("min_p", min_p)

    def apply(self, x: Tensor, kind: TensorType, given: dict[str, Any]) -> Tensor:
        return keep_min_p(x, given["min_p"])


class Sample(LogitsProcessor):
    """Draws the token, by `seed` and `position`, or from `generator`: int32, -1 for a row that has none to draw.

    `deterministic` is there for callers written for FlashInfer: sampling here is deterministic either way.
    """

    gives: ClassVar = {LOGITS: INDICES, PROBS: INDICES}
    optional = ("seed", "position", "generator")

    def __init__(self, deterministic: bool = True) -> None:
        super().__init__()

    def apply(self, x: Tensor, kind: TensorType, given: dict[str, Any]) -> Tensor:
        probs = x.float().softmax(-1) if kind is LOGITS else x.float()
        return draw(probs, row_uniform(x.shape[0], x.device, **given))
