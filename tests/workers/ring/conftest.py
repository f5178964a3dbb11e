# SPDX-License-Identifier: Apache-2.0
"""Real processes for the ring's tests; each is killed at the end of its test."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_fi.workers.ring.segment import RingHandle

SCRIPT = Path(__file__).with_name("rank_process.py")


class Helper:
    """A process of rank_process.py."""

    def __init__(self, role: str, *arguments: object):
        texts = [a if isinstance(a, str) else pickle.dumps(a).hex() for a in arguments]
        command = [sys.executable, str(SCRIPT), role, *texts]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def handle(self) -> RingHandle:
        return pickle.loads(bytes.fromhex(self.line()))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Helper]]:
    helpers: list[Helper] = []

    def start_helper(role: str, *arguments: Any) -> Helper:
        helpers.append(Helper(role, *arguments))
        return helpers[-1]

    yield start_helper
    for helper in helpers:
        helper.end()
