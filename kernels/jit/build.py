# SPDX-License-Identifier: Apache-2.0
"""Builds kernels: what the cache lacks is compiled, all at once, and each is in the cache as soon as it is linked."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from distributed_fi.errors import KernelBuildError
from distributed_fi.kernels.jit.artifact import (
    LIBRARY,
    LOG,
    Artifact,
    Manifest,
    artifact_key,
    file_digest,
    write_manifest,
)
from distributed_fi.kernels.jit.artifact import source_key as source_key_of
from distributed_fi.kernels.jit.bundle import find_in_bundles
from distributed_fi.kernels.jit.cache import ArtifactCache, kernel_cache
from distributed_fi.kernels.jit.commands import LINKED, Step, build_steps, ninja_file
from distributed_fi.kernels.jit.failure import build_error
from distributed_fi.kernels.jit.parallelism import build_jobs
from distributed_fi.kernels.jit.progress import OnProgress, build_bar
from distributed_fi.kernels.jit.spec import KernelSpec, check_arch
from distributed_fi.kernels.jit.toolchain import Toolchain, find_toolchain

BUILD_DEADLINE_S = 1200.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Order:
    """One kernel to be compiled, under the number that names its files."""

    index: int
    spec: KernelSpec
    source_key: str
    key: str
    steps: list[Step]


def build_kernel(spec: KernelSpec, arch: str) -> Artifact:
    """Build one kernel, or find it built; as `build_all`."""
    return build_all([spec], arch)[0]


def build_all(specs: Sequence[KernelSpec], arch: str, on_progress: OnProgress | None = None) -> list[Artifact]:
    """Artifacts of kernels, in order; those that neither a bundle nor the cache has are compiled in parallel.

    Args:
        specs: kernels, which may repeat.
        arch: "sm_90a", … or "cpu" for kernels without CUDA sources.
        on_progress: called with (name, number done, number to build) as each is built; None for a bar on a terminal.
    Raises:
        CompilerNotFoundError: something must be compiled and a compiler is missing.
        KernelBuildError: a compiler failed. Every other kernel is built and kept all the same.
        NotFoundError: a source is missing.
        UnsupportedError: CUDA sources for "cpu".
    Notes: no lock is held, so none can be waited for: processes that build the same kernel at once do the work twice,
        and use the artifact of the one that was first.
    """
    for spec in specs:
        check_arch(spec, arch)
    cache = kernel_cache()
    source_keys = {spec: source_key_of(spec, arch) for spec in specs}
    bundled = {spec: find_in_bundles(spec.name, arch, key, cache) for spec, key in source_keys.items()}
    built = {spec: artifact for spec, artifact in bundled.items() if artifact is not None}
    missing = {spec: key for spec, key in source_keys.items() if spec not in built}
    if missing:
        built |= _find_or_compile(missing, arch, cache, on_progress)
    return [built[spec] for spec in specs]


def _find_or_compile(
    source_keys: dict[KernelSpec, str], arch: str, cache: ArtifactCache, on_progress: OnProgress | None
) -> dict[KernelSpec, Artifact]:
    toolchain = find_toolchain(arch, needs_nvcc=any(spec.has_device_code for spec in source_keys))
    built: dict[KernelSpec, Artifact] = {}
    orders: list[_Order] = []
    for spec, source_key in source_keys.items():
        key = artifact_key(source_key, toolchain)
        if (artifact := cache.find(spec.name, arch, key)) is not None:
            built[spec] = artifact
        else:
            steps = build_steps(spec, arch, toolchain, len(orders))
            orders.append(_Order(len(orders), spec, source_key, key, steps))
    if orders:
        names = [order.spec.name for order in orders]
        with build_bar(names) if on_progress is None else nullcontext(on_progress) as report:
            built |= _Build(cache, toolchain, arch, orders).run(report)
    return built


class _Build:
    """One run of ninja over all kernels that are missing."""

    def __init__(self, cache: ArtifactCache, toolchain: Toolchain, arch: str, orders: list[_Order]):
        self._cache, self._toolchain, self._arch, self._orders = cache, toolchain, arch, orders
        self._built: dict[KernelSpec, Artifact] = {}

    def run(self, report: OnProgress) -> dict[KernelSpec, Artifact]:
        start = time.monotonic()
        with self._cache.staging() as folder:
            for order in self._orders:
                (folder / str(order.index)).mkdir()
            (folder / "build.ninja").write_text(ninja_file([order.steps for order in self._orders]))
            self._run_ninja(folder, report)
            for order in self._orders:
                if order.spec not in self._built:
                    raise self._failure(folder, order, time.monotonic() - start)
        names = ", ".join(order.spec.name for order in self._orders)
        _log.info("built %s for %s in %.1f s", names, self._arch, time.monotonic() - start)
        return self._built

    def _run_ninja(self, folder: Path, report: OnProgress) -> None:
        # Were this process killed, ninja would end at its next line of output, which nobody reads.
        command = [str(self._toolchain.ninja), "-C", str(folder), "-j", str(build_jobs()), "-k", "0"]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as ninja:
            timer = threading.Timer(BUILD_DEADLINE_S, ninja.terminate)
            timer.daemon = True
            timer.start()
            try:
                assert ninja.stdout is not None
                for line in ninja.stdout:
                    _, linked, index = line.rpartition(LINKED)
                    if linked and index.strip().isdecimal() and not line.startswith("FAILED"):
                        self._finish(folder, self._orders[int(index)], report)
            finally:
                timer.cancel()
                ninja.terminate()  # it ends its compilers, then itself

    def _finish(self, folder: Path, order: _Order, report: OnProgress) -> None:
        target = folder / str(order.index)
        library = target / LIBRARY
        if not library.is_file():
            return  # ninja announces a step that failed as well
        (target / LOG).write_text(_whole_log(folder, order))
        manifest = Manifest(
            name=order.spec.name,
            arch=self._arch,
            source_key=order.source_key,
            key=order.key,
            toolchain=tuple(self._toolchain.identity()),
            library_sha256=file_digest(library),
        )
        write_manifest(target, manifest)
        self._built[order.spec] = self._cache.publish(target, manifest)
        report(order.spec.name, len(self._built), len(self._orders))

    def _failure(self, folder: Path, order: _Order, seconds: float) -> KernelBuildError:
        log = folder / str(order.index) / LOG
        log.write_text(_whole_log(folder, order))
        kept = str(self._cache.keep_log(log, order.spec.name))
        if seconds >= BUILD_DEADLINE_S:
            return KernelBuildError(order.spec.name, "compiler", f"not done after {BUILD_DEADLINE_S:.0f} s", kept)
        failed = next((step for step in order.steps if not (folder / step.output).is_file()), order.steps[-1])
        return build_error(order.spec, failed, _read(folder / failed.log), kept)


def _whole_log(folder: Path, order: _Order) -> str:
    """Each command with what it said."""
    return "\n".join(f"$ {' '.join(step.command)}\n{_read(folder / step.log)}" for step in order.steps)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
