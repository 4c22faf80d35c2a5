"""An answer leaves in one write; a head without a body does not wait for one."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from gateway.server import JoiningTransport

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
