# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import platform
import subprocess

import numpy as np
import pytest

from distributed_fi.cluster.benchmarks.machine import describe_machine


def test_machine_is_named_with_cores_and_versions() -> None:
    machine = describe_machine(("numpy", "no-such-distribution"))
    assert machine["num_cores"] == len(os.sched_getaffinity(0))
    assert machine["python"] == platform.python_version()
    assert machine["versions"] == {"numpy": np.__version__, "no-such-distribution": None}


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert describe_machine()["commit"] is None
