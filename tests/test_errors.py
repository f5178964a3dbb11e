# SPDX-License-Identifier: Apache-2.0
"""Every error of the project crosses process borders as itself, and says all it knows in one line."""

from __future__ import annotations

import pickle

import pytest

from distributed_fi import errors
from distributed_fi.workers.ring.errors import RingAbortedError

EXAMPLES = [
    (errors.DfiError("broken"), "broken", 1),
    (errors.InvalidArgumentError("top_p", 1.5, "a number in (0, 1]"), "top_p: expected a number in (0, 1], got 1.5", 2),
    (errors.UnsupportedError("ep", 2, "1"), "ep: expected 1, got 2", 2),
    (errors.NotFoundError("model", "x", "a folder"), "model: expected a folder, got x", 2),
    (errors.CorruptWeightsError("a.gguf", "is cut off"), "a.gguf: is cut off", 2),
    (errors.ResourceError("GPUs", "4", "2"), "GPUs: 4 needed, 2 available", 2),
    (errors.UnreachableError("Ray", "h:1", "refused"), "Ray at h:1: refused", 2),
    (errors.CompilerNotFoundError("nvcc", "PATH", "install it"), "nvcc: not found in PATH; install it", 2),
    (errors.KernelBuildError("k", "k.cu", "no ;", "a.log"), "kernel k: k.cu: no ; (log: a.log)", 1),
    (errors.CollectiveError(1, "all_reduce", 7, "gone"), "rank 1: all_reduce (collective 7): gone", 1),
    (errors.CollectiveTimeoutError(0, "barrier", 3, "late"), "rank 0: barrier (collective 3): late", 1),
    (errors.PlanError("plan magic"), "plan magic", 1),
    (errors.RankError(2, "ValueError: x"), "rank 2: ValueError: x", 1),
    (errors.EngineClosedError("the engine is closed"), "the engine is closed", 1),
    (errors.RankDiedError(2, "gone"), "rank 2: gone", 1),
    (errors.StepTimeoutError(2, "silent"), "rank 2: silent", 1),
    (RingAbortedError(1, "gave up"), "step ring of epoch 1 ended: gave up", 1),
]


@pytest.mark.parametrize(("error", "text", "exit_code"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_error_survives_pickling(error: errors.DfiError, text: str, exit_code: int) -> None:
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error) == text
    assert copy.exit_code == exit_code
    assert copy.__notes__ == ["a note"]


def test_every_error_class_has_an_example() -> None:
    defined = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.DfiError)}
    assert defined <= {type(error) for error, _, _ in EXAMPLES}


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(str(errors.InvalidArgumentError("prompt", "x" * 10_000, "less"))) < 300
