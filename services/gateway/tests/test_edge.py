"""Every request is named, authenticated and bounded; what is refused is refused in one form."""

import asyncio
import re
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.api_clients.operations import issue_key, revoke_key
from gateway.app import create_app, create_fastapi
from gateway.edge import Edge
from gateway.sales.recording import BODY_LIMIT
from gateway.services import Services
from kit.clock import HeldClock
from kit.db import transaction
from kit.problems import Refusal
from regulars.member.v1 import wallet_service_pb2 as pb

PROBLEM_FIELDS = {"type", "title", "status", "detail", "code", "errors"}


def code(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem.keys() == PROBLEM_FIELDS
    assert problem["status"] == response.status_code
    assert problem["type"] == f"urn:regulars:problem:{problem['code']}"
    return response.status_code, problem["code"]


async def test_every_path_of_the_api_needs_a_key(desk: Any) -> None:
    for path in ("/v1/stores", "/v1/sales", "/v1/nowhere"):
        for headers in ({}, {"Authorization": "Bearer rk_unknown"}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer "}):
            answer = await desk.http.post(path, headers=headers, json={})
            assert code(answer) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_name_of_the_scheme_is_written_in_any_case(desk: Any) -> None:
    for scheme in ("bearer", "BEARER", "Bearer "):
        answer = await desk.http.get("/v1/stores", headers={"Authorization": f"{scheme} {desk.demo['till_key']}"})
        assert answer.status_code == 200


async def test_an_encoded_body_is_refused(desk: Any) -> None:
    answer = await desk.send("POST", "/v1/sales", json=desk.sale(), headers={"Content-Encoding": "gzip"})
    assert code(answer) == (415, "unsupported_content_encoding")
    answer = await desk.send("POST", "/v1/sales", json=desk.sale(), headers={"Content-Encoding": "Identity"})
    assert answer.status_code == 201


async def test_a_till_may_not_do_what_is_the_admins(desk: Any, member: Any) -> None:
    for method, path in [
        ("POST", f"/v1/members/{desk.demo['store_id']}/points:adjust"),
        ("POST", "/v1/members:import"),
        ("POST", "/v1/sales:import"),
        ("POST", "/v1/stores"),
        ("POST", f"/v1/stores/{desk.demo['store_id']}/tills"),
        ("POST", "/v1/programmes:check"),
        ("POST", "/v1/programmes:apply"),
        ("POST", "/v1/wallets:reconcile"),
    ]:
        assert code(await desk.send(method, path, json={})) == (403, "forbidden")
    assert not member.requests


async def test_a_new_key_works_at_once_and_a_revoked_one_no_more(
    desk: Any, services: Services, engine: AsyncEngine, clock: HeldClock
) -> None:
    issued = await issue_key(engine, clock, "desk", "till", ["S001"])
    headers = {"Authorization": f"Bearer {issued['key']}"}
    stores = await desk.http.get("/v1/stores", headers=headers)
    assert [store["code"] for store in stores.json()["items"]] == ["S001"]
    assert await revoke_key(engine, clock, issued["client_id"])
    assert not await revoke_key(engine, clock, issued["client_id"])
    await services.directory.catch_up()
    assert code(await desk.http.get("/v1/stores", headers=headers)) == (401, "unauthenticated")


async def test_a_key_is_stored_as_its_hash_only(engine: AsyncEngine, demo: Any) -> None:
    async with transaction(engine) as connection:
        row = (await connection.execute(text("SELECT string_agg(api_clients::text, ' ') FROM api_clients"))).scalar_one()
    assert demo["till_key"] not in row
    assert demo["till_key"].removeprefix("rk_").encode().hex() not in row


async def test_a_request_is_named_as_its_caller_named_it(desk: Any, member: Any) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-Id": "till-7/1", "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    answer = await desk.send("POST", "/v1/sales", json=desk.sale(), headers=headers)
    assert answer.headers["x-request-id"] == "till-7/1"
    assert answer.headers["traceparent"].split("-")[1] == trace_id
    assert answer.headers["traceparent"].split("-")[2] != "00f067aa0ba902b7"
    assert member.command.request_id == "till-7/1"
    assert member.command.traceparent == answer.headers["traceparent"]


@pytest.mark.parametrize("given", ["", "a" * 101, "a b", "naïve"])
async def test_a_request_id_that_may_not_be_echoed_is_replaced(desk: Any, given: str) -> None:
    for path in ("/v1/stores", "/healthz", "/nowhere"):
        answer = await desk.send("GET", path, headers={"X-Request-Id": given.encode()})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_unknown_parameters_are_refused(desk: Any) -> None:
    for method, path in [("GET", "/v1/stores?colour=red"), ("POST", "/v1/sales?colour=red"), ("GET", "/healthz?colour=red")]:
        answer = await desk.send(method, path, json={} if method == "POST" else None)
        assert code(answer) == (400, "unknown_field")
        assert answer.json()["errors"][0]["pointer"] == "/query/colour"
    assert code(await desk.send("GET", "/v1/stores?limit=1&limit=2")) == (400, "malformed")


@pytest.mark.parametrize("limit", ["0", "501", "x", "1.5", "", "1.0", "1_0", "1\n", " 1", "+1", "１"])
async def test_limits_are_whole_numbers_of_one_to_five_hundred(desk: Any, limit: str) -> None:
    answer = await desk.send("GET", "/v1/stores", params={"limit": limit})
    assert code(answer) == (400, "malformed")
    assert answer.json()["errors"][0]["pointer"] == "/query/limit"


async def test_an_id_in_a_path_is_a_uuid(desk: Any, member: Any) -> None:
    answer = await desk.send("GET", "/v1/sales/7")
    assert code(answer) == (400, "malformed")
    assert answer.json()["errors"] == [{"pointer": "/path/sale_id", "code": "invalid_format", "detail": "Must be an id (UUID)."}]
    await desk.send("GET", "/v1/sales/01A201A4-A488-7000-8D73-6F7E6BBAA40E")
    assert member.requests[0].sale_id == "01a201a4-a488-7000-8d73-6f7e6bbaa40e"


async def test_unknown_paths_and_methods_are_problems_too(desk: Any) -> None:
    assert code(await desk.send("GET", "/v1/nowhere")) == (404, "route_not_found")
    assert code(await desk.send("GET", "/nowhere")) == (404, "route_not_found")
    answer = await desk.send("DELETE", "/v1/stores")
    assert code(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    assert code(await desk.send("GET", "/v1/stores/")) == (404, "route_not_found")


async def test_a_refusal_of_the_member_service_is_passed_on_whole(desk: Any, member: Any) -> None:
    member.refusal = Refusal("sale_not_found", 404, "No such sale", "Check the id.")
    answer = await desk.send("GET", "/v1/sales/01a201a4-a488-7000-8d73-6f7e6bbaa40e")
    assert code(answer) == (404, "sale_not_found")
    assert answer.json()["detail"] == "Check the id."


async def test_the_stored_answer_is_passed_on_untouched(desk: Any, member: Any) -> None:
    member.outcome = pb.Outcome(status=422, body=b'{"code" : "insufficient_points"}', replayed=True)
    answer = await desk.send("POST", "/v1/sales", json=desk.sale())
    assert answer.status_code == 422
    assert answer.content == b'{"code" : "insufficient_points"}'
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["idempotent-replayed"] == "true"


async def test_health_needs_no_key_and_lists_what_is_depended_on(desk: Any) -> None:
    assert (await desk.http.get("/healthz")).json() == {"status": "ok"}
    ready = await desk.http.get("/readyz")
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ready", "dependencies": {"database": "ok", "member": "ok", "reporting": "ok"}},
    )


REQUESTS: dict[str, dict[str, Any]] = {
    "a sale": {},
    "no operation id": {"drop": "operation_id"},
    "the header in its place": {"drop": "operation_id", "headers": {"Idempotency-Key": "key-1"}},
    "the body before the header": {"headers": {"Idempotency-Key": "key-1"}},
    "a malformed header": {"drop": "operation_id", "headers": {"Idempotency-Key": "not one"}},
    "an unknown field": {"change": {"coupon": "x"}},
    "a wrong type": {"change": {"lines": 1}},
    "a guest": {"drop": "member_id"},
    "two lines of one number": {
        "change": {"lines": [{"line_no": 1, "sku": "A", "quantity": "1", "unit_price": "1", "amount_minor": 100}] * 2}
    },
    "two units of one serial": {
        "change": {
            "lines": [
                {"line_no": 1, "sku": "A", "quantity": "2", "unit_price": "1", "amount_minor": 200, "serials": ["SN1", "SN1"]},
            ]
        }
    },
    "an encoded body": {"headers": {"Content-Encoding": "gzip"}},
    "a year out of range": {"change": {"sold_at": "1969-12-31T23:59:59+00:00"}},
    "an unknown store": {"change": {"store_id": "01a2019c-3df7-7000-8508-000000000000"}},
    "an unknown till": {"change": {"till_id": "01a2019c-3df7-7000-8508-000000000000"}},
    "NUL": {"change": {"receipt_no": "a\0b"}},
    "not JSON": {"content": b"{"},
    "no content": {"content": b""},
    "not declared as JSON": {"headers": {"Content-Type": "text/plain"}},
    "declared with its charset": {"headers": {"Content-Type": "Application/JSON; charset=UTF-8"}},
    "another charset": {"headers": {"Content-Type": "application/json; charset=latin-1"}},
    "too large": {"content": b'"' + b"x" * BODY_LIMIT + b'"'},
    "a parameter": {"params": {"dry": "1"}},
    "everything": {
        "change": {
            "receipt_no": "000123",
            "channel": "store",
            "staff_code": "E042",
            "points_to_spend": 1000,
            "discounts": [{"amount_minor": 1, "reason": "round"}, {"amount_minor": 2}],
            "lines": [
                {
                    "line_no": 7,
                    "sku": "A100",
                    "description": "Earphones",
                    "category": "audio",
                    "quantity": "1",
                    "unit_price": "199.90",
                    "amount_minor": 19990,
                    "discounts": [{"amount_minor": 1000, "reason": "member price"}],
                    "serials": ["SN1"],
                }
            ],
            "tenders": [{"type": "card", "amount_minor": 18990, "reference": "4711"}],
        }
    },
}


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS.keys())
async def test_the_hot_route_answers_as_its_documented_form(desk: Any, services: Services, member: Any, case: dict[str, Any]) -> None:
    sale = desk.sale() | case.get("change", {})
    sale.pop(case.get("drop", ""), None)
    request = {
        "content": case.get("content", msgspec.json.encode(sale)),
        "headers": {"Authorization": f"Bearer {desk.demo['till_key']}", "Content-Type": "application/json"} | case.get("headers", {}),
        "params": case.get("params"),
    }
    seen = []
    for app in (create_app(services), Edge(create_fastapi(services), services.directory, {})):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            answer = await http.post("/v1/sales", **request)
        assert answer.headers.pop("x-request-id")
        assert answer.headers.pop("traceparent")
        commands = [command for group in member.groups for command in group]
        for command in commands:
            command.ClearField("request_id")
            command.ClearField("traceparent")
        member.groups.clear()
        seen.append((answer.status_code, sorted(answer.headers.multi_items()), answer.content, commands))
    hot, documented = seen
    assert hot == documented
    assert bool(hot[3]) is (hot[0] == 201)


async def test_a_sale_becomes_the_command_it_means(desk: Any, member: Any) -> None:
    change = REQUESTS["everything"]["change"] | {
        "sold_at": "2026-11-21T18:03:11.25+08:00",
        "member_id": "01A201A4-A414-7000-8EBE-0FEB8A8DCC59",
    }
    assert (await desk.send("POST", "/v1/sales", json=desk.sale() | change)).status_code == 201
    command = member.command
    sale = command.record_sale
    assert (command.operation_id, command.method, command.path, len(command.fingerprint)) == ("op-1", "POST", "/v1/sales", 32)
    assert command.deadline_unix_ms == 1795255402000
    assert sale.sold_at == pb.Instant(unix_us=1795255391250000, offset_minutes=480)
    assert sale.member_id == "01a201a4-a414-7000-8ebe-0feb8a8dcc59"
    assert sale.store == pb.StoreContext(
        store_id=desk.demo["store_id"], store_code="S001", zone="Asia/Shanghai", currency="CNY", programme_id="demo", till_known=True
    )
    (line,) = sale.lines
    assert (line.line_no, line.sku, line.quantity, line.unit_price, line.amount_minor) == (7, "A100", "1", "199.90", 19990)
    assert (line.description, line.category, list(line.serials)) == ("Earphones", "audio", ["SN1"])
    assert list(line.discounts) == [pb.Discount(amount_minor=1000, reason="member price")]
    assert list(sale.discounts) == [pb.Discount(amount_minor=1, reason="round"), pb.Discount(amount_minor=2)]
    assert list(sale.tenders) == [pb.Tender(type="card", amount_minor=18990, reference="4711")]
    assert (sale.receipt_no, sale.channel, sale.staff_code, sale.points_to_spend) == ("000123", "store", "E042", 1000)


async def test_what_a_service_owns_is_left_to_it_to_refuse(desk: Any, member: Any) -> None:
    unknown = "01a2019c-3df7-7000-8508-000000000000"
    await desk.send("POST", "/v1/sales", json=desk.sale("a", store_id=unknown))
    await desk.send("POST", "/v1/sales", json=desk.sale("b", till_id=unknown, currency="GBP"))
    no_store, no_till = (group[0].record_sale for group in member.groups)
    assert not no_store.HasField("store")
    assert (no_till.store.store_id, no_till.store.till_known, no_till.currency) == (desk.demo["store_id"], False, "GBP")


async def test_writes_at_once_travel_in_groups(desk: Any, member: Any) -> None:
    answers = await asyncio.gather(*(desk.send("POST", "/v1/sales", json=desk.sale(f"op-{number}")) for number in range(20)))
    assert [answer.json()["operation_id"] for answer in answers] == [f"op-{number}" for number in range(20)]
    assert len(member.groups) < 20


async def test_an_unexpected_fault_tells_nothing_and_is_logged(
    desk: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("13800138000")

    monkeypatch.setattr("gateway.sales.recording.write_sale", broken)
    answer = await desk.send("POST", "/v1/sales", json=desk.sale())
    assert code(answer) == (500, "internal_error")
    monkeypatch.setattr("gateway.stores.routes.list_stores", broken)
    answer = await desk.send("GET", "/v1/stores")
    assert code(answer) == (500, "internal_error")
    assert "13800138000" not in answer.text
    assert [record.getMessage() for record in caplog.records if record.name == "gateway.edge"] == ["request failed"] * 2
