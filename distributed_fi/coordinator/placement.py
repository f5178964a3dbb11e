# SPDX-License-Identifier: Apache-2.0
"""Where the ranks go: one placement group of one bundle a rank, refused at once where it can never fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from distributed_fi.errors import ResourceError

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Placement:
    """A ready placement group; bundle i takes one rank."""

    group: PlacementGroup
    device_type: DeviceType

    def actor_options(self, bundle: int) -> dict[str, Any]:
        """How Ray starts the actor of this bundle: never restarted alone, since it would have no communicator."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        gpus = 1 if self.device_type == "cuda" else 0
        return {"num_cpus": 0, "num_gpus": gpus, "max_restarts": 0, "scheduling_strategy": strategy}

    def remove(self) -> None:
        remove_placement_group(self.group)


def choose_device(wanted: str, world_size: int) -> DeviceType:
    """ "auto" is GPUs where the cluster has any; `place` refuses too few, rather than run on CPUs in silence."""
    if wanted == "auto":
        return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    return "cuda" if wanted == "cuda" else "cpu"


def place(world_size: int, device_type: DeviceType, *, timeout_s: float) -> Placement:
    """Reserve one device a rank, ranks of one host together as far as they fit.

    Raises:
        ResourceError: the cluster has not that many, or does not free them in time; lists the nodes.
    """
    resource = "GPU" if device_type == "cuda" else "CPU"
    total = ray.cluster_resources().get(resource, 0)
    if total < world_size:
        raise ResourceError(f"{resource}s in the Ray cluster", str(world_size), f"{total:g} ({_by_node(resource)})")
    group = placement_group([{resource: 1}] * world_size, strategy="PACK")
    if not group.wait(timeout_s):
        remove_placement_group(group)
        free = ray.available_resources().get(resource, 0)
        raise ResourceError(f"free {resource}s in the Ray cluster", str(world_size), f"{free:g} after {timeout_s:g} s")
    return Placement(group, device_type)


def _by_node(resource: str) -> str:
    nodes = [n for n in ray.nodes() if n["Alive"]]
    return ", ".join(f"{n['NodeManagerAddress']}: {n['Resources'].get(resource, 0):g}" for n in nodes)
