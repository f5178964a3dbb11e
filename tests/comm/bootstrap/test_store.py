# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from distributed_fi.comm.bootstrap.store import connect_store, serve_store
from distributed_fi.errors import InvalidArgumentError, UnreachableError


def test_what_one_side_writes_the_other_reads() -> None:
    server, address = serve_store()
    client = connect_store(address)
    client.set("key", b"a\0b")
    assert server.get("key") == b"a\0b"


def test_ports_are_free_ones_and_differ() -> None:
    stores = [serve_store() for _ in range(3)]
    assert len({address for _, address in stores}) == 3


def test_the_store_listens_on_its_own_address_only() -> None:
    _store, address = serve_store("127.0.0.1")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", int(address.split(":")[1])), timeout=5)


def test_a_port_in_use_is_named() -> None:
    _store, address = serve_store()
    with pytest.raises(UnreachableError, match=f"store at {address}: cannot listen"):
        serve_store(port=int(address.split(":")[1]))


def test_nobody_at_the_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UnreachableError, match=f"store at 127.0.0.1:{port}: no store answers within 0.5 s"):
        connect_store(f"127.0.0.1:{port}", timeout_s=0.5)


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:x", "host:0", "host:70000"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match="address: expected host:port, got"):
        connect_store(address)
