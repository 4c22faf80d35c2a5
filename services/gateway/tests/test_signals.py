"""Every request is counted under its route's template, a refusal once, and a recorded trace goes on into the call of its group."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.lanes import ImportLanes, Lanes
from kit import metrics, tracing
from kit.problems import Refusal
from kit.telemetry import TraceContext
from regulars.member.v1 import wallet_service_pb2 as pb

TRACE_ID, TILL_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def value(metric: metrics.AnyMetric, *labels: str, suffix: str = "") -> float:
    """What stands there now; 0 for no series."""
    named = dict(zip((label.name for label in metric.labels), labels, strict=True))
    (family,) = metric.collector.collect()
    return sum(s.value for s in family.samples if s.labels == named and s.name == metric.name + suffix)


class Counted:
    """What was added to a series within the block."""

    def __init__(self, metric: metrics.AnyMetric, *labels: str, suffix: str = "") -> None:
        self._metric = metric
        self._labels = labels
        self._suffix = suffix
        self._before = value(metric, *labels, suffix=suffix)

    def __call__(self) -> float:
        return value(self._metric, *self._labels, suffix=self._suffix) - self._before


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Where this process's spans go; traces that begin here are not recorded."""
    kept = InMemorySpanExporter()
    tracing.use(tracing.Recorder("gateway", "serve", tracing.Sampling.parse("default=0;errors=1"), SimpleSpanProcessor(kept)))
    yield kept
    tracing.use(None)


