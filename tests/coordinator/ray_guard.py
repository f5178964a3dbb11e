# SPDX-License-Identifier: Apache-2.0
"""Step hooks for the test beside this file: Ray's API raises while a step runs, in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import ray
import ray.actor
import ray.experimental.internal_kv
import ray.remote_function

ENTRY_POINTS = (
    (ray, "get"),
    (ray, "put"),
    (ray, "wait"),
    (ray, "kill"),
    (ray, "cancel"),
    (ray, "get_actor"),
    (ray, "nodes"),
    (ray, "cluster_resources"),
    (ray, "available_resources"),
    (ray, "get_runtime_context"),
    (ray.actor.ActorClass, "remote"),
    (ray.actor.ActorClass, "_remote"),
    (ray.experimental.internal_kv, "_internal_kv_get"),
    (ray.experimental.internal_kv, "_internal_kv_put"),
    (ray.actor.ActorMethod, "remote"),
    (ray.actor.ActorMethod, "_remote"),
    (ray.remote_function.RemoteFunction, "_remote"),
)


def _raise(*args: object, **kwargs: object) -> None:
    raise AssertionError("Ray was called inside a step")


@contextmanager
def forbid_ray(role: str) -> Iterator[None]:
    with _patched():
        yield


@contextmanager
def call_ray_in_rank_1(role: str) -> Iterator[None]:
    """The planted call that proves the guard works: it must end the run."""
    with _patched():
        if role == "rank 1":
            ray.put("planted")
        yield


@contextmanager
def call_ray_in_the_coordinator(role: str) -> Iterator[None]:
    with _patched():
        if role == "coordinator":
            ray.put("planted")
        yield


@contextmanager
def _patched() -> Iterator[None]:
    patches = [mock.patch.object(owner, name, _raise) for owner, name in ENTRY_POINTS]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()
