"""Logs as JSON lines, and the W3C trace context that goes through every call.

A log line names ids, codes and places in the code. It holds no text of an exception, for a database quotes the values it refuses.
"""

import asyncio
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from kit.release import release

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
ERROR_NAME = re.compile(r"[A-Z][A-Z0-9_]+")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,100}")


_SAMPLED = frozenset("13579bdf")


def is_sampled(traceparent: str) -> bool:
    """Whether a `traceparent` of ours, or none, names a trace that is recorded; without reading all of it."""
    return traceparent[54:] in _SAMPLED


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """A place in a trace: `trace_id` names the whole journey (32 hex digits), `span_id` this part of it (16 hex digits)."""

    trace_id: str
    span_id: str
    # `01`: whoever began the trace had it recorded.
    flags: str = "00"

    @classmethod
    def parse(cls, traceparent: str | None) -> "TraceContext | None":
        """What a `traceparent` header says; None when there is none or it is not well-formed."""
        found = TRACEPARENT.fullmatch(traceparent) if traceparent else None
        return cls(found[1], found[2], found[3]) if found else None

    @classmethod
    def new(cls) -> "TraceContext":
        """The start of a trace that nobody records."""
        drawn = os.urandom(24).hex()
        return cls(drawn[:32], drawn[32:])

    @property
    def is_sampled(self) -> bool:
        """Whether its spans are recorded."""
        return self.flags[1] in _SAMPLED

    def sampled(self) -> "TraceContext":
        """The same, recorded."""
        return TraceContext(self.trace_id, self.span_id, "01")

    def child(self) -> "TraceContext":
        """A part of the same trace below this one."""
        return TraceContext(self.trace_id, os.urandom(8).hex(), self.flags)

    def header(self) -> str:
        """The value of a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


_trace: ContextVar[TraceContext | None] = ContextVar("trace", default=None)
_request_id: ContextVar[str] = ContextVar("request_id", default="")


def current_trace() -> TraceContext | None:
    """The trace context of the request under way."""
    return _trace.get()


def current_request_id() -> str:
    """The id of the request under way; empty outside of one."""
    return _request_id.get()


def bind_request(trace: TraceContext, request_id: str) -> None:
    """Names the request for the rest of the current task, where the task ends with the request."""
    _trace.set(trace)
    _request_id.set(request_id)


@contextmanager
def request_context(trace: TraceContext | None, request_id: str) -> Iterator[None]:
    """Names the request under way for the logs and for calls made inside the block."""
    trace_before, id_before = _trace.set(trace), _request_id.set(request_id)
    try:
        yield
    finally:
        _trace.reset(trace_before)
        _request_id.reset(id_before)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, service, part and release, logger, message, trace and request ids, and what `extra` adds."""

    _own = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName", "color_message"}

    def __init__(self, service: str, part: str = "") -> None:
        super().__init__()
        self._origin = {"service": service, "part": part, "version": release()}

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._origin,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := _trace.get():
            line |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
        if request_id := _request_id.get():
            line["request_id"] = request_id
        line |= {name: value for name, value in vars(record).items() if name not in self._own}
        if record.exc_info and record.exc_info[1]:
            line["exception"] = describe(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


def describe(error: BaseException, told: tuple[BaseException, ...] = ()) -> dict[str, Any]:
    """What may be logged of an exception: its type, SQLSTATE or ClickHouse's name for it, places in the code, and the same of its cause;
    never its text.

    `told`: those that it is the cause of. `raise error from error` makes a circle, which ends where it began.
    """
    frames = traceback.extract_tb(error.__traceback__)
    described: dict[str, Any] = {
        "type": type(error).__qualname__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(sqlstate := getattr(error, "sqlstate", None), str):
        described["sqlstate"] = sqlstate
    if isinstance(name := getattr(error, "name", None), str) and ERROR_NAME.fullmatch(name):
        described["name"] = name
    told = (*told, error)
    if (cause := error.__cause__ or error.__context__) and cause not in told:
        described["cause"] = describe(cause, told)
    return described


def configure_logging(service: str, level: str = "INFO", part: str = "") -> None:
    """Sends every logger of the process to standard error as JSON lines, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service, part))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It lists what it is made of, at every start.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


class LoggerUnknown(Exception):
    """No part of the program has a logger of this name."""


class LogLevels:
    """Levels that are changed while the process runs, each for a while.

    Only the program's own loggers, below `roots`, are changed: what libraries tell when they tell much may quote what they carry.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = tuple(roots)
        self._changed: dict[str, tuple[str, float, asyncio.TimerHandle]] = {}

    def change(self, level: str, logger: str, seconds: float) -> None:
        """Has `logger` and what is below it log from `level` on, for `seconds`; with an empty name, the whole program.

        Raises:
            LoggerUnknown: nothing of that name logs, nor would if it were loaded.
        """
        names = self._roots if not logger else (logger,)
        if logger and not (logger.split(".", 1)[0] in self._roots and (logger in logging.root.manager.loggerDict or _is_module(logger))):
            raise LoggerUnknown
        loop = asyncio.get_running_loop()
        for name in names:
            if before := self._changed.get(name):
                before[2].cancel()
            logging.getLogger(name).setLevel(level.upper())
            self._changed[name] = (level, loop.time() + seconds, loop.call_later(seconds, self._restore, name))

    def now(self) -> dict[str, Any]:
        """The level that was set at the start, and those that were changed with the seconds that each has left."""
        time = asyncio.get_running_loop().time()
        changed = [
            {"logger": name, "level": level, "seconds_left": round(until - time)} for name, (level, until, _) in self._changed.items()
        ]
        return {"level": logging.getLevelName(logging.root.level).lower(), "changed": changed}

    def restore(self) -> None:
        """Ends every change."""
        for name, (_, _, timer) in list(self._changed.items()):
            timer.cancel()
            self._restore(name)

    def _restore(self, name: str) -> None:
        del self._changed[name]
        logging.getLogger(name).setLevel(logging.NOTSET)


def _is_module(name: str) -> bool:
    """Whether a module has that name, loaded or not: a level may be set for what is loaded later, and each part loads what it needs.

    Its package's folder is looked into; to ask the import system would load the packages above it.
    """
    root, *below = name.split(".")
    if not all(part.isidentifier() for part in below):
        return False
    places = (Path(folder).joinpath(*below) for folder in getattr(sys.modules.get(root), "__path__", ()))
    return any(place.is_dir() or place.with_name(f"{place.name}.py").is_file() for place in places)
