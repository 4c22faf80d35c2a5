"""A collector of spans (OTLP over gRPC) inside the test."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer, add_TraceServiceServicer_to_server
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage


@dataclass(frozen=True)
class Span:
    """A span as it came. `kind`: SERVER, CLIENT, PRODUCER or CONSUMER; `service` and `part` of the process that recorded it."""

    service: str
    part: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    fault: str


class Collector(TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:  # noqa: N802, ARG002
        """Takes spans in."""
        found = [
            _span(resource, span)
            for of_resource in request.resource_spans
            for resource in [{each.key: each.value.string_value for each in of_resource.resource.attributes}]
            for scope in of_resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self._spans += found
        return pb.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        """All that came so far."""
        with self._lock:
            return list(self._spans)

    def trace(self, trace_id: str) -> list[Span]:
        """Those of one trace."""
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector for the block, and where it is."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated without types
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _span(resource: Mapping[str, str], span: SpanMessage) -> Span:
    attributes = {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in span.attributes}
    return Span(
        resource["service.name"],
        resource["regulars.part"],
        span.name,
        SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        attributes,
        span.status.message,
    )
