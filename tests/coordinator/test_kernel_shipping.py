# SPDX-License-Identifier: Apache-2.0
"""A kernel built once reaches ranks that have no compiler, through Ray's object store."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from distributed_fi.coordinator.kernel_shipping import ship_kernels
from distributed_fi.kernels.jit.spec import KernelSpec
from distributed_fi.workers.rank_info import RankInfo

TIMEOUT_S = 90.0
ANSWER_CPP = """
#include <tvm/ffi/c_api.h>
extern "C" __attribute__((visibility("default")))
int __tvm_ffi_answer(void*, const TVMFFIAny*, int32_t, TVMFFIAny* result) {
  result->type_index = kTVMFFIInt;
  result->v_int64 = 42;
  return 0;
}
"""


@pytest.fixture
def answer_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelSpec:
    monkeypatch.setenv("DFI_CACHE_DIR", str(tmp_path / "cache of the coordinator"))
    (tmp_path / "answer.cpp").write_text(ANSWER_CPP)
    return KernelSpec("test/answer", (str(tmp_path / "answer.cpp"),))


def rank_infos(number: int) -> list[RankInfo]:
    """Ranks whose kernels are host code, as no GPU is needed to send them."""
    fields = {"host_id": "h", "node_ip": "", "gpu_uuid": None, "device_name": "", "kernel_arch": "cpu"}
    return [RankInfo(pid=pid, **fields) for pid in range(number)]


def start_ranks(caches: list[Path]) -> list[Any]:
    """Rank actors with a cache of their own each, and no compiler."""
    import ray

    from distributed_fi.config import EngineConfig
    from distributed_fi.workers.actor import RankActor

    class BareActor(RankActor):
        def forget_compilers(self, cache: Path) -> None:
            os.environ.update(PATH="/nonexistent", DFI_CACHE_DIR=str(cache))

        def answer(self, spec: KernelSpec) -> int:
            from distributed_fi.kernels.jit.load import load_kernel

            return int(load_kernel(spec, arch="cpu")["answer"]())

    config = EngineConfig(model="none")
    ranks = [ray.remote(BareActor).options(num_cpus=0).remote(config, "cpu") for _ in caches]
    ray.get([rank.forget_compilers.remote(cache) for rank, cache in zip(ranks, caches, strict=True)], timeout=TIMEOUT_S)
    return ranks


@pytest.mark.ray
def test_ranks_without_a_compiler_run_what_the_coordinator_built(
    local_ray: None, answer_spec: KernelSpec, tmp_path: Path
) -> None:
    import ray

    ranks = start_ranks([tmp_path / "rank0", tmp_path / "rank1"])
    ship_kernels([answer_spec], ranks, rank_infos(2), timeout_s=TIMEOUT_S)
    assert ray.get([rank.answer.remote(answer_spec) for rank in ranks], timeout=TIMEOUT_S) == [42, 42]
    assert len(list((tmp_path / "rank1").glob("test.answer-cpu-*"))) == 1
    for rank in ranks:
        ray.kill(rank)


@pytest.mark.ray
def test_where_nobody_can_build_that_is_said_and_the_gang_goes_on(
    local_ray: None,
    answer_spec: KernelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import ray

    ranks = start_ranks([tmp_path / "rank0"])
    monkeypatch.setenv("PATH", "/nonexistent")
    with caplog.at_level(logging.WARNING):
        ship_kernels([answer_spec], ranks, rank_infos(1), timeout_s=TIMEOUT_S)
    (message,) = caplog.messages
    assert message.startswith("no kernels for cpu, torch serves their operators: g++: not found in PATH")
    ray.kill(ranks[0])
