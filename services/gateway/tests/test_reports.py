"""Reports are asked of the reporting service; live figures are read once for everybody who watches (REP-01)."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import update

from gateway.api_clients.operations import issue_key, revoke_key
from gateway.app import create_app
from gateway.demo import Demo
from gateway.reports import operations
from gateway.reports.operations import HEARTBEAT, MOST_STREAMS
from gateway.server import make_server
from gateway.services import Services
from gateway.stores.tables import stores
from kit.clock import HeldClock
from kit.db import transaction
from kit.problems import FieldError, Refusal
from regulars.reporting.v1 import report_service_pb2 as pb

STREAM = "/v1/reports/kpis/stream"
QUERY: dict[str, Any] = {"metrics": ["receipts"], "from": "2026-11-01", "to": "2026-12-01"}

Event = tuple[str, Any]
Watch = Callable[..., AbstractAsyncContextManager[AsyncIterator[Event]]]


async def test_definitions_are_passed_on(desk: Any, reporting: Any) -> None:
    answer = await desk.send("GET", "/v1/reports/metrics", admin=True)
    assert (answer.status_code, answer.content) == (200, b'{"read":true}')
    assert reporting.requests == [pb.ListMetricsRequest()]


async def test_a_query_asks_what_its_body_says(desk: Any, reporting: Any) -> None:
    body = QUERY | {
        "dimensions": ["store", "day"],
        "compare": "previous_year",
        "filters": [{"field": "channel", "op": "in", "values": ["store", None]}],
        "sort": [{"field": "receipts", "order": "desc"}, {"field": "day"}],
        "limit": 7,
        "cursor": "abc",
    }
    answer = await desk.send("POST", "/v1/reports/query", admin=True, json=body)
    assert (answer.status_code, answer.content) == (200, b'{"read":true}')
    (request,) = reporting.requests
    assert request == pb.RunQueryRequest(
        metrics=["receipts"],
        dimensions=["store", "day"],
        from_day="2026-11-01",
        to_day="2026-12-01",
        compare="previous_year",
        filters=[pb.Filter(field="channel", op="in", values=["store", ""])],
        sort=[pb.Sort(field="receipts", order="desc"), pb.Sort(field="day", order="asc")],
        page_size=7,
        page_token="abc",
    )


@pytest.mark.parametrize(
    "change, pointer",
    [
        ({"metric": []}, "/metric"),
        ({"metrics": []}, "/metrics"),
        ({"from": "1 Nov"}, "/from"),
        ({"limit": 5001}, "/limit"),
        ({"to": 1}, "/to"),
        ({"compare": ""}, "/compare"),
        ({"compare": "last_year"}, "/compare"),
        ({"sort": [{"field": "receipts", "order": ""}]}, "/sort/0/order"),
    ],
)
async def test_a_malformed_query_is_refused_at_the_edge(desk: Any, reporting: Any, change: dict[str, Any], pointer: str) -> None:
    answer = await desk.send("POST", "/v1/reports/query", admin=True, json=QUERY | change)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert not reporting.requests


@pytest.mark.parametrize("change, compare", [({}, ""), ({"compare": None}, ""), ({"compare": "previous_period"}, "previous_period")])
async def test_a_comparison_is_named_or_left_out(desk: Any, reporting: Any, change: dict[str, Any], compare: str) -> None:
    assert (await desk.send("POST", "/v1/reports/query", admin=True, json=QUERY | change)).status_code == 200
    assert reporting.requests[0].compare == compare
    refused = await desk.send("POST", "/v1/reports/query", admin=True, json=QUERY | {"compare": ""})
    assert refused.json()["errors"][0]["detail"] == "Must be previous_period or previous_year."


async def test_a_refusal_of_the_reporting_service_is_passed_on_whole(desk: Any, reporting: Any) -> None:
    fault = FieldError("/dimensions/0", "figure_not_defined", "Points belong to a wallet.")
    reporting.refusal = Refusal("figure_not_defined", 422, "No meaning", "Ask without.", [fault])
    answer = await desk.send("POST", "/v1/reports/query", admin=True, json=QUERY)
    assert (answer.status_code, answer.json()["code"]) == (422, "figure_not_defined")
    assert answer.json()["errors"] == [msgspec.to_builtins(fault)]


@pytest.mark.parametrize("method, path", [("GET", "/v1/reports/metrics"), ("POST", "/v1/reports/query"), ("GET", STREAM)])
async def test_reports_are_the_admins(desk: Any, method: str, path: str) -> None:
    answer = await desk.send(method, path, json=QUERY)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_reporting_away_is_said_and_takes_no_gateway_out(desk: Any, fake_reporting: Any) -> None:
    await fake_reporting[2].stop(0)
    for answer in (
        await desk.send("POST", "/v1/reports/query", admin=True, json=QUERY),
        await desk.send("GET", "/v1/reports/metrics", admin=True),
    ):
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "reporting_unavailable", "1")
    ready = await desk.http.get("/readyz")
    assert (ready.status_code, ready.json()["dependencies"]["reporting"]) == (200, "away")


# --- Live figures, over a real server and a real connection ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "POLL_SECONDS", 0.02)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # what makes it true has no event
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(services: Services) -> AsyncIterator[tuple[str, Any]]:
    """The gateway on a port of this machine, and its server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server(create_app(services), "127.0.0.1", port, services.kpis.close)
    # The signals are the tests' own.
    task = asyncio.create_task(server._serve())
    await until(lambda: server.started)
    yield f"http://127.0.0.1:{port}", server
    server.should_exit = True
    await task


