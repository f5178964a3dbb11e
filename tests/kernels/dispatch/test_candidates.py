# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest

from distributed_fi.errors import InvalidArgumentError, UnsupportedError
from distributed_fi.kernels.dispatch import candidates
from distributed_fi.kernels.dispatch.candidates import (
    Candidate,
    backend_names,
    check_backend,
    choose,
    explain,
    register,
)


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> str:
    """An operator that squares: "fast" serves even numbers only, "plain" serves all below 100."""
    monkeypatch.setattr(candidates, "_candidates", {})
    register(Candidate("square", "fast", lambda n: n * n, lambda n: "odd" if n % 2 else None))
    register(Candidate("square", "plain", lambda n: n**2, lambda n: None if n < 100 else "too large"))
    return "square"


def test_auto_takes_the_first_usable_candidate(op: str) -> None:
    assert choose(op, 4).name == "fast"
    assert choose(op, 5).name == "plain"
    assert choose(op, 5).make(5) == 25


def test_a_named_backend_is_taken_or_refused_with_its_objection(op: str) -> None:
    assert choose(op, 4, backend="plain").name == "plain"
    with pytest.raises(UnsupportedError, match=r"^backend: expected one of auto, plain \(fast: odd\), got fast$"):
        choose(op, 5, backend="fast")


def test_a_problem_that_nothing_serves_names_every_objection(op: str) -> None:
    wanted = r"^backend: expected a problem that some backend serves \(fast: odd; plain: too large\), got auto$"
    with pytest.raises(UnsupportedError, match=wanted):
        choose(op, 101)


def test_an_unknown_backend_is_refused_with_the_known_ones(op: str) -> None:
    check_backend(op, "auto")
    check_backend(op, "plain")
    with pytest.raises(UnsupportedError, match=r"^backend: expected one of auto, fast, plain, got quick$"):
        check_backend(op, "quick")
    with pytest.raises(UnsupportedError, match=r"^backend: expected one of auto, fast, plain, got quick$"):
        choose(op, 4, backend="quick")


def test_explain_gives_the_choice_and_the_reasons(op: str) -> None:
    found = explain(op, 5)
    assert (found.op, found.chosen, found.reasons) == ("square", "plain", {"fast": "odd", "plain": None})
    assert explain(op, 101).chosen is None
    with pytest.raises(InvalidArgumentError, match=r"^op: expected one of square, got cube$"):
        explain("cube", 5)


def test_why_a_preferred_candidate_is_passed_over_is_logged_once(op: str, caplog: pytest.LogCaptureFixture) -> None:
    candidates._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=candidates.__name__):
        for n in (4, 5, 7):
            choose(op, n)
    assert [record.getMessage() for record in caplog.records] == ["square: backend plain; not used: fast: odd"]


def test_a_name_is_registered_once(op: str) -> None:
    assert backend_names(op) == ("fast", "plain")
    for name in ("fast", "auto"):
        with pytest.raises(InvalidArgumentError, match=f"^name: .*, got {name}$"):
            register(Candidate(op, name, lambda n: n, lambda n: None))
