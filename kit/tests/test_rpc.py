"""Calls between services: who asks is verified, a refusal arrives whole, a fault says nothing of itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kit.clock import HeldClock
from kit.problems import FieldError, Refusal
from kit.rpc import Server, call_metadata, create_channel, current_actor, is_serving, refusal_of
from kit.telemetry import TraceContext, current_request_id, current_trace, request_context
from kit.tokens import TokenMinter, TokenVerifier

REFUSAL = Refusal("card_taken", 409, "The card is taken", "Use another card.", [FieldError("/card", "taken", "Held by another member.")])


async def who(_request: bytes, _context: object) -> bytes:
    trace = current_trace()
    return f"{current_actor().subject} {current_request_id()} {trace.trace_id if trace else '-'}".encode()


async def refuse(_request: bytes, _context: object) -> bytes:
    raise REFUSAL


async def fail(_request: bytes, _context: object) -> bytes:
    raise ValueError("13800138000")


async def find_database_away(_request: bytes, _context: object) -> bytes:
    raise ConnectionRefusedError


async def group(_request: bytes, _context: object) -> bytes:
    return b"done"


def add_servicer(server: grpc.aio.Server) -> None:
    methods: dict[str, Callable[[bytes, object], Awaitable[bytes]]] = {
        "Who": who, "Refuse": refuse, "Fail": fail, "FindDatabaseAway": find_database_away, "Group": group,
    }  # fmt: skip
    handlers: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))


@pytest.fixture
def minted() -> tuple[str, TokenVerifier]:
    key = Ed25519PrivateKey.generate()
    clock = HeldClock(datetime(2026, 11, 21, tzinfo=UTC))
    minter = TokenMinter(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), clock)
    verifier = TokenVerifier(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), clock)
    return minter.mint("c1", ("till",), None), verifier


@pytest.fixture
async def channel(minted: tuple[str, TokenVerifier]) -> AsyncIterator[grpc.aio.Channel]:
    server = Server(minted[1], [add_servicer], tokens_inside=["/test.Service/Group"])
    port = await server.start("127.0.0.1:0")
    async with create_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def call(channel: grpc.aio.Channel, method: str, token: str | None = None) -> bytes:
    stub = channel.unary_unary(f"/test.Service/{method}", bytes, bytes)
    answer: bytes = await stub(b"", metadata=call_metadata(token), timeout=5)
    return answer


async def test_a_call_carries_actor_request_id_and_trace(channel: grpc.aio.Channel, minted: tuple[str, TokenVerifier]) -> None:
    trace = TraceContext.new()
    with request_context(trace, "r-1"):
        assert await call(channel, "Who", minted[0]) == f"c1 r-1 {trace.trace_id}".encode()


async def test_a_call_without_a_valid_token_is_refused(channel: grpc.aio.Channel) -> None:
    for token in (None, "x.y.z"):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(channel, "Who", token)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        refusal = refusal_of(raised.value)
        assert refusal is not None
        assert (refusal.code, refusal.status) == ("unauthenticated", 401)


async def test_a_method_with_tokens_inside_needs_none_outside(channel: grpc.aio.Channel) -> None:
    assert await call(channel, "Group") == b"done"


async def test_a_refusal_arrives_whole(channel: grpc.aio.Channel, minted: tuple[str, TokenVerifier]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(channel, "Refuse", minted[0])
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert vars(refusal) == vars(REFUSAL)


async def test_a_fault_tells_the_caller_nothing(
    channel: grpc.aio.Channel, minted: tuple[str, TokenVerifier], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(channel, "Fail", minted[0])
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert raised.value.details() == "internal error"
    assert refusal_of(raised.value) is None
    assert [record.getMessage() for record in caplog.records if record.name == "kit.rpc"] == ["call failed"]


async def test_a_database_that_is_away_for_a_moment_is_no_fault_and_the_call_may_be_repeated(
    channel: grpc.aio.Channel, minted: tuple[str, TokenVerifier], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(channel, "FindDatabaseAway", minted[0])
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_health_needs_no_token_and_ends_with_the_server(minted: tuple[str, TokenVerifier]) -> None:
    server = Server(minted[1], [])
    port = await server.start("127.0.0.1:0")
    async with create_channel(f"127.0.0.1:{port}") as channel:
        assert await is_serving(channel)
        await server.stop(0)
        assert not await is_serving(channel)


async def test_calls_go_in_turn_to_all_that_a_name_stands_for_and_to_others_when_one_goes(minted: tuple[str, TokenVerifier]) -> None:
    called: list[int] = []

    def counting(number: int) -> Callable[[grpc.aio.Server], None]:
        async def count(_request: bytes, _context: object) -> bytes:
            called.append(number)
            return b""

        handler: Any = grpc.unary_unary_rpc_method_handler(count)
        return lambda server: server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Group": handler}),))

    servers = [Server(minted[1], [counting(number)], tokens_inside=["/test.Service/Group"]) for number in range(2)]
    ports = [await server.start("127.0.0.1:0") for server in servers]
    async with create_channel("ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)) as channel:
        async with asyncio.timeout(10):
            while set(called) != {0, 1}:
                await call(channel, "Group")
        await servers[0].stop(0)
        called.clear()
        for _ in range(20):
            await call(channel, "Group")
    await servers[1].stop(0)
    assert called == [1] * 20
