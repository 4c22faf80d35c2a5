"""An answer leaves in one write; a head without a body does not wait for one; a connection that ends says so in an answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from starlette.responses import PlainTextResponse

from gateway.server import Endings, JoiningTransport, make_server
from kit.health import Health
from tests.bus.world import until

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


@dataclass
class Wire:
    """A transport that keeps what is written."""

    written: list[bytes] = field(default_factory=list)
    closed: bool = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
async def joining() -> tuple[JoiningTransport, Wire]:
    wire = Wire()
    return JoiningTransport(cast("asyncio.Transport", wire), asyncio.get_running_loop()), wire


async def test_head_and_body_are_one_write(joining: tuple[JoiningTransport, Wire]) -> None:
    transport, wire = joining
    transport.write(HEAD)
    transport.write(b"body")
    await asyncio.sleep(0)
    transport.write(b"more")
    assert wire.written == [HEAD + b"body", b"more"]


async def test_a_head_alone_leaves_in_the_same_turn(joining: tuple[JoiningTransport, Wire]) -> None:
    transport, wire = joining
    transport.write(HEAD)
    assert wire.written == []
    await asyncio.sleep(0)
    assert wire.written == [HEAD]


async def test_nothing_held_is_lost_at_the_end(joining: tuple[JoiningTransport, Wire]) -> None:
    transport, wire = joining
    transport.write(HEAD)
    transport.close()
    assert wire.written == [HEAD]
    assert cast("Any", transport).is_closing()


@asynccontextmanager
async def connected(endings: Endings) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection to a server of such endings."""
    server = make_server(PlainTextResponse("ok"), "127.0.0.1", 0, lambda: None, endings)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "it listens")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the connection lasts beyond the answer to one more request, as the answer says."""
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert await reader.readexactly(2) == b"ok"
    return b"connection: close" not in head


async def test_a_connection_lasts_until_the_gateway_drains_and_then_ends_with_an_answer() -> None:
    health = Health()
    async with connected(Endings(health=health)) as (reader, writer):
        assert [await ask(reader, writer) for _ in range(3)] == [True] * 3
        health.drain()
        assert not await ask(reader, writer)
        assert await reader.read() == b""


async def test_a_connection_ends_with_an_answer_after_its_time() -> None:
    async with connected(Endings(0.001)) as (reader, writer):
        async with asyncio.timeout(5):
            while await ask(reader, writer):
                pass
        assert await reader.read() == b""


async def test_connections_that_began_at_once_do_not_end_at_once() -> None:
    ends = {Endings(60).due_at(100.0) for _ in range(20)}
    assert len(ends) > 1
    assert all(145 <= end <= 175 for end in ends)