@pytest.fixture
async def server(services: Services) -> AsyncIterator[tuple[str, Any]]:
    async with serving(services) as running:
        yield running


@pytest.fixture
def watch(server: tuple[str, Any], demo: Demo) -> Watch:
    """Opens a stream, and gives its events as they come."""

    @asynccontextmanager
    async def opened(query: str = "", key: str | None = None) -> AsyncIterator[AsyncIterator[Event]]:
        headers = {"Authorization": f"Bearer {key or demo['admin_key']}"}
        async with httpx.AsyncClient() as http, http.stream("GET", server[0] + STREAM + query, headers=headers, timeout=10) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            yield parsed(answer)

    return opened


async def parsed(answer: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, msgspec.json.decode(line.removeprefix("data: "))
        elif line.startswith(": still"):
            yield "heartbeat", None


def nets(event: Event) -> dict[str, int]:
    name, data = event
    assert name == "kpis"
    return {each["store_id"]: each["net_sales_minor"] for each in data["stores"]}


async def test_all_figures_come_at_first_and_then_those_that_change(watch: Watch, services: Services, reporting: Any, demo: Demo) -> None:
    async with watch() as events:
        name, data = await anext(events)
        assert name == "kpis"
        assert data["as_of"] == "2026-11-21T10:03:12Z"
        assert {each["store_id"] for each in data["stores"]} == {store.store_id for store in services.directory.stores()}
        reporting.net_sales_minor[demo["store_id"]] = 45960
        assert nets(await anext(events)) == {demo["store_id"]: 45960}
    # The gateway asks for all, and shows to each client its own.
    assert (reporting.actors[-1].subject, reporting.actors[-1].stores) == ("gateway", None)


async def test_each_store_is_shown_on_its_own_business_day(watch: Watch, services: Services, reporting: Any, clock: HeldClock) -> None:
    clock.set(datetime(2026, 11, 21, 18, 30, tzinfo=UTC))
    async with transaction(services.engine) as connection:
        await connection.execute(update(stores).where(stores.c.code == "S002").values(day_cut_over_minutes=180))
    await services.directory.catch_up()
    async with watch() as events:
        await anext(events)
        asked = {each.store_id: (each.business_day, each.currency) for each in reporting.requests[-1].store_days}
        days = {store.store_code: asked[store.store_id] for store in services.directory.stores()}
        # In Shanghai it is half past two in the morning, before the cut-over of the second store.
        assert days == {"S001": ("2026-11-22", "CNY"), "S002": ("2026-11-21", "CNY"), "ONLINE-UK": ("2026-11-21", "GBP")}
        clock.advance(timedelta(hours=1))
        name, data = await anext(events)
        assert (name, [each["business_day"] for each in data["stores"]]) == ("kpis", ["2026-11-22"])


async def test_a_key_watches_its_own_stores_and_may_choose_among_them(
    watch: Watch, services: Services, server: Any, clock: HeldClock
) -> None:
    issued = await issue_key(services.engine, clock, "branch", "admin", ["S001", "S002"])
    await services.directory.catch_up()
    by_code = {store.store_code: store.store_id for store in services.directory.stores()}
    async with watch(key=issued["key"]) as events:
        assert nets(await anext(events)).keys() == {by_code["S001"], by_code["S002"]}
    async with watch(f"?store={by_code['S002']}", issued["key"]) as events:
        assert nets(await anext(events)).keys() == {by_code["S002"]}
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {issued['key']}"}) as http:
        for given, expected in (
            (by_code["ONLINE-UK"], (403, "store_not_allowed")),
            ("7", (400, "malformed")),
        ):
            answer = await http.get(server[0] + STREAM, params={"store": given})
            assert (answer.status_code, answer.json()["code"]) == expected


async def test_an_unknown_store_is_refused(desk: Any) -> None:
    answer = await desk.send("GET", f"{STREAM}?store=01a2019c-3df7-7000-8508-000000000000", admin=True)
    assert (answer.status_code, answer.json()["code"]) == (404, "store_not_found")


async def test_the_stream_outlasts_the_reporting_service(watch: Watch, reporting: Any, demo: Demo) -> None:
    async with watch(f"?store={demo['store_id']}") as events:
        assert nets(await anext(events)) == {demo["store_id"]: 0}
        reporting.refusal = Refusal("reporting_unavailable", 503, "Away", "Wait.")
        assert await anext(events) == ("unavailable", {"code": "reporting_unavailable"})
        reporting.refusal = None
        # All of it again, though nothing changed: whoever watches knows that it is live.
        assert nets(await anext(events)) == {demo["store_id"]: 0}


async def test_many_watch_at_the_cost_of_one_and_nobody_at_none(watch: Watch, services: Services, reporting: Any, demo: Demo) -> None:
    async def see(count: int) -> None:
        async with watch() as events:
            for _ in range(count):
                await anext(events)

    watching = [asyncio.create_task(see(2)) for _ in range(30)]
    async with watch() as events:
        await anext(events)
        await until(lambda: len(services.kpis._watching) == 31)
        asked = len(reporting.requests)
        for number in range(1, 6):
            reporting.net_sales_minor[demo["store_id"]] = number
            assert nets(await anext(events)) == {demo["store_id"]: number}
        # One reading finds a change; a few find none.
        assert len(reporting.requests) - asked < 31
        await asyncio.gather(*watching)
    await until(lambda: not services.kpis.is_polling)
    assert not services.kpis._watching


async def test_a_client_that_does_not_read_holds_up_nobody(
    watch: Watch, services: Services, server: Any, reporting: Any, demo: Demo
) -> None:
    await services.directory.catch_up()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server[0].rpartition(":")[2]), limit=1)
    writer.write(f"GET {STREAM} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {demo['admin_key']}\r\n\r\n".encode())
    async with watch() as events:
        await anext(events)
        for number in range(1, 100):
            reporting.net_sales_minor[demo["store_id"]] = number
            assert nets(await anext(events)) == {demo["store_id"]: number}
    assert not reader.at_eof()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_quiet_stream_has_a_heartbeat(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "HEARTBEAT_SECONDS", 0.05)
    assert HEARTBEAT.startswith(b": still")
    async with watch() as events:
        await anext(events)
        assert [await anext(events) for _ in range(3)] == [("heartbeat", None)] * 3


