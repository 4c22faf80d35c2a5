"""Whether a trace is recorded is decided where it begins, and a span has the ids that travelled."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kit import metrics, tracing
from kit.clock import SystemClock
from kit.problems import Refusal
from kit.rpc import Server, call_metadata, create_channel
from kit.settings import SettingsInvalid
from kit.telemetry import TraceContext, request_context
from kit.tokens import TokenVerifier
from kit.tracing import Recorder, Sampling

TRACES = [TraceContext.new() for _ in range(4000)]


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Where spans of this process go, of traces that are recorded and of faults."""
    kept = InMemorySpanExporter()
    tracing.use(Recorder("member", "serve", Sampling.parse("default=0;errors=1"), SimpleSpanProcessor(kept)))
    yield kept
    tracing.use(None)


def ids(span: ReadableSpan) -> tuple[str, str, str]:
    """Trace, span and parent."""
    assert span.context is not None
    parent = f"{span.parent.span_id:016x}" if span.parent else ""
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


def test_the_most_particular_rule_is_the_first_that_fits() -> None:
    rules = Sampling.parse("default=0; POST /v1/sales=1;GET /v1/members/{member_id}/points=1;errors=0.5")
    trace = TRACES[0].trace_id
    for method, path in (("POST", "/v1/sales"), ("GET", "/v1/members/01a201a4/points")):
        assert rules.records(method, path, trace)
    for method, path in (("GET", "/v1/sales"), ("POST", "/v1/sales/"), ("GET", "/v1/members/1/2/points"), ("GET", "/v1/members//points")):
        assert not rules.records(method, path, trace)


def test_a_share_is_that_share_and_the_same_everywhere() -> None:
    rules, again = Sampling.parse("default=0.25"), Sampling.parse("default=0.25")
    recorded = [trace for trace in TRACES if rules.records("GET", "/", trace.trace_id)]
    assert 800 < len(recorded) < 1200
    assert all(again.records("GET", "/", trace.trace_id) for trace in recorded)
    assert not any(Sampling.parse("").records("GET", "/", trace.trace_id) for trace in TRACES)
    assert all(Sampling.parse("errors=1").records_fault(trace.trace_id) for trace in TRACES)


@pytest.mark.parametrize(
    "text", ["default", "default=2", "default=-1", "default=1e-3", "sales=1", "POST v1=1", "POST /v1/sales", "errors=.."]
)
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsInvalid, match="TRACE_SAMPLING"):
        Sampling.parse(text)


def test_a_span_has_the_ids_that_travelled_and_the_time_that_was_measured(exporter: InMemorySpanExporter) -> None:
    spans = tracing.recorder()
    assert spans is not None
    at = TraceContext.new().sampled()
    spans.record("POST /v1/sales", "server", at, "00f067aa0ba902b7", 0.25, {"http.response.status_code": 201})
    spans.record("publish", "producer", at.child(), "", 0.0, {}, fault="UNAVAILABLE")
    first, second = exporter.get_finished_spans()
    assert ids(first) == (at.trace_id, at.span_id, "00f067aa0ba902b7")
    assert ids(second)[0] == at.trace_id
    assert ids(second)[2] == ""
    assert first.end_time is not None
    assert first.start_time is not None
    assert first.end_time - first.start_time == 250_000_000
    assert abs(first.end_time / 1e9 - SystemClock().now().timestamp()) < 60
    assert (first.kind.name, dict(first.attributes or {})) == ("SERVER", {"http.response.status_code": 201})
    assert (first.status.is_ok, second.status.is_ok, second.status.description) == (True, False, "UNAVAILABLE")
    resource = first.resource.attributes
    assert (resource["service.namespace"], resource["service.name"], resource["regulars.part"]) == ("regulars", "member", "serve")


def test_a_decision_travels_in_the_flag() -> None:
    never = Recorder("gateway", "serve", Sampling.parse("default=0;POST /v1/sales=1"), SimpleSpanProcessor(InMemorySpanExporter()))
    assert never.begin("POST", "/v1/sales").header().endswith("-01")
    begun = never.begin("GET", "/v1/sales")
    assert begun.header().endswith("-00")
    assert not never.wants(begun.child(), failed=True)
    assert TraceContext.parse(begun.child().header()) is not None


