"""The operators' port says how a process stands, changes what it logs for a while, and takes nothing else."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kit import metrics
from kit.health import Health
from kit.ops import BODY_LIMIT, CannotListen, OpsSettings, address_of, operated, stop_when_told
from kit.rpc import Server, create_channel
from kit.settings import SettingsInvalid, load
from kit.telemetry import LogLevels
from kit.tokens import TokenVerifier


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Ops:
    """A client of the port."""

    def __init__(self, port: int, health: Health) -> None:
        self.port = port
        self.health = health

    async def send(self, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        status, _, answer = await self.send(f"{method} {path} HTTP/1.1\r\nHost: ops\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return status, json.loads(answer)


@asynccontextmanager
async def running(port: int | None = None, **environment: str) -> AsyncIterator[Ops]:
    port = port or free_port()
    settings = load(OpsSettings, {"OPS_LISTEN": f"127.0.0.1:{port}", **environment})
    async with operated("member", "serve", settings) as health:
        yield Ops(port, health)


async def away() -> str:
    return "away"


async def fine() -> str:
    return ""


async def test_startup_liveness_and_readiness_are_apart() -> None:
    async with running() as ops:
        assert await ops.ask("GET", "/livez") == (200, {"status": "ok", "reasons": []})
        assert (await ops.ask("GET", "/startupz"))[0] == 503
        assert await ops.ask("GET", "/readyz") == (503, {"status": "not_ready", "reasons": ["starting"]})
        ops.health.start()
        assert (await ops.ask("GET", "/startupz"))[0] == 200
        assert await ops.ask("GET", "/readyz") == (200, {"status": "ok", "reasons": []})
        ops.health.drain()
        assert await ops.ask("GET", "/readyz") == (503, {"status": "not_ready", "reasons": ["draining"]})
        assert (await ops.ask("GET", "/livez"))[0] == 200
        assert (await ops.ask("GET", "/startupz"))[0] == 200


async def test_readiness_names_what_is_away_and_what_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.health.CHECK_SECONDS", 0.05)

    async def hangs() -> str:
        await asyncio.Event().wait()
        return ""

    async def breaks() -> str:
        raise ConnectionRefusedError

    async with running() as ops:
        ops.health.start()
        for name, check in (("database", away), ("bus", fine), ("clickhouse", hangs), ("other", breaks)):
            ops.health.require(name, check)
        reasons = ["database: away", "clickhouse: no answer", "other: ConnectionRefusedError"]
        assert await ops.ask("GET", "/readyz") == (503, {"status": "not_ready", "reasons": reasons})


async def test_those_who_ask_at_once_have_one_answer() -> None:
    asked = 0

    async def count() -> str:
        nonlocal asked
        asked += 1
        return ""

    health = Health()
    health.start()
    health.require("database", count)
    assert await asyncio.gather(*(health.reasons() for _ in range(10))) == [[]] * 10
    assert asked == 1


async def test_grpc_health_says_the_same() -> None:
    health = Health()
    state = ""

    async def check() -> str:
        return state

    health.require("database", check)
    verifier = TokenVerifier.__new__(TokenVerifier)
    server = Server(verifier, [], health=health)
    port = await server.start("127.0.0.1:0")
    async with create_channel(f"127.0.0.1:{port}") as channel:

        async def serving(service: str) -> bool:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        names = ("live", "startup", "ready", "")
        assert [await serving(name) for name in names] == [True, False, False, False]
        health.start()
        assert [await serving(name) for name in names] == [True, True, True, True]
        state, health._asking = "away", None
        assert [await serving(name) for name in names] == [True, True, False, False]
        health.drain()
        assert [await serving(name) for name in names] == [True, True, False, False]
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await serving("nobody")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    await server.stop(0)


async def test_metrics_are_those_of_the_part() -> None:
    async with running() as ops:
        status, headers, body = await ops.send(b"GET /metrics HTTP/1.1\r\nHost: ops\r\n\r\n")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    text = body.decode()
    assert 'regulars_build_info{part="serve",service="member",version="0.1.0"} 1.0' in text
    assert "regulars_writer_retries_total 0.0" in text
    assert "regulars_relay_leading" not in text
    assert "process_open_fds" in text


async def test_the_loops_lag_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.ops.TICK_SECONDS", 0.001)
    counted = metrics.EVENT_LOOP_LAG.of()
    before = sum(bucket.get() for bucket in counted._buckets)
    async with running():
        async with asyncio.timeout(10):
            while sum(bucket.get() for bucket in counted._buckets) < before + 3:  # noqa: ASYNC110  # what is waited for sets no event
                await asyncio.sleep(0)


async def test_a_level_is_changed_for_a_while() -> None:
    bus, root = logging.getLogger("kit.bus"), logging.getLogger("kit")
    async with running() as ops:
        status, said = await ops.ask("PUT", "/log-level", b'{"level": "debug", "logger": "kit.bus", "minutes": 1}')
        assert (status, said["changed"]) == (200, [{"logger": "kit.bus", "level": "debug", "seconds_left": 60}])
        assert (bus.isEnabledFor(logging.DEBUG), root.level) == (True, logging.NOTSET)
        status, said = await ops.ask("PUT", "/log-level", b'{"level": "error"}')
        assert [each["logger"] for each in said["changed"]] == ["kit.bus", "kit", "member"]
        assert (await ops.ask("GET", "/log-level"))[1]["changed"] == said["changed"]
        assert root.level == logging.ERROR
        # No library tells more than before.
        assert logging.getLogger("asyncpg").level == logging.NOTSET
    assert (bus.level, root.level) == (logging.NOTSET, logging.NOTSET)


@pytest.mark.parametrize(
    "name, is_known",
    [
        ("kit", True),
        ("kit.bus", True),
        ("kit.bus.kafka.subscription", True),
        ("kit.nothing", False),
        ("kit.bus.relay.py", False),
        ("kit..bus", False),
        ("kit.../etc", False),
        ("gateway.lanes", False),
        ("asyncpg", False),
    ],
)
def test_a_logger_of_a_part_of_the_program_is_known_though_it_is_not_loaded(name: str, is_known: bool) -> None:  # noqa: FBT001
    # In a process of its own, which has loaded next to nothing.
    code = (
        "import asyncio, sys\n"
        "from kit.telemetry import LoggerUnknown, LogLevels\n"
        "async def act():\n"
        "    try: LogLevels(('kit', 'member')).change('debug', sys.argv[1], 9)\n"
        "    except LoggerUnknown: return 'unknown'\n"
        "    assert 'kit.bus' not in sys.modules\n"
        "    return 'known'\n"
        "print(asyncio.run(act()))\n"
    )
    said = subprocess.run([sys.executable, "-c", code, name], check=True, capture_output=True, text=True).stdout
    assert said == ("known\n" if is_known else "unknown\n")


async def test_a_level_goes_back_by_itself() -> None:
    levels, bus = LogLevels(("kit",)), logging.getLogger("kit.bus")
    levels.change("debug", "kit.bus", 1000)
    levels.change("warning", "kit.bus", 0.001)
    async with asyncio.timeout(10):
        while bus.level != logging.NOTSET:  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0)
    assert levels.now()["changed"] == []


@pytest.mark.parametrize(
    "body, code",
    [
        (b'{"level": "trace"}', "log_level_invalid"),
        (b'{"level": "debug", "minutes": 0}', "log_level_invalid"),
        (b'{"level": "debug", "minutes": 241}', "log_level_invalid"),
        (b'{"level": "debug", "minutes": 1.5}', "log_level_invalid"),
        (b'{"level": "debug", "logger": "sqlalchemy.engine"}', "log_level_invalid"),
        (b'{"level": "debug", "logger": "kit.nothing.of.this.name"}', "log_level_invalid"),
        (b'{"level": "debug", "forever": true}', "log_level_invalid"),
        (b'{"minutes": 5}', "log_level_invalid"),
        (b"{", "malformed_request"),
        (b"", "malformed_request"),
        (b"x" * (BODY_LIMIT + 1), "body_too_large"),
    ],
)
async def test_what_is_no_change_of_a_level_is_refused_and_changes_nothing(body: bytes, code: str) -> None:
    async with running() as ops:
        status, said = await ops.ask("PUT", "/log-level", body)
        assert (said["code"], said["status"]) == (code, status)
        assert 400 <= status < 500
        assert (await ops.ask("GET", "/log-level"))[1]["changed"] == []


async def test_other_paths_methods_and_protocols_are_refused() -> None:
    async with running() as ops:
        assert (await ops.ask("GET", "/v1/sales"))[1]["code"] == "route_not_found"
        assert (await ops.ask("POST", "/metrics"))[1]["code"] == "method_not_allowed"
        status, headers, _ = await ops.send(b"GET /livez HTTP/1.1\r\n\r\n")
        assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert (await ops.send(b"\x16\x03\x01\r\n\r\n"))[0] == 400
        with suppress(ConnectionResetError):
            assert (await ops.send(b"GET /livez HTTP/1.1\r\nHost: ops\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"))[0] == 400
        # None of them ended it.
        assert (await ops.ask("GET", "/livez"))[0] == 200


async def test_whoever_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.ops.REQUEST_SECONDS", 0.05)
    async with running() as ops:
        reader, writer = await asyncio.open_connection("127.0.0.1", ops.port)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_without_an_address_there_is_no_port_and_a_taken_one_is_said() -> None:
    async with operated("member", "serve", load(OpsSettings, {})) as health:
        assert not health.is_started
    async with running() as ops:
        with pytest.raises(CannotListen, match="cannot be listened on"):
            async with running(ops.port):
                pass


def test_an_address_has_a_port() -> None:
    assert address_of("0.0.0.0:9600") == ("0.0.0.0", 9600)  # noqa: S104
    assert address_of("[::]:9600") == ("::", 9600)
    for wrong in ("9600", "0.0.0.0:", "0.0.0.0:http", "0.0.0.0:70000"):
        with pytest.raises(SettingsInvalid):
            address_of(wrong)


async def test_a_process_that_is_told_to_stop_serves_on_for_a_while_and_is_not_ready() -> None:
    health = Health()
    health.start()
    stopping = stop_when_told(health, 0.05)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        while not health.is_draining:  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0)
        assert not stopping.is_set()
        assert await health.reasons() == ["draining"]
        await stopping.wait()


async def test_a_second_signal_does_not_wait() -> None:
    health = Health()
    stopping = stop_when_told(health, 1000)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        while not health.is_draining:  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        await stopping.wait()
