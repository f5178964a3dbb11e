# SPDX-License-Identifier: Apache-2.0
"""Calls in and out of inference mode and grad mode, in any order, with tensors made in any of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from distributed_fi.comm.bootstrap.local import RankPool
from distributed_fi.comm.bootstrap.store import connect_store
from distributed_fi.comm.group import Group

MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "grad": torch.enable_grad,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
}
NUM_ROWS = 6  # divides by 1, 2 and 3 ranks


def ones(**options: bool) -> Tensor:
    return torch.ones(NUM_ROWS, 2, **options)


def call_all(group: Group, **options: bool) -> list[float]:
    """The sum of all elements that each operation returns."""
    residual, weight = ones(**options), torch.ones(2, **options)
    results = [
        group.all_reduce(ones(**options)),
        group.all_reduce(ones(**options), out=torch.empty(2, NUM_ROWS).t()),
        group.all_gather(ones(**options)),
        group.all_gather(ones(**options), dim=1),
        group.reduce_scatter(ones(**options)),
        group.broadcast(ones(**options)),
        group.broadcast(torch.ones(2, NUM_ROWS, **options).t()),
        group.all_to_all(ones(**options)),
        *group.all_reduce_residual_rmsnorm(ones(**options), residual, weight),
    ]
    return [round(float(result.detach().sum()), 3) for result in results]


def call_in_modes(group: Group, address: str, names: list[str], **options: bool) -> list[list[float]]:
    """In each mode, with a group that was made in the first."""
    results = []
    with MODES[names[0]]():
        own = Group.from_store(connect_store(address), group.rank, group.world_size, timeout_s=20, name=" ".join(names))
    with own:
        for name in names:
            with MODES[name]():
                results.append(call_all(own, **options))
    return results


def expected_of(world_size: int) -> list[float]:
    n = float(NUM_ROWS * 2)
    return [n * world_size] * 4 + [n] * 4 + [n, n * (world_size + 1)]


@pytest.mark.parametrize("names", [["inference", "grad", "no grad"], ["grad", "inference", "grad"]], ids=", ".join)
def test_the_mode_may_change_from_call_to_call(ranks: RankPool, store_address: str, names: list[str]) -> None:
    for results in ranks.run(call_in_modes, store_address, names):
        assert results == [expected_of(ranks.world_size)] * len(names)


def call_with_grad(group: Group) -> tuple[list[float], list[bool]]:
    x = ones(requires_grad=True)
    outputs = [
        group.all_reduce(x),
        group.all_gather(x),
        group.all_gather(x, dim=1),
        group.reduce_scatter(x),
        group.all_to_all(x),
        *group.all_reduce_residual_rmsnorm(x, x * 1, torch.ones(2, requires_grad=True)),
    ]
    return call_all(group, requires_grad=True), [out.requires_grad for out in outputs]


def test_inputs_may_require_grad_and_results_do_not(ranks: RankPool) -> None:
    for sums, requires_grad in ranks.run(call_with_grad):
        assert sums == expected_of(ranks.world_size)
        assert not any(requires_grad)


def call_across_modes(group: Group) -> list[float]:
    """Tensors made in inference mode, written outside of it."""
    with torch.inference_mode():
        x, out, transposed = ones(), torch.empty(NUM_ROWS, 2), torch.empty(2, NUM_ROWS).t()
    results = [
        group.all_reduce(x, out=out),
        group.all_reduce(x, out=transposed),
        group.all_reduce_residual_rmsnorm(x.clone(), x, torch.ones(2), residual_out=x)[1],
    ]
    return [float(result.sum()) for result in results]


def test_outputs_made_in_inference_mode_can_be_written_outside(ranks: RankPool) -> None:
    n = float(NUM_ROWS * 2)
    expected = [n * ranks.world_size, n * ranks.world_size, n * (ranks.world_size + 1)]
    assert ranks.run(call_across_modes) == [expected] * ranks.world_size
