# SPDX-License-Identifier: Apache-2.0
"""The process of one local rank: joins the group, runs the functions it is handed, reports each."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection, wait
from types import FunctionType
from typing import Any, NamedTuple

import torch

from distributed_fi.comm.bootstrap.store import connect_store
from distributed_fi.comm.group import Group
from distributed_fi.comm.join import Member, connect
from distributed_fi.errors import CollectiveError, InvalidArgumentError

START_S = 120.0  # bound of joining: a spawned process imports torch, seconds on a busy machine


class Report(NamedTuple):
    """How one function ended on one rank."""

    is_ok: bool
    value: Any = None
    problem: str = ""  # one line
    traceback: str = ""
    is_collective: bool = False  # the error says that a peer failed, not why


def serve_rank(pipe: Connection, address: str, rank: int, world_size: int, timeout_s: float) -> None:
    """Join the group that meets at `address`, then run (function, args) after (function, args) from the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world_size))
    groups: list[Group] = []

    pipe.send_bytes(_report(lambda: groups.append(_join(address, rank, world_size, timeout_s))))
    while groups:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_report(partial(_run, message, groups[0])))


def portable(fn: Callable[..., Any]) -> Any:
    """`fn`, or what unpickles as `fn` in a process whose module path does not lead to its file.

    Raises:
        InvalidArgumentError: a lambda or nested function, which no other process can find.
    """
    if not isinstance(fn, FunctionType):
        return fn
    if "<" in fn.__qualname__:
        raise InvalidArgumentError("fn", fn.__qualname__, "a function at the top level of a file")
    path = getattr(sys.modules.get(fn.__module__), "__file__", None)
    return fn if path is None or fn.__module__ == "__main__" else _PortableFunction(fn, path)


class _PortableFunction:
    def __init__(self, fn: FunctionType, path: str):
        self._where = (fn.__module__, path, fn.__qualname__)

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_function, self._where


def _load_function(module_name: str, path: str, qualname: str) -> Any:
    value: Any = _load_module(module_name, path)
    for name in qualname.split("."):
        value = getattr(value, name)
    return value


def _load_module(name: str, path: str) -> Any:
    try:
        module = importlib.import_module(name)
        if getattr(module, "__file__", None) == path:
            return module
    except ImportError:
        module = None
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidArgumentError("fn", path, "a function of a Python file")
    # Under its name, so that classes defined there can be pickled back.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _join(address: str, rank: int, world_size: int, timeout_s: float) -> Group:
    """Group.from_store, with a limit of its own for joining."""
    own = Member(rank, world_size, torch.device("cpu"), timeout_s, "world")
    if world_size == 1:
        return Group.single(timeout_s=timeout_s, name=own.name)
    _, backend = connect(connect_store(address, START_S), own, host=None, limit_s=START_S)
    return Group(backend, rank, world_size, device=own.device, timeout_s=timeout_s, name=own.name)


def _run(message: bytes, group: Group) -> Any:
    fn, args = pickle.loads(message)
    return fn(group, *args)


def _report(action: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps(Report(True, action()))
    except Exception as error:
        is_collective = isinstance(error, CollectiveError)
        problem = f"{type(error).__name__}: {error}"
        return pickle.dumps(Report(False, None, problem, traceback.format_exc(), is_collective))


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
