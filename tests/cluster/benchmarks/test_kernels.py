# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from distributed_fi.cluster.benchmarks.kernels import cases, fused_add_rmsnorm_case, measure, rmsnorm_case, run, table
from distributed_fi.errors import ResourceError


def test_the_rows_with_targets_are_there() -> None:
    targets = {(case.op, case.problem): case.target_us for case in cases(None) if case.target_us is not None}
    assert targets["rmsnorm", "T=8192 H=8192 bf16"] == 92
    assert targets["fused_add_rmsnorm", "T=1 H=8192 bf16"] == 2.8
    assert targets["silu_and_mul", "T=128 d=14336 bf16"] == 3.6
    assert len(targets) == 9


def test_bytes_of_a_call() -> None:
    assert rmsnorm_case(2, 64, None, None).num_bytes == (2 * 2 * 64 + 64) * 2
    assert fused_add_rmsnorm_case(2, 64, None, None).num_bytes == (4 * 2 * 64 + 64) * 2


def test_the_table_has_a_line_per_row_and_every_peer() -> None:
    row = {
        "op": "rmsnorm",
        "problem": "T=1",
        "ours_us": 2.0,
        "peers": {"torch": 5.25},
        "floor_us": 1.5,
        "target_us": None,
    }
    lines = table({"rows": [row], "launch_us": {"rmsnorm": 4.5}}).splitlines()
    assert lines[0].split()[-1] == "torch"
    assert lines[1].split() == ["rmsnorm", "T=1", "2.00", "1.50", "-", "5.25"]
    assert lines[2] == "rmsnorm: 4.50 us of host time a launch"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_an_error_that_says_so() -> None:
    with pytest.raises(ResourceError, match="GPUs: 1 needed, 0 available"):
        run()


@pytest.mark.gpu
def test_a_row_is_measured() -> None:
    row = measure(rmsnorm_case(3, 256, 1.0, None), is_cold=False, num_rounds=1)
    assert row.ours_us > 0
    assert set(row.peers) == {"torch"}
    assert row.target_us == 1.0
