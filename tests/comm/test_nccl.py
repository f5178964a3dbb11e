# SPDX-License-Identifier: Apache-2.0
"""Groups of two GPUs."""

import time

import pytest
import torch
from torch import Tensor

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.bootstrap.store import connect_store
from distributed_fi.comm.group import Group
from distributed_fi.errors import CollectiveError

pytestmark = pytest.mark.multi_gpu

HIDDEN_SIZE = 128
SHORT_S = 3.0


def on_gpus(group: Group, address: str, name: str, *, timeout_s: float = 60.0, check: bool = False) -> Group:
    device = torch.device("cuda", group.rank)
    torch.cuda.set_device(device)
    store = connect_store(address)
    return Group.from_store(
        store, group.rank, group.world_size, device=device, timeout_s=timeout_s, name=name, check=check
    )


def values(rank: int, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-8, 8, (rows, HIDDEN_SIZE), generator=torch.Generator().manual_seed(rank)).to(dtype)


def call_each(group: Group, address: str, dtype: torch.dtype) -> dict[str, Tensor]:
    with on_gpus(group, address, f"each {dtype}") as gpus:
        rank, device = group.rank, gpus.device
        x = values(rank, 6, dtype).to(device)
        uneven = values(rank, 2 + rank, dtype).to(device)
        in_place, received = x.clone(), x.clone()
        gpus.all_reduce(in_place, out=in_place)
        gpus.broadcast(received, src=1)
        results = {
            "all_reduce": gpus.all_reduce(x),
            "all_reduce in place": in_place,
            "all_gather": gpus.all_gather(x, dim=1),
            "all_gather uneven": gpus.all_gather(uneven, sizes=[2, 3]),
            "reduce_scatter": gpus.reduce_scatter(x),
            "reduce_scatter uneven": gpus.reduce_scatter(x, sizes=[1, 5]),
            "broadcast": received,
            "all_to_all": gpus.all_to_all(x),
            "all_to_all uneven": gpus.all_to_all(x, send_counts=[4, 2], recv_counts=[4, 4] if rank == 0 else [2, 2]),
            "empty": gpus.all_reduce(x[:0]),
        }
        gpus.barrier()
        return {name: result.cpu() for name, result in results.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
def test_each_operation(two_ranks: RankPool, store_address: str, dtype: torch.dtype) -> None:
    a, b = values(0, 6, dtype), values(1, 6, dtype)
    total = (a.double() + b.double()).to(dtype)  # exact: small integers
    gathered = torch.cat([values(0, 2, dtype), values(1, 3, dtype)])
    for rank, results in enumerate(two_ranks.run(call_each, store_address, dtype, timeout_s=120)):
        expected = {
            "all_reduce": total,
            "all_reduce in place": total,
            "all_gather": torch.cat([a, b], 1),
            "all_gather uneven": gathered,
            "reduce_scatter": total[3 * rank : 3 * rank + 3],
            "reduce_scatter uneven": total[:1] if rank == 0 else total[1:],
            "broadcast": b,
            "all_to_all": torch.cat([x[3 * rank : 3 * rank + 3] for x in (a, b)]),
            "all_to_all uneven": torch.cat([x[:4] if rank == 0 else x[4:] for x in (a, b)]),
            "empty": total[:0],
        }
        for name, result in results.items():
            torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


def replay_graph(group: Group, address: str) -> list[Tensor]:
    with on_gpus(group, address, "graph") as gpus:
        x = torch.full((4, HIDDEN_SIZE), group.rank + 1.0, device=gpus.device)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            gpus.all_reduce(x)
        gpus.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = gpus.all_reduce(x)
        results = []
        for scale in (1.0, 2.0):
            x.fill_(scale * (group.rank + 1.0))
            graph.replay()
            gpus.synchronize()
            results.append(out.cpu())
        del graph
        return results


def test_a_captured_graph_reduces_what_is_there_when_it_is_replayed(two_ranks: RankPool, store_address: str) -> None:
    for first, second in two_ranks.run(replay_graph, store_address, timeout_s=120):
        assert first.unique().tolist() == [3.0]
        assert second.unique().tolist() == [6.0]


def call_late(group: Group, address: str) -> tuple[str, float, float, float]:
    with on_gpus(group, address, "late") as gpus:
        gpus.barrier()
        if group.rank == 1:
            time.sleep(3 * SHORT_S)
            return "", 0.0, 0.0, 0.0
        start = time.monotonic()
        gpus.all_reduce(torch.ones(8, device=gpus.device))
        gpus.all_reduce(torch.ones(9, device=gpus.device))
        issued_s = time.monotonic() - start
        with pytest.raises(CollectiveError) as raised:
            gpus.synchronize(SHORT_S)
        waited_s = time.monotonic() - start
        # The process goes on: the aborted kernels have left the stream.
        return str(raised.value), issued_s, waited_s, float(torch.ones(3, device=gpus.device).sum())


def test_a_hung_collective_is_named_and_the_device_stays_usable(two_ranks: RankPool, store_address: str) -> None:
    text, issued_s, waited_s, total = two_ranks.run(call_late, store_address, timeout_s=120)[0]
    assert text.startswith("rank 0: all_reduce (collective 2): group 'late': all_reduce of float32 [8] has not ended")
    assert issued_s < SHORT_S / 2
    assert SHORT_S <= waited_s < 2 * SHORT_S
    assert total == 3.0


def disagree(group: Group, address: str) -> str:
    with on_gpus(group, address, "check", check=True) as gpus:
        gpus.all_reduce(torch.ones(4, device=gpus.device))
        with pytest.raises(CollectiveError) as raised:
            gpus.all_reduce(torch.ones(4 + group.rank, device=gpus.device))
        group.barrier()
        return str(raised.value)


def test_with_check_ranks_that_call_differently_are_told(two_ranks: RankPool, store_address: str) -> None:
    for rank, text in enumerate(two_ranks.run(disagree, store_address, timeout_s=120)):
        assert text.startswith(f"rank {rank}: all_reduce (collective 2): group 'check': ranks disagree: ")
        assert "[4]" in text
        assert "[5]" in text
