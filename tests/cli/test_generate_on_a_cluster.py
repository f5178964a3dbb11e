# SPDX-License-Identifier: Apache-2.0
"""`generate` on three fake nodes: by `ray job submit`, and with tp=2 over two hosts through the relay."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.model, pytest.mark.ray]
OBJECT_STORE_BYTES = 100 * 2**20
GENERATE = ["-m", "distributed_fi", "generate", "The capital of France is", "--temperature", "0", "--max-tokens", "12"]
TIMEOUT_S = 200
AGENT_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """Each node has one CPU and calls itself another host, so two ranks land on two hosts."""
    head = {"include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster()
    for i in range(3):
        extra = head if i == 0 else {}
        cluster.add_node(
            num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, env_vars={"DFI_HOST_ID": f"host-{i}"}, **extra
        )
    yield cluster
    cluster.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def submit(cluster: Cluster, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, again while the node's job agent is still starting."""
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "job", "submit", "--address", f"http://{cluster.head_node.webui_url}", "--", *entrypoint]
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def generate(*options: str, env: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, *GENERATE, "--json", *options]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **env}, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def hosts_of(output: dict[str, Any]) -> list[str]:
    return [rank["host_id"] for rank in output["ranks"]]


def test_ray_job_submit_ends_well(three_nodes: Cluster) -> None:
    done = submit(three_nodes, sys.executable, *GENERATE, "--tp", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Paris" in done.stdout
    assert "succeeded" in done.stdout


def test_ray_job_submit_ends_badly_when_generate_does(three_nodes: Cluster) -> None:
    done = submit(three_nodes, sys.executable, *GENERATE, "--top-p", "0")
    assert done.returncode == 1
    assert "top_p: expected a number in (0, 1], got 0.0" in done.stdout


def test_two_ranks_on_two_hosts_give_the_tokens_of_one_host(three_nodes: Cluster) -> None:
    far = generate("--tp", "2", "--ray-address", three_nodes.address, env={"DFI_HOST_ID": "host-0"})
    near = generate("--tp", "2", env={"RAY_ADDRESS": ""})
    assert len(set(hosts_of(far))) == 2  # at least one of them is not the driver's
    assert len(set(hosts_of(near))) == 1
    assert far["completions"] == near["completions"]


def test_more_ranks_than_the_cluster_has_cpus_are_refused_with_the_nodes(three_nodes: Cluster) -> None:
    command = [sys.executable, *GENERATE, "--tp", "4", "--ray-address", three_nodes.address]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "CPUs in the Ray cluster: 4 needed, 3 (" in done.stderr