async def test_streams_end_at_once_when_the_gateway_stops(services: Services, demo: Demo) -> None:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {demo['admin_key']}"}) as http:
        async with serving(services) as (address, server), http.stream("GET", address + STREAM) as answer:
            events = parsed(answer)
            await anext(events)
            stopped_at = asyncio.get_running_loop().time()
            server.should_exit = True
            with pytest.raises(StopAsyncIteration):
                await anext(events)
        assert asyncio.get_running_loop().time() - stopped_at < 2


async def test_a_stream_is_named_like_any_answer_and_takes_no_unknown_parameter(server: tuple[str, Any], demo: Demo) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {
        "Authorization": f"Bearer {demo['admin_key']}",
        "X-Request-Id": "board-1",
        "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01",
    }
    async with httpx.AsyncClient(base_url=server[0], headers=headers) as http:
        async with http.stream("GET", STREAM) as answer:
            assert (answer.status_code, answer.headers["x-request-id"]) == (200, "board-1")
            assert answer.headers["traceparent"].split("-")[1] == trace_id
        for path in (STREAM, "/v1/reports/metrics", "/v1/reports/rebuilds/current"):
            assert refused_parameter(await http.get(path, params={"shop": "1"})) == "/query/shop"
        for path in ("/v1/reports/query", "/v1/reports:rebuild", "/v1/reports:reconcile"):
            assert refused_parameter(await http.post(path, params={"shop": "1"}, json={})) == "/query/shop"


def refused_parameter(answer: httpx.Response) -> str:
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    (fault,) = answer.json()["errors"]
    return str(fault["pointer"])


async def test_a_stream_ends_with_its_key(watch: Watch, services: Services, clock: HeldClock) -> None:
    issued = await issue_key(services.engine, clock, "board", "admin", None)
    async with watch(key=issued["key"]) as events:
        await anext(events)
        await revoke_key(services.engine, clock, issued["client_id"])
        await services.directory.catch_up()
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_more_streams_than_a_gateway_serves_are_refused(desk: Any, services: Services) -> None:
    await services.directory.catch_up()
    client = next(iter(services.directory._state.holders))
    joined = [services.kpis.join(client, None) for _ in range(MOST_STREAMS)]
    answer = await desk.send("GET", STREAM, admin=True)
    assert (answer.status_code, answer.json()["code"]) == (503, "too_many_streams")
    assert int(answer.headers["retry-after"]) > 0
    for watching in joined:
        services.kpis.leave(watching)
    assert not services.kpis.is_polling
