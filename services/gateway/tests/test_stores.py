"""Stores and tills: what the gateway itself decides is decided once, noted, and known to every sale at once."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.api_clients.operations import issue_key
from gateway.audit.tables import audit_log
from gateway.demo import seed_demo
from gateway.services import Services
from gateway.stores.tables import stores, tills
from kit.clock import HeldClock
from kit.db import reading
from kit.problems import Refusal

STORE = {
    "operation_id": "store-1",
    "code": "S100",
    "name": "Xidan",
    "zone": "Asia/Shanghai",
    "currency": "CNY",
    "programme_id": "demo",
    "day_cut_over": "04:30",
}


async def test_a_new_store_and_its_till_take_sales_at_once(desk: Any, member: Any) -> None:
    store = (await desk.send("POST", "/v1/stores", admin=True, json=STORE)).json()
    assert store.items() >= {key: value for key, value in STORE.items() if key != "operation_id"}.items()
    made = await desk.send("POST", f"/v1/stores/{store['id']}/tills", admin=True, json={"operation_id": "t", "code": "T1", "name": "First"})
    assert made.status_code == 201
    till = made.json()
    await desk.send("POST", "/v1/sales", json=desk.sale(store_id=store["id"], till_id=till["id"]))
    context = member.command.record_sale.store
    assert (context.store_code, context.day_cut_over_minutes, context.till_known) == ("S100", 270, True)
    listed = (await desk.send("GET", f"/v1/stores/{store['id']}/tills")).json()
    assert listed == {"items": [till], "next_cursor": None}


async def test_a_replay_gives_the_first_answer_byte_for_byte(desk: Any, services: Services) -> None:
    first, second = await asyncio.gather(*(desk.send("POST", "/v1/stores", admin=True, json=STORE) for _ in range(2)))
    third = await desk.send("POST", "/v1/stores", admin=True, json=dict(reversed(STORE.items())))
    assert first.content == second.content == third.content
    assert sorted("idempotent-replayed" in answer.headers for answer in (first, second, third)) == [False, True, True]
    async with reading(services.engine) as connection:
        assert await connection.scalar(select(func.count()).select_from(stores).where(stores.c.code == "S100")) == 1


async def test_an_operation_id_serves_one_request_only(desk: Any) -> None:
    await desk.send("POST", "/v1/stores", admin=True, json=STORE)
    answer = await desk.send("POST", "/v1/stores", admin=True, json=STORE | {"name": "Other"})
    assert (answer.status_code, answer.json()["code"]) == (409, "operation_id_reused")


async def test_a_refusal_is_stored_too(desk: Any) -> None:
    await desk.send("POST", "/v1/stores", admin=True, json=STORE)
    again = STORE | {"operation_id": "store-2"}
    for replayed in (False, True):
        answer = await desk.send("POST", "/v1/stores", admin=True, json=again)
        assert (answer.status_code, answer.json()["code"]) == (409, "store_code_taken")
        assert ("idempotent-replayed" in answer.headers) is replayed
    told = (await desk.send("GET", "/v1/operations/store-2")).json()
    assert (told["status"], told["path"], told["body"]["code"]) == (409, "/v1/stores", "store_code_taken")


@pytest.mark.parametrize(
    "field, given, code",
    [
        ("zone", "Asia/Nowhere", "zone_unknown"),
        ("currency", "XXQ", "currency_unknown"),
        ("currency", "XAU", "currency_unknown"),
        ("currency", "GBP", "programme_currency_mismatch"),
    ],
)
async def test_a_store_has_a_zone_and_a_currency_that_exist_and_are_its_programmes(desk: Any, field: str, given: str, code: str) -> None:
    answer = await desk.send("POST", "/v1/stores", admin=True, json=STORE | {field: given})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["errors"][0]["pointer"] == f"/{field}"
    if given == "GBP":
        assert "counts in CNY" in answer.json()["detail"]


async def test_rules_refuse_and_an_absent_service_decides_nothing(desk: Any, member: Any) -> None:
    member.refusal = Refusal("programme_not_found", 404, "No such programme", "Check it.")
    answer = await desk.send("POST", "/v1/stores", admin=True, json=STORE | {"operation_id": "b", "programme_id": "none"})
    assert (answer.status_code, answer.json()["code"]) == (422, "programme_not_found")
    member.refusal = Refusal("database_away", 503, "Away", "Try again.")
    for _ in range(2):
        answer = await desk.send("POST", "/v1/stores", admin=True, json=STORE | {"operation_id": "c"})
        assert (answer.status_code, answer.headers["retry-after"], "idempotent-replayed" in answer.headers) == (503, "1", False)
    member.refusal = None
    assert (await desk.send("POST", "/v1/stores", admin=True, json=STORE | {"operation_id": "c"})).status_code == 201


async def test_an_operation_id_of_the_member_service_is_taken_here_too(desk: Any) -> None:
    answer = await desk.send("POST", "/v1/stores", admin=True, json=STORE | {"operation_id": "till-7:000123"})
    assert (answer.status_code, answer.json()["code"]) == (409, "operation_id_reused")


async def test_a_till_needs_its_store(desk: Any) -> None:
    till = {"operation_id": "t", "code": "T1", "name": "First"}
    answer = await desk.send("POST", "/v1/stores/01a2019c-3df7-7000-8508-000000000000/tills", admin=True, json=till)
    assert (answer.status_code, answer.json()["code"]) == (404, "store_not_found")
    answer = await desk.send(
        "POST", f"/v1/stores/{desk.demo['store_id']}/tills", admin=True, json=till | {"operation_id": "u", "code": "T01"}
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "till_code_taken")


async def test_stores_are_listed_page_by_page(desk: Any) -> None:
    codes, cursor = [], None
    while True:
        page = (await desk.send("GET", "/v1/stores", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))).json()
        codes += [store["code"] for store in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert codes == ["ONLINE-UK", "S001", "S002"]
    for wrong in ("x", "_w=="):
        answer = await desk.send("GET", "/v1/stores", params={"cursor": wrong})
        assert (answer.status_code, answer.json()["code"]) == (400, "cursor_invalid")


async def test_a_key_for_one_store_sees_that_store_only(desk: Any, engine: AsyncEngine, clock: HeldClock) -> None:
    issued = await issue_key(engine, clock, "desk", "till", ["S002"])
    headers = {"Authorization": f"Bearer {issued['key']}"}
    answer = await desk.http.get(f"/v1/stores/{desk.demo['store_id']}/tills", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "store_not_allowed")


async def test_what_an_admin_asks_is_noted(desk: Any, services: Services) -> None:
    await desk.send("POST", "/v1/stores", admin=True, json=STORE, headers={"X-Request-Id": "r-1"})
    async with reading(services.engine) as connection:
        (entry,) = (await connection.execute(select(audit_log))).all()
    assert (entry.method, entry.path, entry.operation_id, entry.request_id) == ("POST", "/v1/stores", "store-1", "r-1")


async def test_seeding_the_demo_again_changes_nothing(engine: AsyncEngine, clock: HeldClock, demo: Any) -> None:
    again = await seed_demo(engine, clock, new_keys=False)
    assert again == demo | {"till_key": None, "admin_key": None}
    fresh = await seed_demo(engine, clock, new_keys=True)
    assert fresh["till_key"] not in (None, demo["till_key"])
    async with reading(engine) as connection:
        assert await connection.scalar(select(func.count()).select_from(tills)) == 6
