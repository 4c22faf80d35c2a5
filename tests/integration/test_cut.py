"""The relay does what networks do: what the fault tests rest on."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.integration.cut import Relay


@pytest.fixture
def broker() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


@pytest.fixture
def relay(tmp_path: Path, broker: socket.socket) -> Iterator[Relay]:
    with Relay(tmp_path / "relay", broker.getsockname) as relay:
        yield relay


@contextmanager
def connected(relay: Relay, broker: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client, and the broker's end of its connection, after each has heard the other."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(relay.address))
        end, _ = broker.accept()
        with end:
            end.settimeout(5)
            client.sendall(b"hello")
            assert end.recv(5) == b"hello"
            end.sendall(b"yes")
            assert client.recv(3) == b"yes"
            yield client, end


def is_broken(end: socket.socket) -> bool:
    try:
        return end.recv(1) == b""
    except ConnectionError:
        return True


def hears_nothing(end: socket.socket) -> bool:
    end.settimeout(0.2)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(5)
    return False


def test_a_cut_breaks_what_there_is_and_refuses_what_comes_until_it_is_mended(relay: Relay, broker: socket.socket) -> None:
    with connected(relay, broker) as ends:
        relay.cut()
        assert all(is_broken(end) for end in ends)
    with socket.socket(socket.AF_UNIX) as refused:
        refused.settimeout(5)
        refused.connect(str(relay.address))
        assert is_broken(refused)
    relay.mend()
    # The broker saw those come and go that were refused.
    broker.accept()[0].close()
    with connected(relay, broker):
        pass


def test_what_is_held_back_arrives_in_the_end(relay: Relay, broker: socket.socket) -> None:
    with connected(relay, broker) as (client, end):
        relay.hold()
        client.sendall(b"late")
        assert hears_nothing(end)
        relay.mend()
        assert end.recv(4) == b"late"


def test_a_silenced_connection_tells_nobody_even_that_it_ended_while_new_ones_work(relay: Relay, broker: socket.socket) -> None:
    with connected(relay, broker) as (client, end):
        relay.silence()
        client.sendall(b"lost")
        client.close()
        assert hears_nothing(end)
        with connected(relay, broker):
            pass
        relay.mend()
        assert is_broken(end)


def test_one_of_several_is_broken(relay: Relay, broker: socket.socket) -> None:
    with connected(relay, broker) as one, connected(relay, broker) as other:
        relay.break_one(Random(1))
        assert [hears_nothing(client) for client, _ in (one, other)].count(True) == 1
