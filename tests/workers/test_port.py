"""One port for several processes of one relay, and for nobody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from relay.core.errors import StartupError
from relay.workers.port import Port


def number_of(port: Port) -> int:
    return int(port.address.rpartition(":")[2])


@pytest.fixture
def port() -> Iterator[Port]:
    with Port("127.0.0.1", 0) as reserved:
        yield reserved


def listening(port: Port, stack: ExitStack) -> socket.socket:
    (sock,) = port.sockets()
    stack.enter_context(sock)
    sock.listen()
    sock.setblocking(False)
    return sock


def accepted(sock: socket.socket, stack: ExitStack) -> int:
    count = 0
    while True:
        try:
            stack.enter_context(closing(sock.accept()[0]))
        except BlockingIOError:
            return count
        count += 1


def test_a_reserved_port_has_nobody_listening(port: Port) -> None:
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", number_of(port)))


def test_all_who_listen_get_connections_and_one_who_went_gets_none(port: Port) -> None:
    with ExitStack() as stack:
        workers = [listening(port, stack) for _ in range(3)]
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", number_of(port)), 5))
        counts = [accepted(worker, stack) for worker in workers]
        assert sum(counts) == 60
        assert all(counts)
        workers.pop().close()
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", number_of(port)), 5))
        assert sum(accepted(worker, stack) for worker in workers) == 60


@pytest.mark.parametrize("used", [False, True], ids=["nobody listens yet", "workers listen"])
def test_neither_a_second_relay_with_workers_nor_one_without_gets_in(port: Port, used: bool) -> None:
    with ExitStack() as stack:
        if used:
            listening(port, stack)
        with pytest.raises(StartupError, match=f"server: 127.0.0.1:{number_of(port)} is in use"):
            Port("127.0.0.1", number_of(port))
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", number_of(port)))


def test_a_port_somebody_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(StartupError, match="is in use"):
            Port("127.0.0.1", taken.getsockname()[1])


def test_a_port_somebody_shares_with_his_own_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        with pytest.raises(StartupError, match="is in use"):
            Port("127.0.0.1", taken.getsockname()[1])


def test_a_port_with_connections_of_a_relay_that_went_can_be_had_again() -> None:
    with ExitStack() as stack:
        with Port("127.0.0.1", 0) as old, ExitStack() as gone:
            number = number_of(old)
            worker = listening(old, gone)
            client = stack.enter_context(socket.create_connection(("127.0.0.1", number), 5))
            stack.enter_context(closing(worker.accept()[0]))  # lives on while it drains
        Port("127.0.0.1", number).close()
        client.close()
        Port("127.0.0.1", number).close()


def test_an_address_that_is_not_ours_is_refused_in_words() -> None:
    with pytest.raises(StartupError, match=r"server: 192\.0\.2\.1:0 cannot be bound"):
        Port("192.0.2.1", 0)
    with pytest.raises(StartupError, match=r"server: no-such-host\.invalid:0 cannot be bound"):
        Port("no-such-host.invalid", 0)


def test_a_name_of_several_addresses_has_one_port_on_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
    with Port("both", 0) as port, ExitStack() as stack:
        socks = port.sockets()
        for sock in socks:
            stack.enter_context(sock)
        assert [sock.getsockname() for sock in socks] == [
            ("127.0.0.1", number_of(port)),
            ("127.0.0.2", number_of(port)),
        ]
