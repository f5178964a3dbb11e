# SPDX-License-Identifier: Apache-2.0
"""However `generate` ends, no process and no shared memory stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.model, pytest.mark.ray]
START_TIMEOUT_S, GONE_TIMEOUT_S = 90.0, 40.0
COMMAND = [sys.executable, "-m", "distributed_fi", "generate", "--tp", "2", "--load-format", "dummy", "--ignore-eos"]


def segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("dfi-*")}


def start_generating(*options: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A driver whose ranks are in their step loops, since its first words are out; and all it started."""
    driver = subprocess.Popen(
        [*COMMAND, "Once upon a time", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs these tests in the background may have made Ctrl-C ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    assert driver.stdout is not None
    assert driver.stdout.read(8) != ""
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(ranks_of(family)) == 2
    return driver, family


def ranks_of(family: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in family if "RankActor" in " ".join(process.cmdline())]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that ended and whom only init has yet to bury does not."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_until(holds: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


@pytest.mark.parametrize(
    ("signum", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["ctrl-c", "terminated", "killed"],
)
def test_a_driver_stopped_while_it_generates(signum: signal.Signals, exit_code: int) -> None:
    before = segments()
    driver, family = start_generating("--max-tokens", "8000")
    driver.send_signal(signum)
    driver.communicate(timeout=GONE_TIMEOUT_S)
    assert driver.returncode == exit_code
    assert wait_until(lambda: alive(family) == [], GONE_TIMEOUT_S), alive(family)
    assert segments() <= before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_a_driver_stopped_while_ray_starts(signum: signal.Signals) -> None:
    before = segments()
    driver = subprocess.Popen(
        [*COMMAND, "Once upon a time"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    process = psutil.Process(driver.pid)
    assert wait_until(lambda: any("raylet" in p.name() for p in process.children(recursive=True)), START_TIMEOUT_S)
    family = process.children(recursive=True)
    driver.send_signal(signum)
    assert driver.wait(GONE_TIMEOUT_S) != 0
    assert wait_until(lambda: alive(family) == [], GONE_TIMEOUT_S), alive(family)
    assert segments() <= before


def test_a_rank_killed_while_it_generates_ends_the_run_with_its_name() -> None:
    before = segments()
    driver, family = start_generating("--max-tokens", "8000")
    ranks_of(family)[0].kill()
    _, errors = driver.communicate(timeout=START_TIMEOUT_S)
    assert driver.returncode == 1
    assert errors.count("\n") == 1 and "error: rank " in errors
    assert wait_until(lambda: alive(family) == [], GONE_TIMEOUT_S), alive(family)
    assert segments() <= before


def test_a_normal_end() -> None:
    before = segments()
    driver, family = start_generating("--max-tokens", "40")
    _, errors = driver.communicate(timeout=START_TIMEOUT_S)
    assert driver.returncode == 0, errors
    assert wait_until(lambda: alive(family) == [], GONE_TIMEOUT_S), alive(family)
    assert segments() <= before
