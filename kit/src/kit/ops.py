"""The operators' port: metrics, health and log levels, apart from what clients reach.

    GET /metrics      Prometheus' text format
    GET /startupz     200 once the process is put together
    GET /livez        200 for as long as its event loop turns
    GET /readyz       200 while it can do its work; 503 with the reasons, and from SIGTERM on
    GET /log-level    the levels in force
    PUT /log-level    {"level": "debug", "logger": "kit.bus", "minutes": 10}: for so long, then as before

It runs on the event loop that does the work, so that a loop that hangs fails its probe. It has no key: OPS_LISTEN belongs on an address
that only operators reach, and empty (the default) there is no port at all.
"""

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Literal

import h11
import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from kit import tracing
from kit.health import Health
from kit.metrics import EVENT_LOOP_LAG, exported
from kit.problems import CONTENT_TYPE as PROBLEM
from kit.problems import FieldError, Refusal, render
from kit.release import release
from kit.settings import SettingsInvalid, env
from kit.telemetry import LoggerUnknown, LogLevels

JSON = "application/json"
REQUEST_SECONDS = 10.0
BODY_LIMIT = 4096
HEAD_LIMIT = 16 * 1024
# Probes, a Prometheus or two, and an operator.
MOST_CONNECTIONS = 64
TICK_SECONDS = 0.5
LONGEST_MINUTES = 240
# Where a service's package is not called as it is.
_PACKAGES = {"backup": "regulars_cli"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpsSettings:
    """What lets operators see a process. `listen`: host:port, empty for none."""

    listen: str = env("OPS_LISTEN", "")
    # How long a process that was told to stop still serves, being not ready: until those who send it work have noticed.
    drain_seconds: int = env("DRAIN_SECONDS_BEFORE", "0")
    otlp_endpoint: str = env("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    trace_sampling: str = env("TRACE_SAMPLING", tracing.DEFAULT_SAMPLING)


class CannotListen(Exception):
    """The operators' port cannot be had."""

    def __init__(self, listen: str) -> None:
        super().__init__(f"OPS_LISTEN: {listen} cannot be listened on: is another process there?")


@asynccontextmanager
async def operated(service: str, part: str, settings: OpsSettings) -> AsyncIterator[Health]:
    """Within the block operators see this process. Its health says `starting` until `start` is called.

    Raises:
        SettingsInvalid: an address or a rule of sampling that is none.
        CannotListen: another process has the port.
    """
    health, levels = Health(), LogLevels(("kit", _PACKAGES.get(service, service)))
    host, port = address_of(settings.listen) if settings.listen else ("", 0)
    async with tracing.recording(service, part, settings.otlp_endpoint, settings.trace_sampling):
        ticking = asyncio.create_task(_tick())
        server: asyncio.Server | None = None
        try:
            if settings.listen:
                registry = exported(service, part, release())
                try:
                    server = await asyncio.start_server(OpsPort(health, registry, levels).answer, host, port, limit=HEAD_LIMIT)
                except OSError as error:
                    raise CannotListen(settings.listen) from error
                _log.info("operators are answered", extra={"listen": settings.listen})
            yield health
        finally:
            levels.restore()
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            if server is not None:
                server.close()


def address_of(listen: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises SettingsInvalid."""
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise SettingsInvalid(["OPS_LISTEN must be host:port, such as 0.0.0.0:9600."])
    return host.removeprefix("[").removesuffix("]"), int(port)


def stop_when_told(health: Health, drain_seconds: float) -> asyncio.Event:
    """Set when the process shall stop: by SIGTERM or SIGINT, once it was said to be not ready for `drain_seconds`; at once by a second."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told() -> None:
        if health.is_draining or not drain_seconds:
            stopping.set()
        else:
            _log.info("draining", extra={"seconds": drain_seconds})
            loop.call_later(drain_seconds, stopping.set)
        health.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    return stopping


async def _tick() -> None:
    loop = asyncio.get_running_loop()
    lag = EVENT_LOOP_LAG.of()
    while True:
        due = loop.time() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        lag.observe(max(0.0, loop.time() - due))


class LevelChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What PUT /log-level takes. `logger`: a part of the program, such as `kit.bus`; empty: all of it, but not its libraries."""

    level: Literal["debug", "info", "warning", "error"]
    logger: str = ""
    minutes: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_MINUTES)] = 10


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = JSON


class OpsPort:
    """Answers one request of each connection."""

    def __init__(self, health: Health, registry: CollectorRegistry, levels: LogLevels) -> None:
        self._health = health
        self._registry = registry
        self._levels = levels
        self._open = 0
        self._decode = msgspec.json.Decoder(LevelChange).decode
        self._routes: dict[str, dict[str, Callable[[bytes], Awaitable[_Answer]]]] = {
            "/metrics": {"GET": self._metrics},
            "/startupz": {"GET": self._startup},
            "/livez": {"GET": self._live},
            "/readyz": {"GET": self._ready},
            "/log-level": {"GET": self._levels_now, "PUT": self._change_level},
        }

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads a request and answers it."""
        if self._open >= MOST_CONNECTIONS:
            writer.close()
            return
        self._open += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._exchange(reader, writer)
        except (OSError, TimeoutError):
            # Whoever asked has gone, or never said what it wanted.
            writer.transport.abort()
        finally:
            self._open -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        try:
            request, body = await _read(connection, reader)
            if request is None:
                return
            given = await self._given(request.method.decode("ascii"), request.target.decode("latin-1").partition("?")[0], body)
        except Refusal as refusal:
            given = _refused(refusal)
        except h11.RemoteProtocolError:
            given = _refused(Refusal("malformed_request", 400, "Malformed request", "This is not HTTP."))
        except Exception:  # noqa: BLE001  # the process goes on, and whoever asked is told
            _log.exception("an operator's request failed")
            given = _refused(Refusal("internal_error", 500, "Internal error", "See the log."))
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [("content-type", given.content_type), ("content-length", str(len(given.body))), ("connection", "close")]
        for event in (h11.Response(status_code=given.status, headers=headers), h11.Data(data=given.body), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        await writer.drain()

    async def _given(self, method: str, path: str, body: bytes) -> _Answer:
        methods = self._routes.get(path)
        if methods is None:
            raise Refusal("route_not_found", 404, "No such path", f"There are {', '.join(self._routes)}.")
        if method not in methods:
            raise Refusal("method_not_allowed", 405, "Method not allowed", f"This path takes {', '.join(methods)}.")
        return await methods[method](body)

    async def _metrics(self, _: bytes) -> _Answer:
        return _Answer(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    async def _startup(self, _: bytes) -> _Answer:
        return _state([] if self._health.is_started else ["starting"])

    async def _live(self, _: bytes) -> _Answer:
        return _state([])

    async def _ready(self, _: bytes) -> _Answer:
        return _state(await self._health.reasons())

    async def _levels_now(self, _: bytes) -> _Answer:
        return _Answer(200, msgspec.json.encode(self._levels.now()))

    async def _change_level(self, body: bytes) -> _Answer:
        try:
            change = self._decode(body)
        except msgspec.ValidationError as error:
            raise _level_invalid("/", "invalid", f"{str(error).partition(' - at')[0]}.") from None
        except msgspec.DecodeError:
            raise Refusal("malformed_request", 400, "Malformed request", "The body is not JSON.") from None
        try:
            self._levels.change(change.level, change.logger, change.minutes * 60)
        except LoggerUnknown:
            raise _level_invalid("/logger", "logger_unknown", "Name a part of the program, such as `kit.bus`, or leave it out.") from None
        _log.warning("a log level was changed", extra={"to": change.level, "of": change.logger, "minutes": change.minutes})
        return await self._levels_now(b"")


def _level_invalid(pointer: str, code: str, detail: str) -> Refusal:
    return Refusal("log_level_invalid", 400, "Log level not valid", "Correct what `errors` names.", [FieldError(pointer, code, detail)])


def _state(reasons: list[str]) -> _Answer:
    body = json.dumps({"status": "not_ready" if reasons else "ok", "reasons": reasons}).encode()
    return _Answer(503 if reasons else 200, body)


def _refused(refusal: Refusal) -> _Answer:
    return _Answer(refusal.status, render(refusal), PROBLEM)


async def _read(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request | None, bytes]:
    """The request and its body; none when whoever connected went away."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        match connection.next_event():
            case h11.Request() as event:
                request = event
            case h11.Data() as event:
                body += event.data
                if len(body) > BODY_LIMIT:
                    raise Refusal("body_too_large", 413, "Body too large", f"Send at most {BODY_LIMIT} bytes.")
            case h11.EndOfMessage():
                return request, bytes(body)
            case h11.NEED_DATA:
                connection.receive_data(await reader.read(HEAD_LIMIT))
            case _:
                return None, b""
