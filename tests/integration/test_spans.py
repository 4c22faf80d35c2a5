"""From recorded spans: one sale is one trace from the till to the reports, and every edge of the registries of calls and topics is real."""

import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.bus.topics import load_topics
from kit.ids import uuid7
from kit.tracing import Sampling
from regulars.member.v1 import export_service_pb2, member_service_pb2, programme_service_pb2, wallet_service_pb2
from regulars.reporting.v1 import rebuild_service_pb2, reconcile_service_pb2, report_service_pb2
from tests.integration.shop import Till
from tests.integration.spans import Collector, Span, collecting
from tests.integration.system import System, running_system, wait_until

PROTOS = Path(__file__).parents[2] / "protos"
FILES = (
    export_service_pb2, member_service_pb2, programme_service_pb2, wallet_service_pb2, rebuild_service_pb2, reconcile_service_pb2,
    report_service_pb2,
)  # fmt: skip
EXECUTE = "regulars.member.v1.WalletService/ExecuteCommands"
PERSON = {"name": "王小丽", "phone": "137 2000 4000", "birthday": "1988-08-18", "city": "Suzhou"}

pytestmark = pytest.mark.own_system


@pytest.fixture(scope="module")
def collector_and_system() -> Iterator[tuple[Collector, System]]:
    """A system whose spans come here, of those traces alone that a caller began."""
    with collecting() as (collector, address), pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        environment.setenv("TRACE_SAMPLING", "default=0;errors=1")
        with running_system() as system:
            yield collector, system


@pytest.fixture
def collector(collector_and_system: tuple[Collector, System]) -> Collector:
    """What was recorded."""
    return collector_and_system[0]


@pytest.fixture
def system(collector_and_system: tuple[Collector, System]) -> System:
    """The system under test."""
    return collector_and_system[1]


class Traced:
    """A client that has its requests recorded, as a till or a browser does that has a tracer of its own."""

    def __init__(self, system: System, role: str) -> None:
        self.api = system.api(system.key(role))

    def ask(self, method: str, path: str, body: object = None) -> tuple[str, str, Any]:
        """The trace, the caller's own span, and the answer."""
        trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
        answer = self.api.ask(method, path, body, {"traceparent": f"00-{trace_id}-{span_id}-01"})
        assert answer.status_code < 300, answer.text
        return trace_id, span_id, answer.json()


def one(spans: Sequence[Span], **wanted: str) -> Span:
    """The only span that is so."""
    found = [span for span in spans if all(getattr(span, name) == value for name, value in wanted.items())]
    assert len(found) == 1, (wanted, found)
    return found[0]


def is_whole(collector: Collector, trace_id: str, events: int) -> bool:
    """Whether a write's trace has come as far as the reports, with so many events."""
    return len([span for span in collector.trace(trace_id) if span.kind == "CONSUMER"]) == events


def test_one_sale_is_one_trace_from_the_till_to_the_reports(collector: Collector, system: System) -> None:
    till = Till(system.api(system.key("till")), system.store_id, system.till_id)
    member_id = till.sign_up()
    trace_id, till_span, _ = Traced(system, "till").ask("POST", "/v1/sales", till.sale(member_id))
    wait_until(lambda: is_whole(collector, trace_id, 2), "the sale's trace is whole")
    spans = collector.trace(trace_id)
    assert len(spans) == 7
    request = one(spans, service="gateway", kind="SERVER", name="POST /v1/sales", parent_id=till_span)
    call = one(spans, service="gateway", kind="CLIENT", name=EXECUTE, parent_id=request.span_id)
    decision = one(spans, service="member", kind="SERVER", name=EXECUTE, parent_id=call.span_id)
    assert (decision.attributes["regulars.act"], decision.attributes["regulars.status"]) == ("record_sale", 201)
    for topic in ("member.sale.v1", "member.points.v1"):
        published = one(spans, service="member", kind="PRODUCER", name=f"publish {topic}", parent_id=decision.span_id)
        one(spans, service="reporting", kind="CONSUMER", name=f"process {topic}", parent_id=published.span_id)


def test_sales_that_are_sent_in_one_group_keep_a_trace_each(collector: Collector, system: System) -> None:
    till = Till(system.api(system.key("till")), system.store_id, system.till_id)
    client = Traced(system, "till")
    # The first holds the lanes up: what comes meanwhile goes as groups.
    with ThreadPoolExecutor(32) as many:
        traces = [trace_id for trace_id, _, _ in many.map(lambda _: client.ask("POST", "/v1/sales", till.sale()), range(96))]
    wait_until(lambda: all(is_whole(collector, trace_id, 1) for trace_id in traces), "every trace is whole")
    groups = []
    for trace_id in traces:
        spans = collector.trace(trace_id)
        call = one(spans, service="gateway", kind="CLIENT", name=EXECUTE)
        decision = one(spans, service="member", kind="SERVER", parent_id=call.span_id)
        published = one(spans, kind="PRODUCER", parent_id=decision.span_id)
        one(spans, service="reporting", kind="CONSUMER", parent_id=published.span_id)
        groups.append(decision.attributes["regulars.group_size"])
    assert max(groups) > 1


