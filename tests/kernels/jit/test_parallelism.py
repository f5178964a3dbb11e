# SPDX-License-Identifier: Apache-2.0
"""Compilers at once: as many as given, or as cores and memory allow."""

from __future__ import annotations

import os

import pytest

from distributed_fi.errors import InvalidArgumentError
from distributed_fi.kernels.jit import parallelism


def test_memory_and_cores_bound_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFI_BUILD_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    jobs = {}
    for gib in (0, 2, 6, 64):
        monkeypatch.setattr(parallelism, "available_bytes", lambda gib=gib: gib * 2**30)
        jobs[gib] = parallelism.build_jobs()
    assert jobs == {0: 1, 2: 1, 6: 4, 64: 16}


def test_a_number_given_is_taken_and_nonsense_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFI_BUILD_JOBS", "5")
    assert parallelism.build_jobs() == 5
    monkeypatch.setenv("DFI_BUILD_JOBS", "many")
    with pytest.raises(InvalidArgumentError, match="DFI_BUILD_JOBS: expected an integer"):
        parallelism.build_jobs()
