"""Each route asks the member service for what it means."""

from typing import Any

import pytest
from sqlalchemy import select

from gateway.audit.tables import audit_log
from gateway.services import Services
from kit.db import reading
from regulars.member.v1 import member_service_pb2 as members_pb
from regulars.member.v1 import wallet_service_pb2 as pb

MEMBER_ID = "01a201a4-a414-7000-8ebe-0feb8a8dcc59"
SALE_ID = "01a201a4-a488-7000-8d73-6f7e6bbaa40e"


@pytest.mark.parametrize(
    "path, request_",
    [
        (f"/v1/members/{MEMBER_ID}", members_pb.GetMemberRequest(member_id=MEMBER_ID)),
        (f"/v1/members/{MEMBER_ID}/points", pb.GetPointsRequest(member_id=MEMBER_ID, programme_id="demo")),
        (f"/v1/members/{MEMBER_ID}/points?programme_id=vip", pb.GetPointsRequest(member_id=MEMBER_ID, programme_id="vip")),
        (
            f"/v1/members/{MEMBER_ID}/points/lots?limit=2&cursor=abc",
            pb.ListLotsRequest(member_id=MEMBER_ID, programme_id="demo", page_size=2, page_token="abc"),
        ),
        (f"/v1/members/{MEMBER_ID}/points/entries", pb.ListEntriesRequest(member_id=MEMBER_ID, programme_id="demo", page_size=50)),
        (f"/v1/members/{MEMBER_ID}/sales", pb.ListMemberSalesRequest(member_id=MEMBER_ID, page_size=50)),
        (f"/v1/sales?store_id={SALE_ID}", pb.ListSalesRequest(page_size=50, store_id=SALE_ID)),
        (f"/v1/sales/{SALE_ID}", pb.GetSaleRequest(sale_id=SALE_ID)),
        ("/v1/returns?limit=500", pb.ListReturnsRequest(page_size=500)),
        ("/v1/operations/till-7:000123", pb.GetOperationRequest(operation_id="till-7:000123")),
    ],
)
async def test_a_read_passes_on_the_document(desk: Any, member: Any, path: str, request_: object) -> None:
    answer = await desk.send("GET", path)
    assert (answer.status_code, answer.content) == (200, b'{"read":true}')
    assert member.requests == [request_]


async def test_signing_up_sends_the_fields_that_are_given(desk: Any, member: Any) -> None:
    body = {"operation_id": "m-1", "name": "Li Lei", "phone": "138 0013 8000", "phone_verified": True, "card": None}
    answer = await desk.send("POST", "/v1/members", json=body)
    assert answer.status_code == 201
    (sign_up,) = member.requests[0].sign_ups
    assert sign_up.programme_id == "demo"
    assert sign_up.fields == members_pb.MemberFields(name="Li Lei", phone="138 0013 8000", phone_verified=True)
    assert (sign_up.operation.operation_id, sign_up.operation.path) == ("m-1", "/v1/members")


async def test_null_removes_a_field_of_a_member_file(desk: Any, member: Any) -> None:
    answer = await desk.send("PATCH", f"/v1/members/{MEMBER_ID}", admin=True, json={"operation_id": "m-2", "card": None, "city": "Beijing"})
    assert answer.status_code == 200
    assert member.requests[0].fields == members_pb.MemberFields(card="", city="Beijing")


async def test_an_imported_member_is_a_replay_of_a_sign_up(desk: Any, member: Any) -> None:
    one = {"operation_id": "m-1", "name": "Li Lei"}
    await desk.send("POST", "/v1/members", json=one)
    answer = await desk.send("POST", "/v1/members:import", admin=True, json={"members": [one, {"operation_id": "m-2"}]})
    assert [outcome["operation_id"] for outcome in answer.json()["outcomes"]] == ["m-1", "m-2"]
    alone, imported = member.requests
    assert alone.sign_ups[0].operation.fingerprint == imported.sign_ups[0].operation.fingerprint
    answer = await desk.send("POST", "/v1/members:import", admin=True, json={"members": [one, {"name": "Han Meimei"}]})
    assert answer.json()["errors"][0]["pointer"] == "/members/1/operation_id"


@pytest.mark.parametrize(
    "body, pointer", [({}, ""), ({"phone": "1", "card": "2"}, ""), ({"phone": None}, "/phone"), ({"name": "x"}, "/name")]
)
async def test_a_search_is_by_a_phone_or_a_card(desk: Any, body: object, pointer: str) -> None:
    answer = await desk.send("POST", "/v1/members:search", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)


async def test_a_search_is_passed_on(desk: Any, member: Any) -> None:
    await desk.send("POST", "/v1/members:search?limit=5", json={"phone": "138 0013 8000", "phone_region": "CN"})
    await desk.send("POST", "/v1/members:search", json={"card": "C1"})
    assert member.requests == [
        members_pb.SearchMembersRequest(phone="138 0013 8000", phone_region="CN", page_size=5),
        members_pb.SearchMembersRequest(card="C1", page_size=50),
    ]


