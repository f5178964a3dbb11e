# SPDX-License-Identifier: Apache-2.0
"""The ranks of one engine, from placement to the step ring and back to nothing.

Order of starting: place, start light actors, number them (ranks of one host are neighbours, the
coordinator's host first), join the collectives, load weights, agree on the KV pool, map the ring
(over a relay for ranks of other hosts), enter the step loop. Ray is used here and not in a step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray

from distributed_fi.config import EngineConfig
from distributed_fi.coordinator.kernel_catalog import compiled_kernels
from distributed_fi.coordinator.kernel_shipping import ship_kernels
from distributed_fi.coordinator.placement import Placement, choose_device, place
from distributed_fi.coordinator.ray_session import RaySession, fetch
from distributed_fi.errors import ResourceError
from distributed_fi.workers.actor import rank_actor_class
from distributed_fi.workers.rank_info import RankInfo
from distributed_fi.workers.ring.bridge import BridgeServer
from distributed_fi.workers.ring.segment import host_id
from distributed_fi.workers.ring.writer import RingWriter

LoadProgress = Callable[[int, int], None]
PROGRESS_EVERY_S = 0.1
# Of the memory left: a GPU serves nobody else, a host does.
GPU_POOL_SHARE, CPU_POOL_SHARE = 0.9, 0.3
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class PoolNeed:
    """What a KV page costs on a rank, and how many pages there should be."""

    page_bytes: list[int]  # by rank
    wanted_pages: int
    least_pages: int


class Gang:
    """All ranks of one engine, loaded and waiting for plans in `ring`."""

    def __init__(self, config: EngineConfig):
        self.config = config
        self.session: RaySession | None = None
        self.placement: Placement | None = None
        self.actors: list[Any] = []
        self.infos: list[RankInfo] = []
        self.ring: RingWriter | None = None
        self.bridges: list[BridgeServer] = []
        self.run_refs: list[Any] = []

    def start(self) -> str:
        """Place and number the ranks, join their collectives, send their kernels; returns the device type."""
        config, world_size = self.config, self.config.mesh.world_size
        self.session = RaySession(config.ray_address, world_size)
        device_type = choose_device(config.device, world_size)
        self.placement = place(world_size, device_type, timeout_s=config.start_timeout_s)
        actor_class = rank_actor_class()
        actors = [
            actor_class.options(**self.placement.actor_options(bundle)).remote(config, device_type)
            for bundle in range(world_size)
        ]
        self.actors = actors
        infos = self._fetch([actor.info.remote() for actor in actors], "starting")
        self.actors, self.infos = _in_rank_order(actors, infos)
        _check_one_rank_per_gpu(self.infos)
        address = self._fetch([self.actors[0].serve_store.remote()], "opening the store")[0]
        neighbours = Counter(info.host_id for info in self.infos)
        joins = [
            actor.join.remote(rank, address, neighbours[info.host_id])
            for rank, (actor, info) in enumerate(zip(self.actors, self.infos, strict=True))
        ]
        self._fetch(joins, "joining")
        ship_kernels(compiled_kernels(), self.actors, self.infos, timeout_s=config.start_timeout_s)
        return device_type

    def load(self, dtype: str, max_position: int, need: PoolNeed, on_progress: LoadProgress | None) -> int:
        """Load weights on every rank and set up the KV pool; returns its pages per replica."""
        refs = [actor.load.remote(dtype, max_position) for actor in self.actors]
        deadline = time.monotonic() + self.config.start_timeout_s
        while on_progress is not None and not ray.wait(refs, timeout=PROGRESS_EVERY_S)[0]:
            loaded = [actor.loaded.options(concurrency_group="progress").remote() for actor in self.actors]
            on_progress(*map(sum, zip(*self._fetch(loaded, "loading weights", deadline), strict=True)))
        free_bytes = self._fetch(refs, "loading weights", deadline)
        num_pages = _pages_that_fit(need, free_bytes, self.infos)
        self._fetch([actor.allocate.remote(num_pages) for actor in self.actors], "allocating the KV pool")
        return num_pages

    def open_ring(self, ring: RingWriter, *, epoch: int) -> None:
        """Attach every rank to the step ring and send it into its loop."""
        self.ring = ring
        here = host_id()
        near = [rank for rank, info in enumerate(self.infos) if info.host_id == here]
        attached = self._fetch([self.actors[r].attach.remote(ring.handle, r) for r in near], "mapping the ring")
        reached = {rank for rank, ok in zip(near, attached, strict=True) if ok}
        far = [rank for rank in range(len(self.actors)) if rank not in reached]
        while far:
            ranks = self._that_share_memory(far)
            self._open_relay(ring, ranks)
            far = [rank for rank in far if rank not in ranks]
        ring.wait_attached(self.config.start_timeout_s)
        self.run_refs = [actor.run.remote(epoch) for actor in self.actors]

    def _that_share_memory(self, ranks: list[int]) -> list[int]:
        """The first of `ranks`, and those of its host that can read the nonce it puts into shared memory."""
        first = ranks[0]
        candidates = [rank for rank in ranks[1:] if self.infos[rank].host_id == self.infos[first].host_id]
        probe = self._fetch([self.actors[first].open_probe.remote()], "probing shared memory")[0]
        seen = self._fetch([self.actors[rank].can_see.remote(probe) for rank in candidates], "probing shared memory")
        self._fetch([self.actors[first].close_probe.remote()], "probing shared memory")
        return [first, *(rank for rank, sees in zip(candidates, seen, strict=True) if sees)]

    def _open_relay(self, ring: RingWriter, ranks: list[int]) -> None:
        """Join the ring of another host's ranks to ours."""
        bridge = BridgeServer(ring.handle, ranks, ray.util.get_node_ip_address())
        self.bridges.append(bridge)
        relay = self.actors[ranks[0]]
        opened = relay.open_relay.remote(bridge.address, bridge.token, ring.handle, len(ranks))
        handle = self._fetch([opened], "opening the relay")[0]
        refs = [self.actors[rank].attach.remote(handle, i) for i, rank in enumerate(ranks)]
        self._fetch(refs, "mapping the relay's ring")
        self._fetch([relay.attached.remote()], "mapping the relay's ring")

    def stop(self, *, is_broken: bool = False) -> None:
        """End the actors and what they hold; safe at any point of the start, and twice.

        A broken gang is not asked to leave by itself: some rank may wait for a peer that is gone.
        """
        with ExitStack() as last_to_first:  # each is tried, whatever becomes of the others
            if self.session is not None:
                last_to_first.callback(self.session.close)
            # Somebody else may have ended Ray under us; a call would start a new one.
            if ray.is_initialized():
                # A local Ray ends as a whole; asking it to free a group first can block where its raylet is gone.
                if self.placement is not None and not (self.session and self.session.owns_cluster):
                    last_to_first.callback(self.placement.remove)
                for actor in self.actors:
                    last_to_first.callback(ray.kill, actor)
            if self.ring is not None:
                last_to_first.callback(self.ring.close)
            for bridge in self.bridges:
                last_to_first.callback(bridge.close)
            if self.ring is not None and is_broken:
                self.ring.abort("the engine gave up")
            elif self.ring is not None and ray.is_initialized():
                self.ring.finish()
                ray.wait(self.run_refs, num_returns=len(self.run_refs), timeout=STOP_TIMEOUT_S)
        self.run_refs, self.bridges, self.actors = [], [], []
        self.ring, self.placement, self.session = None, None, None

    def _fetch(self, refs: list[Any], doing: str, deadline: float | None = None) -> list[Any]:
        seconds = self.config.start_timeout_s if deadline is None else max(0.0, deadline - time.monotonic())
        return fetch(refs, timeout_s=seconds, doing=doing)


