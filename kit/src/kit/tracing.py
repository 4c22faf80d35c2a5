"""Spans: what a request did where, told over OTLP to whoever collects them.

`kit.telemetry.TraceContext` is what travels: in `traceparent` of HTTP and gRPC, in each command of a group, in the outbox and on the bus.
Whether a trace is recorded is decided once, where it begins, and its flag travels with it (W3C); a span is made when it has ended, from the
time that was measured anyway, and so costs nothing where the flag is not set. Without OTEL_EXPORTER_OTLP_ENDPOINT nothing of
OpenTelemetry is even loaded. Attributes are names, ids, codes and counts.

    default=0.01;POST /v1/sales=0.001;errors=1

`default` is the share of the traces that begin here and are recorded; a rule `METHOD /path` has its own, and `{…}` in it stands for a
segment. A caller's `traceparent` that says "recorded" is honoured, and one that says "not recorded" too. Whether a request will fail is
not known when it begins: `errors` is the share of spans that ended in a fault of ours and are recorded all the same, each by the process
that saw it. Of such a trace only these spans are there.
"""

import re
import socket
import threading
from asyncio import Event, get_running_loop
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kit.clock import SystemClock
from kit.release import release
from kit.settings import SettingsInvalid
from kit.telemetry import TraceContext
from kit.waiting import wait_at_most

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

DEFAULT_SAMPLING = "default=0.01;POST /v1/sales=0.001;errors=1"
FLUSH_SECONDS = 3.0

Kind = Literal["server", "client", "producer", "consumer"]
Attributes = Mapping[str, str | int | bool]

_RULE = re.compile(r"(?:(default|errors)|([A-Z]+) (/[^ =]*))=([0-9.]+)")
_SEGMENT = re.compile(r"\\\{[^/}]*\\\}")
_ALL = 1 << 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which traces are recorded: shares of 2⁶⁴, since the last half of a trace's id decides, everywhere alike."""

    default: int = 0
    errors: int = 0
    rules: tuple[tuple[str, re.Pattern[str], int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Sampling":
        """The rules of a text such as `default=0.01;POST /v1/sales=0.001;errors=1`.

        Raises:
            SettingsInvalid: it is no such text.
        """
        shares = {"default": 0, "errors": 0}
        rules: list[tuple[str, re.Pattern[str], int]] = []
        for part in filter(None, (part.strip() for part in text.split(";"))):
            found = _RULE.fullmatch(part)
            share = _share(found[4]) if found else None
            if found is None or share is None:
                raise SettingsInvalid([f"TRACE_SAMPLING: {part!r} is no rule such as default=0.01, errors=1 or POST /v1/sales=0.001."])
            if found[1]:
                shares[found[1]] = share
            else:
                rules.append((found[2], re.compile(_SEGMENT.sub("[^/]+", re.escape(found[3]))), share))
        return cls(shares["default"], shares["errors"], tuple(rules))

    def records(self, method: str, path: str, trace_id: str) -> bool:
        """Whether a trace that begins with this request is recorded; the first rule that fits decides."""
        for name, pattern, share in self.rules:
            if name == method and pattern.fullmatch(path):
                return int(trace_id[16:], 16) < share
        return int(trace_id[16:], 16) < self.default

    def records_fault(self, trace_id: str) -> bool:
        """Whether a span that ended in a fault is recorded though its trace is not."""
        return int(trace_id[16:], 16) < self.errors


def _share(text: str) -> int | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return round(share * _ALL) if 0 <= share <= 1 else None


class Recorder:
    """Where spans go. `processor` takes them when they have ended."""

    def __init__(self, service: str, part: str, sampling: Sampling, processor: "SpanProcessor") -> None:
        # Loaded by those who trace.
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.id_generator import IdGenerator  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

        class Given(IdGenerator):
            """The ids that the trace context already has."""

            trace_id = span_id = 0

            def generate_trace_id(self) -> int:
                return self.trace_id

            def generate_span_id(self) -> int:
                return self.span_id

        origin = {
            "service.namespace": "regulars",
            "service.name": service,
            "service.version": release(),
            "service.instance.id": socket.gethostname(),
            "regulars.part": part,
        }
        self._sampling = sampling
        self._ids = Given()
        # What is asked to be recorded is: it was decided before.
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.create(origin), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("regulars", release())
        self._clock = SystemClock()

    def begin(self, method: str, path: str) -> TraceContext:
        """The start of a trace, with the decision whether it is recorded."""
        trace = TraceContext.new()
        return trace.sampled() if self._sampling.records(method, path, trace.trace_id) else trace

    def wants(self, trace: TraceContext, *, failed: bool) -> bool:
        """Whether a span that ended so is to be recorded."""
        return trace.is_sampled or (failed and self._sampling.records_fault(trace.trace_id))

    def record(
        self, name: str, kind: Kind, at: TraceContext, parent_id: str, seconds: float, attributes: Attributes, *, fault: str = ""
    ) -> None:
        """Records the span `at`, which ended now and took so long, below `parent_id` (empty: nothing). `fault`: the code of its end."""
        from opentelemetry.context import Context  # noqa: PLC0415
        from opentelemetry.trace import (  # noqa: PLC0415
            NonRecordingSpan,
            SpanContext,
            SpanKind,
            Status,
            StatusCode,
            TraceFlags,
            set_span_in_context,
        )

        ended = int(self._clock.now().timestamp() * 1_000_000) * 1_000
        self._ids.trace_id, self._ids.span_id = int(at.trace_id, 16), int(at.span_id, 16)
        above = Context()
        if parent_id:
            parent = SpanContext(self._ids.trace_id, int(parent_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
            above = set_span_in_context(NonRecordingSpan(parent), above)
        span = self._tracer.start_span(
            name, above, SpanKind[kind.upper()], dict(attributes), start_time=ended - int(seconds * 1_000_000_000)
        )
        if fault:
            span.set_status(Status(StatusCode.ERROR, fault))
        span.end(ended)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


_recorder: Recorder | None = None


def recorder() -> Recorder | None:
    """Where this process's spans go; None: it records none."""
    return _recorder


def use(recorder: Recorder | None) -> None:
    """Has the process record with this one."""
    global _recorder  # noqa: PLW0603  # one a process, as its loggers are
    _recorder = recorder


@asynccontextmanager
async def recording(service: str, part: str, endpoint: str, sampling: str) -> AsyncIterator[None]:
    """Within the block spans are sent to `endpoint` (OTLP over gRPC); empty: there are none, and nothing is loaded.

    Raises:
        SettingsInvalid: `sampling` has a rule that is none.
    """
    rules = Sampling.parse(sampling)
    if not endpoint:
        yield
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    made = Recorder(service, part, rules, BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    use(made)
    try:
        yield
    finally:
        use(None)
        await _closed(made)


async def _closed(made: Recorder) -> None:
    """Returns when what is left was sent, or after a while: a collector that is away must not hold up a process that stops."""
    loop, done = get_running_loop(), Event()

    def close() -> None:
        made.close()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=close, name="spans", daemon=True).start()
    await wait_at_most(done, FLUSH_SECONDS)