async def test_points_are_adjusted_by_an_admin_and_noted(desk: Any, member: Any, services: Services) -> None:
    path = f"/v1/members/{MEMBER_ID}/points:adjust"
    answer = await desk.send("POST", path, admin=True, json={"operation_id": "a-1", "points": -5, "reason": "mistake"})
    assert answer.status_code == 201
    assert member.command.adjust_points == pb.AdjustPoints(member_id=MEMBER_ID, programme_id="demo", points=-5, reason="mistake")
    async with reading(services.engine) as connection:
        (entry,) = (await connection.execute(select(audit_log))).all()
    assert (entry.path, entry.operation_id) == (path, "a-1")
    answer = await desk.send("POST", path, admin=True, json={"operation_id": "a-2", "points": 0, "reason": "mistake"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/points")


async def test_a_reversal_and_its_preview_say_the_same(desk: Any, member: Any) -> None:
    body = {
        "store_id": desk.demo["store_id"],
        "till_id": desk.demo["till_id"],
        "reversed_at": "2026-11-22T10:00:00+08:00",
        "reason": "faulty",
        "lines": [{"line_no": 2, "quantity": "1"}],
    }
    preview = await desk.send("POST", f"/v1/sales/{SALE_ID}/reversals:preview", json=body)
    assert (preview.status_code, preview.content) == (200, b'{"read":true}')
    reversal = await desk.send("POST", f"/v1/sales/{SALE_ID}/reversals", json=body | {"operation_id": "r-1"})
    assert reversal.status_code == 201
    assert member.command.reverse_sale == member.requests[0].reversal
    assert member.command.reverse_sale.sale_id == SALE_ID
    assert member.command.path == f"/v1/sales/{SALE_ID}/reversals"
    without = await desk.send("POST", f"/v1/sales/{SALE_ID}/reversals", json=body)
    assert without.json()["code"] == "operation_id_missing"


async def test_a_history_is_one_group_in_order(desk: Any, member: Any) -> None:
    sale = desk.sale("s-1")
    where = {"store_id": desk.demo["store_id"], "till_id": desk.demo["till_id"]}
    reversal = {"operation_id": "r-1", "sale_operation_id": "s-1", "reversed_at": "2026-11-22T10:00:00Z", **where}
    line = {"line_no": 1, "sku": "A100", "quantity": "1", "unit_price": "99.90", "refund_minor": 9990}
    returned = {"operation_id": "b-1", "returned_at": "2026-11-22T10:00:00Z", "currency": "CNY", "lines": [line], **where}
    commands = [{"sale": sale}, {"reversal": reversal}, {"return": returned}]
    answer = await desk.send("POST", "/v1/sales:import", admin=True, json={"commands": commands})
    assert answer.json()["outcomes"] == [
        {"operation_id": operation_id, "status": 201, "replayed": False, "amount_minor": 100, "problem": None}
        for operation_id in ("s-1", "r-1", "b-1")
    ]
    (group,) = member.groups
    assert [command.WhichOneof("act") for command in group] == ["record_sale", "reverse_sale", "record_return"]
    assert group[1].reverse_sale.sale_operation_id == "s-1"
    assert group[2].record_return.lines[0].refund_minor == 9990
    member.groups.clear()
    await desk.send("POST", "/v1/sales", json=sale)
    assert member.command.fingerprint == group[0].fingerprint


async def test_a_refused_command_of_a_history_gives_its_problem(desk: Any, member: Any) -> None:
    member.outcome = pb.Outcome(status=422, body=b'{"code":"currency_mismatch"}')
    answer = await desk.send("POST", "/v1/sales:import", admin=True, json={"commands": [{"sale": desk.sale()}]})
    (outcome,) = answer.json()["outcomes"]
    assert (outcome["status"], outcome["problem"]) == (422, {"code": "currency_mismatch"})


@pytest.mark.parametrize(
    "command, pointer",
    [
        ({}, "/commands/0"),
        ({"sale": {}, "return": {}}, "/commands/0"),
        ({"sale": {}}, "/commands/0/sale/store_id"),
        ({"gift": {}}, "/commands/0/gift"),
        (1, "/commands/0"),
    ],
)
async def test_a_malformed_command_of_a_history_is_pointed_at(desk: Any, member: Any, command: object, pointer: str) -> None:
    answer = await desk.send("POST", "/v1/sales:import", admin=True, json={"commands": [command]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, pointer)
    assert not member.groups


async def test_programmes_and_reconciliation_are_passed_on(desk: Any, member: Any) -> None:
    applied = await desk.send("POST", "/v1/programmes:apply", admin=True, json={"programme_id": "demo"})
    assert applied.status_code == 201
    assert member.requests[0].definition == b'{"programme_id":"demo"}'
    assert (await desk.send("POST", "/v1/programmes:check", admin=True, json=[])).status_code == 400
    answer = await desk.send("POST", "/v1/wallets:reconcile", admin=True, json={"limit": 2, "rebuild": True})
    assert answer.json() == {"wallets": 2, "differences": [], "next_cursor": "more"}
    assert member.requests[1] == pb.ReconcileWalletsRequest(page_size=2, rebuild=True)