def test_a_trace_that_nobody_asked_for_is_not_recorded(collector: Collector, system: System) -> None:
    till = Till(system.api(system.key("till")), system.store_id, system.till_id)
    answer = till.api.ask("POST", "/v1/sales", till.sale())
    trace_id, flags = answer.headers["traceparent"].split("-")[1::2]
    assert flags == "00"
    # Spans leave a process in their order: once a later sale's came, none of this one is still to come.
    later, _, _ = Traced(system, "till").ask("POST", "/v1/sales", till.sale())
    wait_until(lambda: is_whole(collector, later, 1), "the later sale's trace is whole")
    assert collector.trace(trace_id) == []


def test_every_edge_of_the_registries_is_seen_and_no_other(collector: Collector, system: System) -> None:
    admin, till = Traced(system, "admin"), Till(system.api(system.key("till")), system.store_id, system.till_id)
    _, _, member = admin.ask("POST", "/v1/members", {"operation_id": uuid7(), **PERSON})
    admin.ask("GET", f"/v1/members/{member['id']}")
    admin.ask("GET", "/v1/programmes/demo")
    sale, _, _ = admin.ask("POST", "/v1/sales", till.sale(member["id"]))
    admin.ask("GET", f"/v1/members/{member['id']}/points")
    admin.ask("GET", "/v1/reports/metrics")
    admin.ask("POST", "/v1/reports:reconcile", {})
    admin.ask("POST", "/v1/reports:rebuild", {"source": "ledger"})
    wait_until(lambda: admin.api.get("/v1/reports/rebuilds/current")["state"] == "done", "the reports are made anew")
    wait_until(lambda: is_whole(collector, sale, 2), "the sale's trace is whole")
    calls = {
        (caller, callee, f"regulars.{callee}.v1.{service}")
        for caller, callees in yaml.safe_load((PROTOS / "calls.yaml").read_text())["calls"].items()
        for callee, services in callees.items()
        for service in services
    }
    topics = {
        (topic.name, producer, consumer)
        for topic in load_topics((PROTOS / "topics.yaml").read_text("utf-8"))
        for producer in topic.producers
        for consumer in topic.consumers
    }
    wait_until(lambda: calls <= calls_in(collector.spans), f"every call is seen: {calls - calls_in(collector.spans)}")
    wait_until(lambda: topics <= topics_in(collector.spans), f"every topic is used: {topics - topics_in(collector.spans)}")
    assert calls_in(collector.spans) == calls
    assert topics_in(collector.spans) == topics


def calls_in(spans: Sequence[Span]) -> set[tuple[str, str, str]]:
    """Who called whom, and what: a caller's span with the span of whom it called right below it."""
    clients = {span.span_id: span for span in spans if span.kind == "CLIENT"}
    answered = [(clients[span.parent_id], span) for span in spans if span.kind == "SERVER" and span.parent_id in clients]
    return {
        (client.service, server.service, server.attributes["rpc.service"])
        for client, server in answered
        if client.attributes["rpc.service"] == server.attributes["rpc.service"]
    }


def topics_in(spans: Sequence[Span]) -> set[tuple[str, str, str]]:
    """What was published by whom, and read by whom."""
    name = "messaging.destination.name"
    published = {span.span_id: span for span in spans if span.kind == "PRODUCER"}
    return {
        (span.attributes[name], published[span.parent_id].service, span.service)
        for span in spans
        if span.kind == "CONSUMER" and span.parent_id in published and span.attributes[name] == published[span.parent_id].attributes[name]
    }


def test_spans_name_nobody(collector: Collector, system: System) -> None:
    admin = Traced(system, "admin")
    found, _, _ = admin.ask("POST", "/v1/members:search", {"phone": PERSON["phone"]})
    wait_until(lambda: any(span.kind == "SERVER" and span.service == "member" for span in collector.trace(found)), "the search is recorded")
    said = " ".join(str((span.name, sorted(span.attributes.items()), span.fault)) for span in collector.spans)
    for value in (*PERSON.values(), "13720004000"):
        assert value not in said


def test_the_registry_of_calls_names_every_service_of_the_protos_once_it_is_called() -> None:
    named = {
        f"regulars.{callee}.v1.{service}"
        for callees in yaml.safe_load((PROTOS / "calls.yaml").read_text())["calls"].values()
        for callee, services in callees.items()
        for service in services
    }
    assert named == {service.full_name for file in FILES for service in file.DESCRIPTOR.services_by_name.values()}
    # None was forgotten above.
    assert len(FILES) == len(list((PROTOS / "regulars").glob("*/v1/*_service.proto")))


def test_the_documented_rules_of_sampling_are_rules() -> None:
    page = (PROTOS.parent / "docs" / "signals.md").read_text("utf-8")
    rules = [line.removeprefix("TRACE_SAMPLING=") for line in page.splitlines() if line.startswith("TRACE_SAMPLING=")]
    assert rules
    for rule in rules:
        Sampling.parse(rule)