def ids(span: ReadableSpan) -> tuple[str, str, str]:
    """Trace, span and parent."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", f"{span.parent.span_id:016x}" if span.parent else ""


async def test_requests_are_counted_under_the_template_of_their_route(desk: Any) -> None:
    sales = Counted(metrics.HTTP_REQUESTS, "/v1/sales", "POST", "201")
    read = Counted(metrics.HTTP_REQUESTS, "/v1/sales/{sale_id}", "GET", "200")
    timed = Counted(metrics.HTTP_DURATION, "/v1/sales/{sale_id}", "GET", suffix="_count")
    for operation_id in ("one", "two"):
        await desk.send("POST", "/v1/sales", json=desk.sale(operation_id))
    for sale_id in ("01a201a4-a488-7000-8d73-6f7e6bbaa40e", "01a201a4-a488-7000-8d73-6f7e6bbaa40f"):
        await desk.send("GET", f"/v1/sales/{sale_id}")
    assert (sales(), read(), timed()) == (2, 2, 2)


async def test_paths_and_methods_that_do_not_exist_make_no_series(desk: Any) -> None:
    strange = Counted(metrics.HTTP_REQUESTS, metrics.OTHER, "GET", "404")
    for path in ("/nowhere", "/v1/nowhere/7", "/v1/members/7/8/9", "/%00"):
        assert (await desk.send("GET", path)).status_code == 404
    assert strange() == 4
    brewed = Counted(metrics.HTTP_REQUESTS, metrics.OTHER, metrics.OTHER, "404")
    await desk.send("BREW", "/coffee")
    assert brewed() == 1


async def test_a_sale_that_may_not_be_made_counts_as_one_of_the_route(desk: Any) -> None:
    nobody = Counted(metrics.HTTP_REQUESTS, "/v1/sales", "POST", "401")
    malformed = Counted(metrics.HTTP_REQUESTS, "/v1/sales", "POST", "400")
    code = Counted(metrics.REFUSALS, "unauthenticated")
    await desk.http.post("/v1/sales", json={})
    await desk.send("POST", "/v1/sales", content=b"{", headers={"Content-Type": "application/json"})
    assert (nobody(), malformed(), code()) == (1, 1, 1)


async def test_a_refusal_of_another_service_is_counted_there_alone(desk: Any, member: Any) -> None:
    metrics.REFUSALS.of("sale_not_found")
    here = Counted(metrics.REFUSALS, "sale_not_found")
    member.refusal = Refusal("sale_not_found", 404, "No such sale", "Look again.")
    assert (await desk.send("GET", "/v1/sales/01a201a4-a488-7000-8d73-6f7e6bbaa40e")).status_code == 404
    # The fake is a server of this process, and counts as the service that it stands for.
    assert here() == 1


async def test_lanes_say_what_they_send_and_refuse() -> None:
    sizes, waits = (Counted(metric, "till", suffix="_count") for metric in (metrics.LANE_GROUP_SIZE, metrics.LANE_WAIT))
    queued, refused = Counted(metrics.LANE_QUEUED, "till"), Counted(metrics.LANE_REFUSED, "till")
    gate = asyncio.Event()

    async def execute(request: pb.ExecuteCommandsRequest, /, *, timeout: float) -> pb.ExecuteCommandsResponse:  # noqa: ASYNC109
        assert timeout > 0
        await gate.wait()
        return pb.ExecuteCommandsResponse(outcomes=[pb.Outcome(status=201) for _ in request.commands])

    lanes = Lanes(execute, count=1, group_size=16, capacity=2, deadline_seconds=10)
    outcomes = [lanes.submit("m", pb.Command(operation_id="1"), 1)]
    await asyncio.sleep(0)
    outcomes += [lanes.submit("m", pb.Command(operation_id=name), 1) for name in ("2", "3")]
    with pytest.raises(Refusal):
        lanes.submit("m", pb.Command(operation_id="4"), 1)
    assert (queued(), refused()) == (2, 1)
    gate.set()
    await asyncio.gather(*outcomes)
    assert (sizes(), waits(), queued()) == (2, 2, 0)

    imports = ImportLanes(execute, count=1, capacity=1, deadline_seconds=10)
    import_sizes, too_many = Counted(metrics.LANE_GROUP_SIZE, "import", suffix="_sum"), Counted(metrics.LANE_REFUSED, "import")
    gate.clear()
    running = asyncio.create_task(imports.run([pb.Command(operation_id="5"), pb.Command(operation_id="6")]))
    await asyncio.sleep(0)
    with pytest.raises(Refusal):
        await imports.run([pb.Command(operation_id="7")])
    gate.set()
    await running
    assert (import_sizes(), too_many()) == (2, 1)


async def test_a_recorded_trace_goes_from_the_request_into_the_call_of_its_group(
    desk: Any, member: Any, exporter: InMemorySpanExporter
) -> None:
    traceparent = f"00-{TRACE_ID}-{TILL_SPAN}-01"
    answer = await desk.send("POST", "/v1/sales", json=desk.sale(), headers={"traceparent": traceparent})
    call, request = exporter.get_finished_spans()
    assert (request.name, request.kind.name) == ("POST /v1/sales", "SERVER")
    assert ids(request)[::2] == (TRACE_ID, TILL_SPAN)
    assert answer.headers["traceparent"] == f"00-{TRACE_ID}-{ids(request)[1]}-01"
    assert (call.name, call.kind.name) == ("regulars.member.v1.WalletService/ExecuteCommands", "CLIENT")
    assert ids(call)[::2] == (TRACE_ID, ids(request)[1])
    # What the member service decides is below the call.
    assert member.command.traceparent == f"00-{TRACE_ID}-{ids(call)[1]}-01"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST", "http.route": "/v1/sales", "http.response.status_code": 201,
    }  # fmt: skip


async def test_each_attempt_of_a_group_has_a_span_and_an_import_one_for_all_its_commands(exporter: InMemorySpanExporter) -> None:
    above = TraceContext(TRACE_ID, TILL_SPAN, "01")
    fails = [grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "away", "")]
    named: list[set[str]] = []

    async def execute(request: pb.ExecuteCommandsRequest, /, *, timeout: float) -> pb.ExecuteCommandsResponse:  # noqa: ASYNC109
        assert timeout > 0
        named.append({command.traceparent for command in request.commands})
        if fails:
            raise fails.pop()
        return pb.ExecuteCommandsResponse(outcomes=[pb.Outcome(status=201) for _ in request.commands])

    imports = ImportLanes(execute, count=1, capacity=1, deadline_seconds=10)
    await imports.run([pb.Command(operation_id=str(number), traceparent=above.header()) for number in range(5)])
    first, second = exporter.get_finished_spans()
    assert (first.status.description, second.status.is_ok) == ("UNAVAILABLE", True)
    assert ids(first)[::2] == ids(second)[::2] == (TRACE_ID, TILL_SPAN)
    assert named == [{f"00-{TRACE_ID}-{ids(first)[1]}-01"}, {f"00-{TRACE_ID}-{ids(second)[1]}-01"}]
    assert (second.attributes or {})["regulars.group_size"] == 5


async def test_a_request_that_is_not_recorded_leaves_no_span_unless_it_fails(
    desk: Any, member: Any, exporter: InMemorySpanExporter
) -> None:
    answer = await desk.send("POST", "/v1/sales", json=desk.sale("one"))
    assert answer.headers["traceparent"].endswith("-00")
    assert exporter.get_finished_spans() == ()
    member.outcome = pb.Outcome(status=500, body=b"{}")
    answer = await desk.send("POST", "/v1/sales", json=desk.sale("two"))
    (request,) = exporter.get_finished_spans()
    assert (f"{ids(request)[0]}", request.status.description) == (answer.headers["traceparent"].split("-")[1], "500")


async def test_a_gateway_that_is_told_to_stop_is_not_ready(desk: Any, services: Any) -> None:
    assert (await desk.http.get("/readyz")).status_code == 200
    services.health.drain()
    answer = await desk.http.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
    assert (await desk.http.get("/healthz")).status_code == 200
