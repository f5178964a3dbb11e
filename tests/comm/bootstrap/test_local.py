# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distributed_fi.comm.bootstrap.local import RankPool, run_ranks
from distributed_fi.comm.bootstrap.local_rank import portable
from distributed_fi.comm.group import Group
from distributed_fi.errors import InvalidArgumentError, RankDiedError, RankError, StepTimeoutError


def scaled_sum(group: Group, factor: float) -> float:
    return float(group.all_reduce(torch.tensor(factor * group.rank)))


def fail_on_rank_1(group: Group) -> None:
    if group.rank == 1:
        raise ValueError("no such tensor")
    group.barrier()


def die_on_rank_1(group: Group, code: int) -> None:
    if group.rank == 1:
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    group.barrier()


def hang_on_rank_1(group: Group) -> None:
    if group.rank == 1:
        time.sleep(60)


def limit_of(group: Group) -> float:
    return group.timeout_s


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_results_come_by_rank_and_no_process_stays() -> None:
    with RankPool(3) as pool:
        pids = pool.pids
        assert pool.run(scaled_sum, 2.0) == [6.0] * 3
        assert pool.run(scaled_sum, 0.5) == [1.5] * 3
    assert len(set(pids)) == 3
    assert not any(map(is_running, pids))
    with pytest.raises(RankError, match="the pool is closed"):
        pool.run(scaled_sum, 2.0)


def test_run_ranks_raises_the_error_of_the_rank_that_caused_it() -> None:
    with pytest.raises(RankError, match="rank 1: ValueError: no such tensor") as raised:
        run_ranks(fail_on_rank_1, 2)
    assert "in fail_on_rank_1" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("code", "message"),
    [(-signal.SIGKILL, "its process was ended by SIGKILL"), (3, "its process ended with exit code 3")],
)
def test_a_dead_rank_is_named_and_the_others_are_stopped(code: int, message: str) -> None:
    with RankPool(2) as pool:
        pids = pool.pids
        with pytest.raises(RankDiedError, match=f"rank 1: {message}"):
            pool.run(die_on_rank_1, code)
        assert pool.is_closed
        assert not any(map(is_running, pids))


def test_a_rank_that_does_not_return_is_named() -> None:
    with RankPool(2) as pool:
        pids = pool.pids
        with pytest.raises(StepTimeoutError, match="rank 1: has not returned within 1 s"):
            pool.run(hang_on_rank_1, timeout_s=1)
        assert not any(map(is_running, pids))


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_start_of_the_processes_is_not_counted(world_size: int) -> None:
    # None imports torch within 50 ms.
    with RankPool(world_size, timeout_s=0.05) as pool:
        assert pool.run(limit_of) == [0.05] * world_size


ORPHANS = """
import os, sys, time
from distributed_fi.comm.bootstrap.local import RankPool

if __name__ == "__main__":
    print(*RankPool(2).pids, flush=True)
    time.sleep(60)
"""


def test_ranks_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    end = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_function_no_other_process_can_find_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"fn: expected a function at the top level of a file, got .*lambda"):
        portable(lambda group: None)


@pytest.mark.parametrize("world_size", [0, -1, 1.5])
def test_a_wrong_world_size_is_named(world_size: object) -> None:
    with pytest.raises(InvalidArgumentError, match="world_size: expected an integer >= 1"):
        run_ranks(scaled_sum, world_size, 1.0)
