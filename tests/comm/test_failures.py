# SPDX-License-Identifier: Apache-2.0
"""What ranks see of peers that are late, gone, or make another call. Groups besides the pool's own are broken here."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.bootstrap.store import connect_store, serve_store
from distributed_fi.comm.group import Group
from distributed_fi.errors import CollectiveError

SHORT_S = 1.0


def join(group: Group, address: str, name: str, timeout_s: float = 20.0) -> Group:
    return Group.from_store(connect_store(address), group.rank, group.world_size, timeout_s=timeout_s, name=name)


def failure_of(call: Callable[[], object]) -> tuple[str, str, float]:
    """Type and text of the CollectiveError that `call` raises, and after how many seconds."""
    start = time.monotonic()
    try:
        call()
    except CollectiveError as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "", "", time.monotonic() - start


def call_late(group: Group, address: str) -> tuple[str, str, float]:
    with join(group, address, "tp", SHORT_S) as victims:
        victims.barrier()
        if group.rank == 2:
            time.sleep(4 * SHORT_S)
        return failure_of(lambda: victims.all_reduce(torch.ones(2, 3)))


def test_a_late_rank_is_named_after_the_timeout(three_ranks: RankPool, store_address: str) -> None:
    first, second, late = three_ranks.run(call_late, store_address)
    for rank, (kind, text, waited_s) in enumerate((first, second)):
        assert kind == "CollectiveTimeoutError"
        assert text.startswith(
            f"rank {rank}: all_reduce (collective 2): group 'tp': all_reduce of float32 [2, 3]: nothing from rank 2"
        )
        assert "(limit 1 s)" in text
        assert waited_s < 3 * SHORT_S
    # The others have given up by then and closed their connections.
    assert late[0] == "CollectiveError"
    assert "closed the connection" in late[1]


def skip_all(group: Group, address: str) -> tuple[str, str, float]:
    with join(group, address, "tp", SHORT_S) as victims:
        if group.rank != 0:
            time.sleep(2 * SHORT_S)
            return "", "", 0.0
        return failure_of(victims.barrier)


def test_all_late_ranks_are_named(three_ranks: RankPool, store_address: str) -> None:
    kind, text, _ = three_ranks.run(skip_all, store_address)[0]
    assert kind == "CollectiveTimeoutError"
    assert "barrier: nothing from ranks 1, 2 within" in text


def call_again_after_failure(group: Group, address: str) -> list[tuple[str, str, float]]:
    with join(group, address, "tp", SHORT_S) as victims:
        if group.rank == 1:
            time.sleep(2 * SHORT_S)
            return []
        return [
            failure_of(call) for call in (victims.barrier, victims.barrier, lambda: victims.all_reduce(torch.ones(1)))
        ]


def test_a_broken_group_raises_at_once_with_the_first_cause(two_ranks: RankPool, store_address: str) -> None:
    first, second, third = two_ranks.run(call_again_after_failure, store_address)[0]
    assert first[0] == "CollectiveTimeoutError"
    for _, text, waited_s in (second, third):
        assert waited_s < SHORT_S
        assert f"group 'tp': broken since: {first[1]}" in text


def disagree(group: Group, address: str, calls: list[str]) -> tuple[str, str, float]:
    with join(group, address, "tp") as victims:
        victims.barrier()
        expression = calls[group.rank]
        result = failure_of(lambda: eval(expression, {"g": victims, "torch": torch}))
        group.barrier()  # nobody closes its connections before all have seen the disagreement
        return result


DISAGREEMENTS = {
    "shape": (["g.all_reduce(torch.ones(4))", "g.all_reduce(torch.ones(5))"], "[4]", "[5]"),
    "dtype": (["g.all_reduce(torch.ones(4))", "g.all_reduce(torch.ones(4).bfloat16())"], "float32 [4]", "bfloat16 [4]"),
    "operation": (["g.all_reduce(torch.ones(4))", "g.all_gather(torch.ones(4))"], "all_reduce of", "all_gather of"),
    "source": (["g.broadcast(torch.ones(4), 0)", "g.broadcast(torch.ones(4), 1)"], "from rank 0", "from rank 1"),
    "size": (["g.all_reduce(torch.ones(1_000_000))", "g.all_reduce(torch.ones(4))"], "[1000000]", "[4]"),
    "sizes": (
        ["g.all_gather(torch.ones(2), sizes=[2, 3])", "g.all_gather(torch.ones(3), sizes=[1, 3])"],
        "sizes ",
        "sizes ",
    ),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_ranks_that_call_differently_are_told_both_calls(two_ranks: RankPool, store_address: str, case: str) -> None:
    calls, of_rank_0, of_rank_1 = DISAGREEMENTS[case]
    for rank, (kind, text, _) in enumerate(two_ranks.run(disagree, store_address, calls)):
        assert kind == "CollectiveError"
        assert text.startswith(f"rank {rank}: ")
        assert "ranks disagree" in text
        shown_0, shown_1 = (text.split(f"rank {r} called ")[1].split(";")[0] for r in range(2))
        assert of_rank_0 in shown_0
        assert of_rank_1 in shown_1
        assert "as collective 2" in shown_0


def test_all_ranks_learn_who_disagrees(three_ranks: RankPool, store_address: str) -> None:
    calls = ["g.all_reduce(torch.ones(4))"] * 2 + ["g.barrier()"]
    texts = [text for _, text, _ in three_ranks.run(disagree, store_address, calls)]
    assert all("rank 2 called barrier as collective 2" in text for text in texts)


def test_counts_that_do_not_match_are_named(two_ranks: RankPool, store_address: str) -> None:
    counts = "g.all_to_all(torch.ones(3, 2), send_counts=[1, 2], recv_counts=[1, {}])"
    calls = [counts.format(1), counts.format(2)]
    results = two_ranks.run(disagree, store_address, calls)
    of_rank_0, of_rank_1 = (text for _, text, _ in results)
    assert of_rank_1 == (
        "rank 1: all_to_all (collective 2): group 'tp': ranks disagree: rank 0 sends 16 bytes to this rank, "
        "which expects 8; rank 1 called all_to_all of float32 [*, 2] as collective 2"
    )
    assert of_rank_0 == ""


def leave_first(group: Group, address: str) -> tuple[str, str, float]:
    victims = join(group, address, "tp")
    victims.barrier()
    if group.rank == 1:
        victims.close()
        return failure_of(victims.barrier)
    result = failure_of(lambda: victims.all_reduce(torch.ones(4)))
    victims.close()
    return result


def test_a_rank_that_leaves_is_named(two_ranks: RankPool, store_address: str) -> None:
    stayed, left = two_ranks.run(leave_first, store_address)
    assert "rank 0: all_reduce (collective 2): group 'tp': all_reduce of float32 [4]: rank 1 closed the" in stayed[1]
    assert stayed[2] < 5
    assert "it was closed" in left[1]


KILLED_IN_A_COLLECTIVE = """
import os, signal, sys, time
import torch
from distributed_fi.comm.bootstrap.store import connect_store
from distributed_fi.comm.group import Group
from distributed_fi.errors import CollectiveError

