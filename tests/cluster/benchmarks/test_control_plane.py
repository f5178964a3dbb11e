# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

from distributed_fi.cluster.benchmarks import control_plane
from distributed_fi.cluster.benchmarks.control_plane import measure_ray_calls, measure_ring, run
from distributed_fi.errors import InvalidArgumentError, PlanError


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFI_SHM_DIR", str(tmp_path))
    return tmp_path


def children() -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(parent) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def test_ring_is_measured_and_nothing_is_left(shm: Path) -> None:
    before = children()
    row = measure_ring(2, 21, plan_bytes=1000)
    assert (row.path, row.num_ranks, row.plan_bytes) == ("step ring, processes", 2, 1000)
    assert row.iterations == 24  # whole rounds
    assert 0 < row.p50_us <= row.p99_us
    assert children() == before
    assert list(shm.iterdir()) == []


def test_ranks_that_read_another_plan_end_the_measurement_and_leave_nothing(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    expected = zlib.crc32(b"one plan")
    monkeypatch.setattr(control_plane.zlib, "crc32", lambda plan: expected)
    with pytest.raises(PlanError, match=rf"^step ring, processes: rank 0 saw digest \w+, expected {expected:08x}$"):
        measure_ring(1, 1)
    assert children() == before
    assert list(shm.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ranks": 0}, "num_ranks: expected an integer >= 1, got 0"),
        ({"num_ranks": 1, "iterations": 0}, "iterations: expected an integer >= 1, got 0"),
        ({"num_ranks": 1, "plan_bytes": -1}, "plan_bytes: expected an integer >= 1, got -1"),
    ],
)
def test_nothing_to_measure_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        measure_ring(**arguments)


@pytest.mark.ray
def test_report_has_ring_and_ray_rows_side_by_side_and_leaves_no_ray(shm: Path) -> None:
    import ray

    was_running, before = ray.is_initialized(), children()
    report = run(ranks=(1, 2), iterations=4)
    assert [(row.path, row.num_ranks) for row in report.rows] == [
        (path, n) for n in (1, 2) for path in ("step ring, processes", "step ring, Ray actors", "Ray actor calls")
    ]
    known = json.loads(json.dumps(report.to_dict()))
    assert known["rows"][5]["p99_us"] == report.rows[5].p99_us
    assert {"processor", "num_cores", "python", "versions", "commit"} <= set(known["machine"])
    assert ray.is_initialized() == was_running
    assert was_running or children() == before
    assert list(shm.iterdir()) == []


@pytest.mark.ray
def test_each_path_can_be_measured_alone_in_a_ray_that_runs_already(shm: Path) -> None:
    import ray

    with control_plane._local_ray():
        assert measure_ray_calls(2, 4).path == "Ray actor calls"
        assert measure_ring(2, 4, in_ray_actors=True, spin_us=0).path == "step ring, Ray actors"
        assert ray.is_initialized()
    assert list(shm.iterdir()) == []
