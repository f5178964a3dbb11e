# SPDX-License-Identifier: Apache-2.0
"""The Ray actor that owns one device: Ray starts it, loads it and hears of its death; steps go by the ring."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import ray
import torch

from distributed_fi.comm.bootstrap.store import connect_store, serve_store
from distributed_fi.comm.group import Group
from distributed_fi.config import EngineConfig
from distributed_fi.errors import PlanError
from distributed_fi.kernels.jit.build import build_all
from distributed_fi.kernels.jit.bundle import pack, receive_bundle
from distributed_fi.kernels.jit.spec import KernelSpec
from distributed_fi.mesh import MeshCoord
from distributed_fi.models.decoder import DecoderModel, load_model
from distributed_fi.models.loaders.open import open_checkpoint
from distributed_fi.plan.sharding import shard_model
from distributed_fi.workers.rank import serve
from distributed_fi.workers.rank_info import RankInfo, rank_info
from distributed_fi.workers.ring.bridge import BridgeClient
from distributed_fi.workers.ring.reader import RingReader
from distributed_fi.workers.ring.segment import RingHandle, can_attach
from distributed_fi.workers.ring.writer import RingWriter
from distributed_fi.workers.runner import Runner
from distributed_fi.workers.step_hook import load_step_hook

if TYPE_CHECKING:
    from torch.distributed import Store


class RankActor:
    """One rank. Methods run in the order they are called, but for `loaded`, which answers at any time."""

    def __init__(self, config: EngineConfig, device_type: str):
        self.config = config
        # Ray shows a GPU actor only its own GPU, so that is ordinal 0 here; its UUID tells which it is.
        self.device = torch.device("cuda", 0) if device_type == "cuda" else torch.device("cpu")
        self.loaded_bytes, self.total_bytes = 0, 0
        self.store: Store | None = None
        self.readers: list[RingReader] = []
        self.relay: tuple[RingWriter, BridgeClient] | None = None

    def info(self) -> RankInfo:
        return rank_info(node_ip=ray.util.get_node_ip_address(), device=self.device)

    def serve_store(self) -> str:
        """Open the store through which the ranks find each other; its address, for the others."""
        self.store, address = serve_store(ray.util.get_node_ip_address(), self.config.start_timeout_s)
        return address

    def join(self, rank: int, store_address: str, ranks_on_host: int) -> None:
        """Take a rank number and join the collectives of its tensor-parallel group."""
        self.coord: MeshCoord = self.config.mesh.coord(rank)
        if self.device.type == "cpu":
            # Ray gives an actor without CPUs of its own one thread.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_on_host))
        tp, timeout_s = self.config.mesh.tp, self.config.collective_timeout_s
        if tp == 1:
            self.group = Group.single(self.device, timeout_s=timeout_s)
            return
        store = self.store or connect_store(store_address, self.config.start_timeout_s)
        self.group = Group.from_store(
            store,
            self.coord.tp_rank,
            tp,
            device=self.device,
            timeout_s=timeout_s,
            name=f"tp{self.coord.dp_rank}",
            # Not the host name's address, which is a loopback one on some systems.
            host=ray.util.get_node_ip_address(),
        )

    def receive_kernels(self, bundle: bytes) -> int:
        """Use the kernels of an archive, once its digests are checked; returns how many they are."""
        return receive_bundle(bundle, "the archive the coordinator sent")

    def build_kernels(self, specs: list[KernelSpec], arch: str) -> bytes:
        """An archive of kernels, built on this host because the coordinator's has no compiler."""
        return pack(build_all(specs, arch))

    def load(self, dtype: str, max_position: int) -> int:
        """Read this rank's slice of the weights; returns the device memory free for KV pages, in bytes."""
        checkpoint = open_checkpoint(self.config.model, self.config.load_format, seed=self.config.seed)
        shard = shard_model(checkpoint.config, self.config.mesh, self.coord.rank)
        self.model: DecoderModel = load_model(
            checkpoint,
            shard,
            self.group,
            dtype=getattr(torch, dtype),
            device=self.device,
            max_position=max_position,
            on_progress=self._on_progress,
        )
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return _free_host_bytes()

    def loaded(self) -> tuple[int, int]:
        """Bytes of weights read so far, and in all."""
        return self.loaded_bytes, self.total_bytes

    def allocate(self, num_pages: int) -> None:
        self.hook = load_step_hook(self.config.step_hook)
        self.runner = Runner(
            self.model,
            page_size=self.config.page_size,
            num_pages=num_pages,
            max_num_seqs=self.config.max_num_seqs,
        )

    def attach(self, handle: RingHandle, reader_idx: int) -> bool:
        """Map the ring if it is in this host's memory, which its nonce proves; False where it is not."""
        try:
            self.reader = RingReader.attach(handle, reader_idx)
        except PlanError:
            return False
        return True

    def open_probe(self) -> RingHandle:
        """Put a nonce into this host's shared memory, for others to look whether it is theirs as well."""
        self.probe = RingWriter.create(1, slot_bytes=64, reply_bytes=64, epoch=0)
        return self.probe.handle

    def can_see(self, probe: RingHandle) -> bool:
        return can_attach(probe)

    def close_probe(self) -> None:
        self.probe.close()

    def open_relay(self, address: tuple[str, int], token: bytes, model: RingHandle, num_readers: int) -> RingHandle:
        """Become the relay of this host: own a ring like `model` for its ranks, joined to that one over TCP."""
        writer = RingWriter.create(
            num_readers,
            slot_bytes=model.layout.slot_bytes,
            reply_bytes=model.layout.reply_bytes,
            num_slots=model.layout.num_slots,
            epoch=model.epoch,
            spin_us=0,  # its threads share the interpreter with this rank's steps
        )
        try:
            self.relay = (writer, BridgeClient(address, token, writer))
        except BaseException:
            writer.close()
            raise
        return writer.handle

    def attached(self) -> None:
        """Wait until every rank of this host has mapped the relay's ring; then its name goes."""
        if self.relay is not None:
            self.relay[0].wait_attached(self.config.start_timeout_s)

    def run(self, epoch: int) -> int:
        """Serve steps until the coordinator stops; Ray hears from this rank again only when it ends."""
        try:
            return serve(self.reader, self.runner, self.coord, epoch=epoch, hook=self.hook)
        except BaseException as error:
            self.reader.fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._close()

    def _on_progress(self, done_bytes: int, total_bytes: int) -> None:
        self.loaded_bytes, self.total_bytes = done_bytes, total_bytes

    def _close(self) -> None:
        self.reader.close()
        if self.relay is not None:
            writer, client = self.relay
            client.close()
            writer.close()
        self.group.close()


def rank_actor_class() -> ray.actor.ActorClass[RankActor]:
    """RankActor as Ray runs it: a second thread answers `loaded` while the first reads weights."""
    return ray.remote(concurrency_groups={"progress": 1})(RankActor)


def _free_host_bytes() -> int:
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
