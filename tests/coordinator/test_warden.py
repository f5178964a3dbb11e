# SPDX-License-Identifier: Apache-2.0
"""The warden ends Ray's processes that outlive their driver, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_fi.coordinator.warden import Warden, rays_processes
from distributed_fi.workers.ring.process import ProcessId

Family = tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]


def sleeper(folder: Path) -> subprocess.Popen[bytes]:
    """A process whose command names a file in `folder`."""
    script = folder / "sleeper.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import time; time.sleep(100)")
    return subprocess.Popen([sys.executable, str(script)])


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    """One child that looks like Ray's, one that is the user's own."""
    rays, users = sleeper(tmp_path / "ray"), sleeper(tmp_path / "mine")
    yield rays, users
    for process in (rays, users):
        process.kill()
        process.wait()


def test_rays_children_are_found_and_the_users_are_not(
    family: Family,
) -> None:
    rays, users = family
    found = rays_processes(os.getpid())
    assert ProcessId.of(rays.pid) in found
    assert ProcessId.of(users.pid) not in found


def test_what_is_left_of_ray_ends_and_the_users_child_goes_on(family: Family, tmp_path: Path) -> None:
    before, users = family
    with Warden() as warden:
        rays = sleeper(tmp_path / "new" / "ray")
        time.sleep(1.0)  # it looks every 50 ms
    warden.close()
    assert rays.wait(10) == -9
    assert users.poll() is None
    assert before.poll() is None, "a Ray that ran before is not the warden's to end"


def test_it_acts_when_the_driver_is_killed_while_ray_starts(tmp_path: Path) -> None:
    script = tmp_path / "ray" / "sleeper.py"
    script.parent.mkdir()
    script.write_text("import time; time.sleep(100)")
    driver_script = f"""
import subprocess, sys, time
from distributed_fi.coordinator.warden import Warden
with Warden():
    print(subprocess.Popen([sys.executable, {str(script)!r}], start_new_session=True).pid, flush=True)
    time.sleep(100)
"""
    driver = subprocess.Popen([sys.executable, "-c", driver_script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    orphan = ProcessId.of(int(driver.stdout.readline()))
    time.sleep(1.0)  # it looks every 50 ms
    driver.kill()
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 20
    while not orphan.is_gone() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert orphan.is_gone()