def _in_rank_order(actors: list[Any], infos: list[RankInfo]) -> tuple[list[Any], list[RankInfo]]:
    here = host_id()
    order = sorted(range(len(actors)), key=lambda i: (infos[i].host_id != here, infos[i].host_id, i))
    return [actors[i] for i in order], [infos[i] for i in order]


def _check_one_rank_per_gpu(infos: list[RankInfo]) -> None:
    uuids = [info.gpu_uuid for info in infos if info.gpu_uuid is not None]
    if len(set(uuids)) < len(uuids):
        raise ResourceError("GPUs", f"{len(uuids)} different ones", ", ".join(sorted(set(uuids))))


def _pages_that_fit(need: PoolNeed, free_bytes: list[int], infos: list[RankInfo]) -> int:
    # A GPU is one rank's, a host's memory is shared by its CPU ranks.
    cpu_ranks = Counter(info.host_id for info in infos if info.gpu_uuid is None)
    shares = [GPU_POOL_SHARE if info.gpu_uuid else CPU_POOL_SHARE / cpu_ranks[info.host_id] for info in infos]
    fit = min(
        int(share * free) // page_bytes
        for share, free, page_bytes in zip(shares, free_bytes, need.page_bytes, strict=True)
    )
    if fit < need.least_pages:
        raise ResourceError("KV pages in the memory left", str(need.least_pages), str(fit))
    return min(fit, need.wanted_pages)
