# SPDX-License-Identifier: Apache-2.0
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_fi.comm.bootstrap.store import serve_store
from distributed_fi.comm.bootstrap.torchrun import group_from_torchrun
from distributed_fi.errors import InvalidArgumentError

SCRIPT = """
import torch
from distributed_fi.comm.bootstrap.torchrun import group_from_torchrun

with group_from_torchrun(timeout_s=60) as world, group_from_torchrun(timeout_s=60, name="tp") as tp:
    total = world.all_reduce(torch.tensor([world.rank + 1.0])) + tp.all_reduce(torch.tensor([10.0]))
    print(f"rank {world.rank} of {world.world_size} on {world.device}: {total.item()}", flush=True)
"""
FAILS_AT_FIRST = """
import os, sys, time

# Rank 1 ends while rank 0, which has imported torch by then, waits for it.
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    time.sleep(3)
    sys.exit(1)
"""
LINE = re.compile(r"rank \d of \d on \w+: [\d.]+")  # two ranks may print into one line
EXPECTED = ["rank 0 of 2 on cpu: 23.0", "rank 1 of 2 on cpu: 23.0"]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def without_gpus() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def test_under_torchrun(script: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=without_gpus(), check=False)
    assert ended.returncode == 0, ended.stderr
    assert sorted(LINE.findall(ended.stdout)) == EXPECTED


def test_ranks_started_again_by_torchrun_meet(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(FAILS_AT_FIRST + SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    ended = subprocess.run(
        [*command, "--nproc-per-node", "2", path],
        capture_output=True,
        text=True,
        timeout=120,
        env=without_gpus(),
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert sorted(LINE.findall(ended.stdout)) == EXPECTED


def test_under_a_launcher_that_sets_the_variables_but_serves_no_store(script: Path) -> None:
    reserved, address = serve_store()
    del reserved  # the port is free again, as far as anybody can promise
    host, port = address.split(":")
    environments = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": port}
        for rank in range(2)
    ]
    ranks = [
        subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=without_gpus() | environment)
        for environment in environments
    ]
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == EXPECTED


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidArgumentError, match="RANK: expected an environment variable, as torchrun sets it"):
        group_from_torchrun()
