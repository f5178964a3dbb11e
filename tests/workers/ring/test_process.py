# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from distributed_fi.workers.ring.process import ProcessId


def process_of(child: subprocess.Popen[bytes]) -> ProcessId:
    fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return ProcessId(child.pid, int(fields[19]), ProcessId.current().namespace)


def test_this_process_lives() -> None:
    assert ProcessId.current().pid == os.getpid()
    assert not ProcessId.current().is_gone()


def test_ended_process_is_gone_before_and_after_its_parent_looks() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = process_of(child)
    assert not process.is_gone()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert process.is_gone()
    child.communicate()
    assert process.is_gone()


def test_another_process_with_the_same_number_is_not_it() -> None:
    me = ProcessId.current()
    assert dataclasses.replace(me, start_ticks=me.start_ticks - 1).is_gone()


def test_process_of_another_namespace_counts_as_living() -> None:
    assert not ProcessId(pid=2**22 + 1, start_ticks=1, namespace=1).is_gone()
