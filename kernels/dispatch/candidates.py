# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operator serves a problem, and why the others do not.

A family lists its candidates when it is imported, preferred first, and asks for one when it plans:

    register(Candidate("batch_attention", "torch", TorchAttention, why_not))
    candidate = choose("batch_attention", problem, backend="auto")
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed_fi.errors import InvalidArgumentError, UnsupportedError

_logger = logging.getLogger(__name__)
_candidates: dict[str, list[Candidate]] = {}


@dataclass(frozen=True)
class Candidate:
    """One implementation of `op`: `make` is it or builds it; `why_not` says why it can't serve a problem, or None."""

    op: str
    name: str
    make: Callable[..., Any]
    why_not: Callable[[Any], str | None]


@dataclass(frozen=True)
class Explanation:
    """What "auto" takes for a problem (None: nothing serves it) and each candidate's objection (None: none)."""

    op: str
    chosen: str | None
    reasons: dict[str, str | None]


def register(candidate: Candidate) -> None:
    """Append a candidate to its operator's list; earlier ones are preferred."""
    if candidate.name == "auto" or candidate.name in backend_names(candidate.op):
        raise InvalidArgumentError(
            "name", candidate.name, f'a backend of {candidate.op} not listed yet, and not "auto"'
        )
    _candidates.setdefault(candidate.op, []).append(candidate)


def backend_names(op: str) -> tuple[str, ...]:
    """The backends of an operator, preferred first."""
    return tuple(c.name for c in _candidates.get(op, ()))


def check_backend(op: str, backend: str) -> None:
    """Raise UnsupportedError unless `backend` is "auto" or a backend of the operator."""
    if backend not in (known := ("auto", *backend_names(op))):
        raise UnsupportedError("backend", backend, f"one of {', '.join(known)}")


def explain(op: str, problem: object) -> Explanation:
    """Every candidate's objection to a problem, and the one that "auto" takes."""
    if op not in _candidates:
        raise InvalidArgumentError("op", op, f"one of {', '.join(sorted(_candidates))}")
    reasons = {c.name: c.why_not(problem) for c in _candidates[op]}
    return Explanation(op, next((name for name, reason in reasons.items() if reason is None), None), reasons)


def choose(op: str, problem: object, *, backend: str = "auto") -> Candidate:
    """The candidate that serves the problem: the first usable one for "auto", else the named one.

    Raises:
        UnsupportedError: the named backend does not exist or cannot serve the problem, or none can;
            the message lists the usable ones and the objections of the others.
    """
    found = explain(op, problem)
    name = found.chosen if backend == "auto" else backend
    if name is None or found.reasons.get(name, "unknown") is not None:
        raise UnsupportedError("backend", backend, _usable(found))
    if backend == "auto":
        _log_once(op, name, "; ".join(f"{n}: {why}" for n, why in found.reasons.items() if why))
    return next(c for c in _candidates[op] if c.name == name)


def _usable(found: Explanation) -> str:
    usable = [name for name, reason in found.reasons.items() if reason is None]
    objections = "; ".join(f"{name}: {reason}" for name, reason in found.reasons.items() if reason)
    wanted = f"one of auto, {', '.join(usable)}" if usable else "a problem that some backend serves"
    return f"{wanted} ({objections})" if objections else wanted


@functools.cache
def _log_once(op: str, name: str, objections: str) -> None:
    if objections:
        _logger.info("%s: backend %s; not used: %s", op, name, objections)
