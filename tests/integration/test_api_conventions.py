"""The conventions that hold for every route: operations, problems, keys, lists, traces, health, and nobody's name in a log."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import asyncpg
import httpx
import pytest
import schemathesis

from kit.ids import uuid7
from tests.integration.api import Api, Json, contract_of, exact
from tests.integration.shop import LINES, Till, cash, lines_of, now
from tests.integration.system import System, wait_until

NOWHERE = "00000000-0000-7000-8000-000000000000"
STORE = {"name": "Shibuya", "zone": "Asia/Tokyo", "currency": "CNY", "programme_id": "demo"}


def problem(answer: httpx.Response) -> Json:
    """The problem document of a refusal, which must be whole."""
    assert answer.headers["content-type"] == "application/problem+json"
    body: Json = exact(answer.content)
    assert list(body) == ["type", "title", "status", "detail", "code", "errors"]
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:regulars:problem:{body['code']}"
    assert body["title"]
    assert body["detail"].endswith(".")
    for error in body["errors"]:
        assert set(error) == {"pointer", "code", "detail"}
    return body


# --- operations ---


def test_a_replay_gives_the_first_answer_byte_for_byte(till: Till, admin: Api, member: Callable[..., str]) -> None:
    """Whatever was decided: sales, reversals, refusals, members, adjustments, stores, tills."""
    member_id = member(100)
    sale = till.sell(member_id)
    writes: list[tuple[str, str, Json, int]] = [
        ("POST", "/v1/sales", till.sale(member_id), 201),
        ("POST", "/v1/sales", till.sale(member_id, lines_of("999.00"), 99_000), 422),
        ("POST", f"/v1/sales/{sale['id']}/reversals", till.reversal((1, "1")), 201),
        ("POST", f"/v1/sales/{NOWHERE}/reversals", till.reversal(), 404),
        ("POST", "/v1/members", {"name": "王芳", "phone": "138 1000 0001"}, 201),
        ("POST", "/v1/members", {"phone": "12"}, 422),
        ("PATCH", f"/v1/members/{member_id}", {"city": "北京"}, 200),
        ("POST", f"/v1/members/{member_id}/points:adjust", {"points": 5, "reason": "gift"}, 201),
        ("POST", "/v1/stores", STORE | {"code": "S900"}, 201),
        ("POST", "/v1/stores", STORE | {"code": "S901", "zone": "Asia/Nowhere"}, 422),
        ("POST", f"/v1/stores/{till.place['store_id']}/tills", {"code": "T900", "name": "T"}, 201),
    ]
    for method, path, body, status in writes:
        body.setdefault("operation_id", uuid7())
        first = admin.ask(method, path, body)
        assert first.status_code == status, first.text
        assert "Idempotent-Replayed" not in first.headers
        # Other spelling of the same JSON; and the header in the id's place.
        again = admin.ask(method, path, dict(reversed(body.items())))
        headed = admin.ask(
            method, path, {k: v for k, v in body.items() if k != "operation_id"}, {"Idempotency-Key": str(body["operation_id"])}
        )
        for replay in (again, headed):
            assert (replay.status_code, replay.content) == (status, first.content)
            assert replay.headers["content-type"] == first.headers["content-type"]
            assert replay.headers["Idempotent-Replayed"] == "true"
        became = admin.get(f"/v1/operations/{body['operation_id']}")
        assert (became["status"], became["method"], became["path"]) == (status, method, path)
        # A member file holds personal data, and is only told to who sends the same request again, or reads the member.
        assert became["body"] == (None if "/members" in path and "adjust" not in path and status < 300 else first.json())


def test_an_operation_id_is_for_one_request(till: Till, admin: Api, member: Callable[..., str]) -> None:
    member_id = member()
    sale = till.sale(member_id)
    first = till.api.ask("POST", "/v1/sales", sale)
    operation_id = sale["operation_id"]
    for path, body in (
        ("/v1/sales", sale | {"receipt_no": "7"}),
        ("/v1/sales", till.sale(member_id, lines_of("1.00"), operation_id=operation_id)),
        (f"/v1/sales/{first.json()['id']}/reversals", till.reversal(operation_id=operation_id)),
        (f"/v1/members/{member_id}/points:adjust", {"operation_id": operation_id, "points": 1, "reason": "gift"}),
        ("/v1/members", {"operation_id": operation_id}),
    ):
        refused = admin.ask("POST", path, body)
        assert (refused.status_code, problem(refused)["code"]) == (409, "operation_id_reused")
        assert problem(refused)["errors"][0]["pointer"] == "/operation_id"
        assert "Idempotent-Replayed" not in refused.headers
    assert till.api.ask("POST", "/v1/sales", sale).content == first.content
    assert till.points(member_id) == (459, 0)


def test_a_sales_operation_id_is_taken_for_a_store_too(till: Till, admin: Api) -> None:
    """Unique in the chain, though sales and stores are decided by different services."""
    sale = till.sale()
    till.api.post("/v1/sales", sale)
    store = STORE | {"operation_id": sale["operation_id"], "code": "S910"}
    assert admin.refused("/v1/stores", store) == (409, "operation_id_reused")


def test_a_refusal_stays_until_a_corrected_command_takes_a_new_id(till: Till, admin: Api, member: Callable[..., str]) -> None:
    member_id = member()
    sale = till.sale(member_id, lines_of("5.00"), 500, tenders=[])
    refused = till.api.ask("POST", "/v1/sales", sale)
    assert (refused.status_code, problem(refused)["code"]) == (422, "insufficient_points")
    assert problem(refused)["errors"][0]["pointer"] == "/points_to_spend"
    admin.post(f"/v1/members/{member_id}/points:adjust", {"operation_id": uuid7(), "points": 500, "reason": "gift"})
    assert till.api.ask("POST", "/v1/sales", sale).content == refused.content
    assert till.api.post("/v1/sales", sale | {"operation_id": uuid7()})["points"]["balance"] == 0


def test_what_was_not_decided_is_not_stored(system: System, till: Till) -> None:
    sale = till.sale()
    undecided = [
        till.api.ask("POST", "/v1/sales", sale | {"colour": "red"}),
        till.api.ask("POST", "/v1/sales?colour=red", sale),
        system.api(None).ask("POST", "/v1/sales", sale),
        till.api.ask("POST", "/v1/sales", sale, {"Content-Type": "text/plain"}),
    ]
    assert [answer.status_code for answer in undecided] == [400, 400, 401, 415]
    assert till.api.ask("GET", f"/v1/operations/{sale['operation_id']}").status_code == 404
    assert "Idempotent-Replayed" not in till.api.ask("POST", "/v1/sales", sale).headers


def test_two_tills_reversing_one_line_one_wins_and_the_other_is_told(till: Till, member: Callable[..., str]) -> None:
    for buyer in (member(), None):
        sale = till.sell(buyer)
        reversals = [till.reversal((1, "1")) for _ in range(2)]
        with ThreadPoolExecutor(2) as two:
            answers = list(two.map(lambda body: till.api.ask("POST", f"/v1/sales/{sale['id']}/reversals", body), reversals))  # noqa: B023
        assert sorted(answer.status_code for answer in answers) == [201, 409]
        assert "quantity_already_reversed" in {answer.json().get("code") for answer in answers}


# --- problems ---


def test_a_fault_in_a_body_is_named_by_its_pointer(till: Till) -> None:
    line = LINES[0]
    for change, pointer, code in (
        ({"colour": "red"}, "/colour", "unknown_field"),
        ({"lines": [line, line | {"colour": "red", "line_no": 2}]}, "/lines/1/colour", "unknown_field"),
        ({"lines": [line | {"quantity": "1,5"}]}, "/lines/0/quantity", "invalid_format"),
        ({"lines": [line | {"quantity": "0"}]}, "/lines/0/quantity", "invalid_format"),
        ({"lines": [line | {"amount_minor": 199.9}]}, "/lines/0/amount_minor", "wrong_type"),
        ({"lines": [line, line]}, "/lines/1/line_no", "repeated"),
        ({"lines": []}, "/lines", "out_of_range"),
        ({"currency": "yuan"}, "/currency", "invalid_format"),
        ({"sold_at": "2026-11-21T18:03:11"}, "/sold_at", None),
        ({"store_id": "S001"}, "/store_id", "invalid_format"),
        ({"points_to_spend": -1}, "/points_to_spend", "out_of_range"),
        ({"operation_id": "with blank"}, "/operation_id", "invalid_format"),
        ({"tenders": [{"type": "cash", "amount_minor": "1"}]}, "/tenders/0/amount_minor", "wrong_type"),
    ):
        refused = till.api.ask("POST", "/v1/sales", till.sale() | change)
        body = problem(refused)
        assert refused.status_code == 400, body
        assert body["errors"][0]["pointer"] == pointer
        assert code in (None, body["errors"][0]["code"])


def test_a_rule_refuses_with_its_code_and_pointer(till: Till, member: Callable[..., str]) -> None:
    member_id = member(100)
    for change, code, pointer in (
        ({"store_id": NOWHERE}, "store_not_found", "/store_id"),
        ({"till_id": NOWHERE}, "till_not_found", "/till_id"),
        ({"member_id": NOWHERE}, "member_not_found", "/member_id"),
        ({"currency": "USD"}, "currency_mismatch", "/currency"),
        ({"tenders": cash(1)}, "tenders_do_not_balance", "/tenders"),
        ({"lines": [LINES[1] | {"amount_minor": 19981}]}, "line_amount_mismatch", "/lines/0/amount_minor"),
        ({"lines": [LINES[1] | {"serials": ["X1"]}]}, "serials_do_not_match", "/lines/0/serials"),
        ({"discounts": [{"amount_minor": 10**9, "reason": "x"}]}, "discount_exceeds_amount", "/discounts/0/amount_minor"),
        ({"points_to_spend": 101}, "insufficient_points", "/points_to_spend"),
        ({"sold_at": now(minutes=-11)}, "sold_at_in_future", "/sold_at"),
        ({"member_id": None, "points_to_spend": 1}, "points_not_spendable", "/points_to_spend"),
    ):
        refused = till.api.ask("POST", "/v1/sales", till.sale(member_id) | change)
        body = problem(refused)
        assert (refused.status_code, body["code"], body["errors"][0]["pointer"]) == (422, code, pointer)
    assert till.sell(member_id, sold_at=now(minutes=-9))["points"]["earned"] == 459, "a till's clock may be a little fast"
    assert till.points(member_id) == (559, 0)


def test_a_reversal_beyond_what_was_sold_is_refused(till: Till) -> None:
    sale = till.sell()
    path = f"/v1/sales/{sale['id']}/reversals"
    for lines, refusal in (
        ([(9, "1")], (422, "line_not_found")),
        ([(2, "3")], (422, "quantity_exceeds_sold")),
    ):
        body = till.reversal(*lines)
        assert till.api.refused(path, body) == refusal
        assert till.api.refused(f"{path}:preview", body) == refusal
    till.reverse(sale, (2, "1.5"))
    assert till.api.refused(path, till.reversal((2, "1"))) == (409, "quantity_already_reversed")


def test_bodies_and_parameters_that_are_not_understood(till: Till, admin: Api) -> None:
    store = till.place["store_id"]
    sale = till.sale()
    for method, path, body, headers, status, code in (
        ("GET", "/v1/stores?colour=red", None, {}, 400, "unknown_field"),
        ("GET", "/v1/stores?limit=1&limit=2", None, {}, 400, "malformed"),
        ("GET", "/v1/stores?limit=0", None, {}, 400, "malformed"),
        ("GET", "/v1/stores?limit=501", None, {}, 400, "malformed"),
        ("GET", "/v1/stores?limit=ten", None, {}, 400, "malformed"),
        ("GET", "/v1/members/7", None, {}, 400, "malformed"),
        ("GET", "/v1/nothing", None, {}, 404, "route_not_found"),
        ("DELETE", f"/v1/stores/{store}/tills", None, {}, 405, "method_not_allowed"),
        ("POST", "/v1/members:search", {}, {}, 400, "malformed"),
        ("POST", "/v1/members:search", {"phone": "1", "card": "1"}, {}, 400, "malformed"),
        ("POST", "/v1/sales", {k: v for k, v in sale.items() if k != "operation_id"}, {}, 400, "operation_id_missing"),
        ("POST", "/v1/sales", [sale], {}, 400, "malformed"),
        ("POST", "/v1/sales", sale, {"Content-Type": "application/xml"}, 415, "unsupported_media_type"),
        ("POST", "/v1/members", {"operation_id": uuid7(), "name": "x" * 70_000}, {}, 413, "body_too_large"),
    ):
        refused = admin.ask(method, path, body, headers)
        assert (refused.status_code, problem(refused)["code"]) == (status, code), path


def test_every_list_refuses_a_cursor_that_it_did_not_give(till: Till, admin: Api, member: Callable[..., str]) -> None:
    member_id = member()
    for path in (*LISTS, f"/v1/stores/{till.place['store_id']}/tills"):
        for cursor in ("x", "e30", "bnVsbA", "WyJ4Il0", "W10"):  # not base64, {}, null, ["x"], []
            refused = admin.ask("GET", path.format(member_id=member_id), parameters={"cursor": cursor})
            assert (refused.status_code, problem(refused)["code"]) == (400, "cursor_invalid"), (path, cursor)


# --- keys ---


def test_every_route_wants_a_key(system: System) -> None:
    for path, operations in contract_of(system.url).document["paths"].items():
        for method in operations:
            if path.startswith("/v1/"):
                for key in (None, "rk_wrong"):
                    refused = system.api(key).ask(method.upper(), re.sub(r"\{[^}]*\}", NOWHERE, path))
                    assert (refused.status_code, problem(refused)["code"]) == (401, "unauthenticated")
                    assert refused.headers["WWW-Authenticate"] == "Bearer"


def test_a_till_key_does_what_a_till_does(till: Till, member: Callable[..., str]) -> None:
    member_id = member()
    for method, path, body in (
        ("POST", f"/v1/members/{member_id}/points:adjust", {"operation_id": uuid7(), "points": 1, "reason": "gift"}),
        ("POST", "/v1/members:import", {"members": [{"operation_id": uuid7()}]}),
        ("POST", "/v1/sales:import", {"commands": [{"sale": till.sale()}]}),
        (
            "POST",
            "/v1/stores",
            {"operation_id": uuid7(), "code": "S9", "name": "S", "zone": "UTC", "currency": "CNY", "programme_id": "demo"},
        ),
        ("POST", f"/v1/stores/{till.place['store_id']}/tills", {"operation_id": uuid7(), "code": "T9", "name": "T"}),
        ("POST", "/v1/programmes:check", {}),
        ("POST", "/v1/programmes:apply", {}),
        ("POST", "/v1/wallets:reconcile", {}),
    ):
        refused = till.api.ask(method, path, body)
        assert (refused.status_code, problem(refused)["code"]) == (403, "forbidden"), path


def test_a_key_for_one_store_acts_and_looks_in_that_store_only(system: System, admin: Api) -> None:
    issued = system.run_gateway_command("issue-key", "--name", "one-store", "--role", "till", "--store", "S002")
    stores = {store["code"]: store["id"] for store in admin.items("/v1/stores")}
    tills = {code: next(admin.items(f"/v1/stores/{stores[code]}/tills"))["id"] for code in ("S001", "S002")}
    here, there = (Till(system.api(issued["key"]), stores[code], tills[code]) for code in ("S002", "S001"))
    sale = here.sell()
    assert here.reverse(sale, (1, "1"))["store_id"] == stores["S002"]
    assert [store["code"] for store in here.api.items("/v1/stores")] == ["S002"]
    assert {each["store_id"] for each in here.api.items("/v1/sales")} == {stores["S002"]}
    refusals = [
        here.api.ask("POST", "/v1/sales", there.sale()),
        here.api.ask("POST", f"/v1/sales/{sale['id']}/reversals", there.reversal()),
        here.api.ask("POST", f"/v1/sales/{sale['id']}/reversals:preview", there.reversal()),
        here.api.ask("GET", "/v1/sales", parameters={"store_id": stores["S001"]}),
        here.api.ask("GET", f"/v1/stores/{stores['S001']}/tills"),
    ]
    assert [answer.status_code for answer in refusals] == [403] * 5
    system.run_gateway_command("revoke-key", issued["client_id"])
    wait_until(lambda: here.api.ask("GET", "/v1/stores").status_code == 401, "the key is revoked", 10)


# --- lists ---

LISTS = (
    "/v1/stores",
    "/v1/sales",
    "/v1/returns",
    "/v1/members/{member_id}/sales",
    "/v1/members/{member_id}/points/lots",
    "/v1/members/{member_id}/points/entries",
)


def test_pages_join_whatever_is_written_meanwhile(till: Till, member: Callable[..., str]) -> None:
    member_id = member(1)
    for n in range(12):
        # Not in the order of their dates.
        till.sell(member_id, lines_of("1.00"), sold_at=now(hours=7 * n % 12))
    for path in ("/v1/sales", *(path.format(member_id=member_id) for path in LISTS[3:])):
        before = [item["id"] for item in till.api.items(path, limit=500)]
        joined: list[str] = []
        page: Json = {"next_cursor": ""}
        while page["next_cursor"] is not None:
            page = till.api.get(path, limit=5, **({"cursor": page["next_cursor"]} if page["next_cursor"] else {}))
            assert 0 < len(page["items"]) <= 5
            joined += [item["id"] for item in page["items"]]
            till.sell(member_id, lines_of("1.00"), sold_at=now(hours=-0))
        assert joined == before
    newest = next(till.api.items(f"/v1/members/{member_id}/sales", limit=1))
    assert newest["sold_at"] == max(item["sold_at"] for item in till.api.items(f"/v1/members/{member_id}/sales"))


def test_a_page_has_fifty_items_unless_asked_otherwise(till: Till, member: Callable[..., str]) -> None:
    member_id = member()
    with ThreadPoolExecutor(8) as several:
        list(several.map(lambda _: till.sell(member_id, lines_of("1.00")), range(51)))
    path = f"/v1/members/{member_id}/sales"
    assert len(till.api.get(path)["items"]) == 50
    assert len(till.api.get(path, limit=500)["items"]) == 51
    assert till.api.get(path, limit=51)["next_cursor"] is None


# --- traces and documents ---


def test_a_request_is_named_in_its_answer(till: Till) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    named = {"X-Request-Id": "till-7:42", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    for method, path, body in (
        ("POST", "/v1/sales", till.sale()),
        ("POST", "/v1/sales", {}),
        ("GET", "/v1/stores", None),
        ("GET", "/v1/nothing", None),
        ("GET", "/healthz", None),
    ):
        answer = till.api.ask(method, path, body, named)
        assert answer.headers["X-Request-Id"] == "till-7:42"
        version, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
        assert (version, trace_id, flags) == ("00", trace, "01")
        assert span_id != "b7ad6b7169203331"
        bare = till.api.ask(method, path, body, {"X-Request-Id": "two words", "traceparent": "00-zz"})
        assert re.fullmatch("[0-9a-f]{32}", bare.headers["X-Request-Id"])
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", bare.headers["traceparent"])


def test_the_document_is_valid_and_its_page_is_there(system: System) -> None:
    document: Any = contract_of(system.url).document
    assert document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(document).validate()
    page = httpx.get(f"{system.url}/docs", trust_env=False)
    assert page.status_code == 200
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert httpx.get(f"{system.url}{asset}", trust_env=False).status_code == 200, "the page works without the internet"


def test_no_route_takes_a_personal_value_in_its_address(system: System) -> None:
    document = contract_of(system.url).document
    parameters = {
        parameter["name"]
        for operations in document["paths"].values()
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] in ("path", "query")
    }
    assert parameters == {"member_id", "sale_id", "store_id", "operation_id", "programme_id", "store", "limit", "cursor"}


# --- health ---


def test_health_says_what_is_there(till: Till) -> None:
    assert till.api.get("/healthz") == {"status": "ok"}
    assert till.api.get("/readyz") == {"status": "ready", "dependencies": {"database": "ok", "member": "ok", "reporting": "ok"}}


@pytest.mark.own_system
def test_without_the_member_service_the_gateway_stays_and_says_when_to_come_back(system: System, till: Till) -> None:
    sale = till.sale()
    with system.frozen("member"), ThreadPoolExecutor(4) as several:
        asked = [
            several.submit(till.api.ask, "POST", "/v1/sales", sale),
            several.submit(till.api.ask, "POST", "/v1/members", {"operation_id": uuid7()}),
            several.submit(till.api.ask, "GET", "/v1/sales"),
        ]
        assert till.api.get("/healthz") == {"status": "ok"}
        assert till.api.get("/readyz") == {"status": "ready", "dependencies": {"database": "ok", "member": "away", "reporting": "ok"}}
        assert len(till.api.get("/v1/stores")["items"]) >= 3, "what the gateway knows itself, it still answers"
        for answer in [future.result() for future in asked]:
            assert (answer.status_code, problem(answer)["code"]) == (503, "member_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
    wait_until(system.is_whole, "member is back")
    assert till.api.ask("POST", "/v1/sales", sale).status_code == 201
    assert len([each for each in till.api.items("/v1/sales") if each["operation_id"] == sale["operation_id"]]) == 1


@contextmanager
def closed(system: System, database: str) -> Iterator[None]:
    """Within the block the server answers, and lets nobody into the database."""

    def run(*statements: str) -> None:
        async def act() -> None:
            connection = await asyncpg.connect(host=str(system.postgres_socket.parent), user="postgres", database="template1")
            for statement in statements:
                await connection.execute(statement)
            await connection.close()

        asyncio.run(act())

    run(
        f"ALTER DATABASE {database} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
    )
    try:
        yield
    finally:
        run(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")


@pytest.mark.own_system
def test_a_database_that_lets_nobody_in_is_one_that_is_away(system: System, till: Till, admin: Api) -> None:
    def refused(answers: Sequence[httpx.Response], code: str) -> None:
        assert [(answer.status_code, problem(answer)["code"]) for answer in answers] == [(503, code)] * len(answers)
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)

    sale, store = till.sale(), {"operation_id": uuid7(), **STORE, "code": "S950"}
    with closed(system, "member"), ThreadPoolExecutor(4) as several:
        asked = [
            several.submit(till.api.ask, "POST", "/v1/sales", sale),
            several.submit(till.api.ask, "POST", "/v1/members", {"operation_id": uuid7()}),
            several.submit(till.api.ask, "GET", "/v1/sales"),
        ]
        refused([future.result() for future in asked], "member_unavailable")
    wait_until(lambda: till.api.ask("POST", "/v1/sales", sale).status_code == 201, "the sale is recorded")
    assert len([each for each in till.api.items("/v1/sales") if each["operation_id"] == sale["operation_id"]]) == 1
    with closed(system, "gateway"):
        refused([admin.ask("POST", "/v1/stores", store)], "gateway_database_unavailable")
        # Until its last answer is of a while ago.
        wait_until(lambda: not system.is_whole(), "the gateway is not ready")
        answer = httpx.get(f"{system.url}/readyz", trust_env=False)
        assert (answer.status_code, answer.json()["dependencies"]["database"]) == (503, "away")
        assert till.api.ask("POST", "/v1/sales", till.sale()).status_code == 201, "who is known may sell"
    wait_until(system.is_whole, "the gateway's database is back")
    assert admin.ask("POST", "/v1/stores", store).status_code == 201


@pytest.mark.own_system
def test_a_killed_service_is_back_and_what_it_was_asked_meanwhile_is_answered(system: System, till: Till) -> None:
    for name in ("member", "postgres"):
        system.kill(name)
        wait_until(lambda: system.console.count(f"{name} was killed by SIGKILL") > 0, f"{name} is missed")  # noqa: B023
        assert till.sell()["payable_minor"] == 45960
    system.kill("gateway")
    wait_until(system.is_whole, "gateway is back")
    assert till.sell()["payable_minor"] == 45960


# --- persons ---


def test_members_are_found_by_what_they_say_at_the_till_and_one_has_a_verified_phone(till: Till, admin: Api) -> None:
    person = {"name": "Zhāng Wěi", "phone": "(0086) 139-1000-2000", "phone_verified": True, "card": "VIP-001", "birthday": "05-17"}
    member_id = till.sign_up(**person)
    for typed in ("13910002000", "+86 139 1000 2000", "１３９１０００２０００"):
        assert [found["id"] for found in till.api.post("/v1/members:search", {"phone": typed}, 200)["items"]] == [member_id]
    assert [found["id"] for found in till.api.post("/v1/members:search", {"card": "VIP-001"}, 200)["items"]] == [member_id]
    assert till.api.get(f"/v1/members/{member_id}")["phone"] == "+8613910002000"
    twice = {"operation_id": uuid7(), "phone": "13910002000", "phone_verified": True}
    assert till.api.refused("/v1/members", twice) == (409, "phone_already_registered")
    assert till.api.refused("/v1/members", {"operation_id": uuid7(), "card": "VIP-001"}) == (409, "card_already_registered")
    other = till.sign_up(phone="13910002000")
    change = {"operation_id": uuid7(), "phone_verified": True}
    assert admin.refused(f"/v1/members/{other}", change, "PATCH") == (409, "phone_already_registered")
    # Of many at once, one.
    many = [{"operation_id": uuid7(), "phone": "13910002001", "phone_verified": True} for _ in range(8)]
    with ThreadPoolExecutor(8) as at_once:
        answers = list(at_once.map(lambda body: till.api.ask("POST", "/v1/members", body), many))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
