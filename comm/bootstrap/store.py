# SPDX-License-Identifier: Apache-2.0
"""A store for the ranks to meet in: served by one process, reached by the others under host:port."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch.distributed import TCPStore

from distributed_fi.comm.deadline import check_timeout
from distributed_fi.errors import InvalidArgumentError, UnreachableError


def serve_store(host: str = "127.0.0.1", timeout_s: float = 30.0, *, port: int = 0) -> tuple[TCPStore, str]:
    """Serve a store from this process for as long as the returned object lives.

    Args:
        host: the address to listen on, and on this one only: whoever can connect can read and write.
        timeout_s: bound of every blocking call on the store, seconds.
        port: 0 takes a free one, which stays open from then on: no other process can take it in between.
    Returns:
        The store and its address "host:port", for connect_store.
    Raises:
        UnreachableError: this machine cannot listen there.
    """
    check_timeout(timeout_s)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise UnreachableError("store", f"{host}:{port}", f"cannot listen: {error}") from error
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        None,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect_store(address: str, timeout_s: float = 30.0) -> TCPStore:
    """Connect to a store that another process serves.

    Args:
        address: "host:port", an IPv6 host in brackets.
        timeout_s: bound of connecting and of every blocking call on the store, seconds.
    Raises:
        InvalidArgumentError: no such address can exist.
        UnreachableError: nobody answers there; names the address.
    """
    check_timeout(timeout_s)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidArgumentError("address", address, "host:port")
    try:
        return TCPStore(host.strip("[]"), int(port), None, is_master=False, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        problem = f"no store answers within {timeout_s:g} s"
        raise UnreachableError("store", address, problem) from error
