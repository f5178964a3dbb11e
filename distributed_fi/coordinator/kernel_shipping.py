# SPDX-License-Identifier: Apache-2.0
"""Kernels are built once for a cluster: here, or by one rank where this host has no compiler, and sent to all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import ray

from distributed_fi.coordinator.ray_session import fetch
from distributed_fi.errors import CompilerNotFoundError, KernelBuildError
from distributed_fi.kernels.jit.build import build_all
from distributed_fi.kernels.jit.bundle import pack
from distributed_fi.kernels.jit.spec import KernelSpec
from distributed_fi.workers.rank_info import RankInfo

_log = logging.getLogger(__name__)


def ship_kernels(
    specs: Sequence[KernelSpec], actors: Sequence[Any], infos: Sequence[RankInfo], *, timeout_s: float
) -> None:
    """Give every rank of a GPU its kernels, through Ray's object store; each checks their digests on arrival.

    Args:
        specs: kernels to build.
        actors: one for each of `infos`.
        timeout_s: deadline of each step.
    Raises:
        StepTimeoutError: a rank did not answer.
        InvalidArgumentError: what arrived is not what was sent.
    Notes: where nobody can build, that is logged, and the ranks use the torch form of those operators.
    """
    for arch in sorted({info.kernel_arch for info in infos if info.kernel_arch is not None} if specs else set()):
        ranks = [actor for actor, info in zip(actors, infos, strict=True) if info.kernel_arch == arch]
        try:
            bundle = _build(specs, arch, ranks[0], timeout_s)
        except (CompilerNotFoundError, KernelBuildError) as error:
            _log.warning("no kernels for %s, torch serves their operators: %s", arch, error)
            continue
        fetch([rank.receive_kernels.remote(bundle) for rank in ranks], timeout_s=timeout_s, doing="receiving kernels")


def _build(specs: Sequence[KernelSpec], arch: str, rank: Any, timeout_s: float) -> Any:
    """Reference to the archive of the kernels of one architecture."""
    try:
        return ray.put(pack(build_all(specs, arch)))
    except CompilerNotFoundError as error:
        _log.info("a rank builds the kernels for %s: %s", arch, error)
    built = rank.build_kernels.remote(list(specs), arch)
    # Waited for here, where its error says why nobody could build.
    fetch([built], timeout_s=timeout_s, doing="building kernels")
    return built