async def answer(request: bytes, _context: object) -> bytes:
    match request:
        case b"refuse":
            raise Refusal("not_found", 404, "Not found", "Look again.")
        case b"fail":
            raise ValueError
        case _:
            return b"done"


def add_servicer(server: grpc.aio.Server) -> None:
    handlers: dict[str, Any] = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Spans", handlers),))


async def ask(*requests: bytes, trace: TraceContext | None) -> None:
    """Makes these calls."""
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    server = Server(TokenVerifier(key, SystemClock()), [add_servicer], tokens_inside=["/test.Spans/Ask"])
    port = await server.start("127.0.0.1:0")
    with request_context(trace, ""):
        async with create_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/test.Spans/Ask", bytes, bytes)
            for request in requests:
                try:
                    await call(request, metadata=call_metadata(), timeout=5)
                except grpc.aio.AioRpcError:
                    assert request in (b"refuse", b"fail")
    await server.stop(0)


async def test_both_sides_of_a_call_have_a_span_one_below_the_other(exporter: InMemorySpanExporter) -> None:
    trace = TraceContext.new().sampled()
    await ask(b"refuse", trace=trace)
    server, client = exporter.get_finished_spans()
    assert (server.name, server.kind.name, client.kind.name) == ("test.Spans/Ask", "SERVER", "CLIENT")
    assert ids(client)[::2] == (trace.trace_id, trace.span_id)
    assert ids(server)[::2] == (trace.trace_id, ids(client)[1])
    assert dict(client.attributes or {}) == {
        "rpc.system": "grpc", "rpc.service": "test.Spans", "rpc.method": "Ask", "rpc.grpc.status": "NOT_FOUND",
    }  # fmt: skip
    # That somebody asks for what is not there is no fault.
    assert server.status.is_ok


async def test_of_a_trace_that_is_not_recorded_only_faults_are(exporter: InMemorySpanExporter) -> None:
    trace = TraceContext.new()
    await ask(b"", b"refuse", trace=trace)
    assert exporter.get_finished_spans() == ()
    await ask(b"fail", trace=trace)
    server, client = exporter.get_finished_spans()
    assert {ids(server)[0], ids(client)[0]} == {trace.trace_id}
    assert (server.status.description, client.status.description) == ("INTERNAL", "INTERNAL")


async def test_calls_are_counted_and_timed_on_both_sides_also_without_spans() -> None:
    def counted(metric: metrics.AnyMetric, code: str) -> float:
        (family,) = metric.collector.collect()
        return sum(s.value for s in family.samples if s.labels == {"rpc": "test.Spans/Ask", "code": code})

    codes = ("OK", "NOT_FOUND", "INTERNAL")
    both = (metrics.RPC_SERVER_CALLS, metrics.RPC_CLIENT_CALLS)
    metrics.RPC.declare(["test.Spans/Ask"])
    before = [[counted(metric, code) for code in codes] for metric in both]
    await ask(b"", b"", b"refuse", b"fail", trace=None)
    after = [[counted(metric, code) for code in codes] for metric in both]
    assert [[new - old for new, old in zip(*each, strict=True)] for each in zip(after, before, strict=True)] == [[2, 1, 1], [2, 1, 1]]


async def test_a_collector_that_is_away_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.1)
    async with asyncio.timeout(20), tracing.recording("member", "serve", "http://127.0.0.1:1", "default=1"):
        spans = tracing.recorder()
        assert spans is not None
        spans.record("x", "server", spans.begin("GET", "/"), "", 0.1, {})
    assert tracing.recorder() is None


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    program = """
import asyncio, sys
from kit import ops, rpc
from kit.settings import load
async def run():
    async with ops.operated("member", "serve", load(ops.OpsSettings, {})):
        print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
asyncio.run(run())
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout == "[]\n"