rank = int(sys.argv[2])
group = Group.from_store(connect_store(sys.argv[1]), rank, 3, timeout_s=30, name="tp")
group.barrier()
if rank == 1:
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
start = time.monotonic()
try:
    group.all_reduce(torch.ones(4))
except CollectiveError as error:
    print(round(time.monotonic() - start, 1), error)
"""


def test_every_survivor_learns_at_once_that_a_rank_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED_IN_A_COLLECTIVE)
    _store, address = serve_store()
    ranks = [
        subprocess.Popen([sys.executable, script, address, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert ranks[1].returncode == -signal.SIGKILL
    for rank in (0, 2):
        waited_s, text = outputs[rank].split(" ", 1)
        assert float(waited_s) < 5
        assert text.startswith(f"rank {rank}: all_reduce (collective 2): group 'tp': all_reduce of float32 [4]: rank ")
        assert "closed the connection" in text


def interrupt_in_a_call(group: Group, address: str) -> str:
    with join(group, address, "tp") as victims:
        if group.rank == 1:
            return failure_of(lambda: [victims.barrier() for _ in range(2)])[1]
        victims._backend._slots._check = _raise_keyboard_interrupt
        try:
            victims.barrier()
        except KeyboardInterrupt:
            return failure_of(victims.barrier)[1]
        return "not interrupted"


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_call_breaks_the_group_for_all(two_ranks: RankPool, store_address: str) -> None:
    interrupted, other = two_ranks.run(interrupt_in_a_call, store_address)
    assert "broken since: rank 0: barrier (collective 1): group 'tp': interrupted by KeyboardInterrupt" in interrupted
    assert "rank 0 closed the connection" in other
