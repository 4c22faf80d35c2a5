"""The worked examples of the API's description, to the cent and to the point, through the running gateway."""

import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kit.clock import SystemClock
from tests.integration.api import Api, Json
from tests.integration.shop import LINES, SHANGHAI, Till, cash, end_of_next_year, lines_of, now
from tests.integration.system import System

NewMember = Callable[..., str]


def by_line(document: Json, figure: str) -> list[Any]:
    return [line[figure] for line in document["lines"]]


def test_the_sale_as_printed(till: Till, member: NewMember) -> None:
    member_id = member(2000)
    sold_at = now()
    asked = till.sale(member_id, LINES, 1000, sold_at=sold_at, receipt_no="000123", channel="store", staff_code="E042")
    sale = till.api.post("/v1/sales", asked)
    printed = {
        **till.place, "operation_id": asked["operation_id"], "receipt_no": "000123", "currency": "CNY", "member_id": member_id,
        "sold_at": sold_at, "business_day": sold_at[:10], "gross_minor": 46960, "discount_minor": 1000, "net_minor": 45960,
        "points_spent_minor": 1000, "payable_minor": 44960, "tenders": cash(44960), "reversals": [],
        "points": {
            "earned": 449, "spent": 1000, "balance": 1449, "pending": 0, "debt": 0,
            "next_expiry": {"points": 1449, "at": end_of_next_year()},
        },
    }  # fmt: skip
    assert {name: sale[name] for name in printed} == printed
    first = {
        "line_no": 1, "sku": "A100", "quantity": "1", "amount_minor": 19990, "discount_minor": 1000, "net_minor": 18990,
        "discounts": [{"amount_minor": 1000, "reason": "member price"}], "points_spent": 413, "points_spent_minor": 413,
        "payable_minor": 18577, "points_earned": 186, "reversed_quantity": "0",
    }  # fmt: skip
    assert {name: sale["lines"][0][name] for name in first} == first
    assert sale["lines"][0]["rule"].startswith("demo@")
    # What was answered is what is read later, but for the figures of that moment.
    assert till.api.get(f"/v1/sales/{sale['id']}") | {"points": None} == sale | {"points": None}
    assert [each["id"] for each in till.api.items(f"/v1/members/{member_id}/sales")] == [sale["id"]]


def test_example_1_a_reversal_in_parts(till: Till, member: NewMember) -> None:
    member_id = member()
    sale = till.sell(member_id)
    assert (sale["points"]["earned"], by_line(sale, "points_earned")) == (459, [190, 199, 70])
    steps = [((2, "1"), 100, 9990), ((1, "1"), 190, 18990), ((2, "1"), 100, 9990), ((3, "1"), 69, 6990)]
    left = 459
    for line, taken_back, refund in steps:
        back = till.reverse(sale, line)
        left -= taken_back
        assert (back["points"]["taken_back"], back["refund_minor"], back["points"]["balance"]) == (taken_back, refund, left)
        assert back["tenders"] == cash(refund)
    assert till.points(member_id) == (0, 0)
    after = till.api.get(f"/v1/sales/{sale['id']}")
    assert by_line(after, "reversed_quantity") == ["1", "2", "1"]
    assert sum(each["refund_minor"] for each in after["reversals"]) == 45960
    assert till.api.refused(f"/v1/sales/{sale['id']}/reversals", till.reversal()) == (409, "nothing_left_to_reverse")


@pytest.mark.parametrize("order", sorted(set(itertools.permutations([(1, "1"), (2, "1"), (2, "1"), (3, "1")]))))
def test_example_1_whatever_the_order_and_the_parts(till: Till, member: NewMember, order: tuple[tuple[int, str], ...]) -> None:
    member_id = member(500)
    sale = till.sell(member_id)
    parts = [till.reverse(sale, part) for part in order]
    assert sum(part["refund_minor"] for part in parts) == 45960
    assert sum(part["points"]["taken_back"] for part in parts) == 459
    assert till.points(member_id) == (500, 0)


def test_example_2_spent_points_return_to_their_lots(till: Till, member: NewMember) -> None:
    member_id = member(2000)
    sale = till.sell(member_id, points=1000)
    assert by_line(sale, "points_spent") == [413, 435, 152]
    assert by_line(sale, "payable_minor") == [18577, 19545, 6838]
    assert (sale["points"]["earned"], sale["points"]["balance"]) == (449, 1449)
    third = till.reverse(sale, (3, "1"))
    assert (third["refund_minor"], third["points"]["returned"], third["points"]["taken_back"]) == (6838, 152, 68)
    halves = [till.reverse(sale, (2, "1")) for _ in range(2)]
    assert [half["refund_minor"] for half in halves] == [9773, 9772]
    assert [half["points"]["returned"] for half in halves] == [217, 218]
    till.reverse(sale)
    assert till.points(member_id) == (2000, 0)
    lots = list(till.api.items(f"/v1/members/{member_id}/points/lots"))
    assert {lot["source"]["kind"]: (lot["quantity"], lot["remaining"]) for lot in lots} == {"adjustment": (2000, 2000), "sale": (449, 0)}


def test_example_3_what_was_spent_becomes_a_debt(till: Till, member: NewMember) -> None:
    member_id = member()
    first = till.sell(member_id)
    second = till.sell(member_id, lines_of("4.59"), 459, tenders=[])
    assert (second["points"]["spent"], second["points"]["earned"], second["points"]["balance"]) == (459, 0, 0)
    back = till.reverse(first)
    assert (back["points"]["taken_back"], back["points"]["balance"], back["points"]["debt"]) == (459, 0, 459)
    third = till.sell(member_id, lines_of("500.00"))
    assert (third["points"]["earned"], third["points"]["balance"], third["points"]["debt"]) == (500, 41, 0)
    entries = list(till.api.items(f"/v1/members/{member_id}/points/entries"))
    assert sum(entry["points"] for entry in entries) == 41


@pytest.mark.timeout(240)
@pytest.mark.own_system
def test_example_4_one_sale_and_equal_answers_also_after_a_restart(system: System, till: Till, member: NewMember) -> None:
    member_id = member()
    sale = till.sale(member_id)
    with ThreadPoolExecutor(2) as two:
        answers = list(two.map(lambda _: till.api.ask("POST", "/v1/sales", sale), range(2)))
    system.stop()
    system.start()
    till = Till(system.api(system.key("till")), system.store_id, system.till_id)
    answers.append(till.api.ask("POST", "/v1/sales", sale))
    assert [answer.status_code for answer in answers] == [201] * 3
    assert len({answer.content for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotent-Replayed", "") for answer in answers) == ["", "true", "true"]
    assert [each["operation_id"] for each in till.api.items(f"/v1/members/{member_id}/sales")] == [sale["operation_id"]]
    became = till.api.get(f"/v1/operations/{sale['operation_id']}")
    assert (became["status"], became["method"], became["path"]) == (201, "POST", "/v1/sales")
    assert became["body"] == answers[0].json()


def test_example_5_points_are_spent_once_however_many_ask(till: Till, member: NewMember) -> None:
    member_id = member(10_000)
    sales = [till.sale(member_id, lines_of("10.00"), 1000, tenders=[]) for _ in range(64)]
    with ThreadPoolExecutor(64) as at_once:
        answers = list(at_once.map(lambda sale: till.api.ask("POST", "/v1/sales", sale), sales))
    assert Counter(answer.status_code for answer in answers) == {201: 10, 422: 54}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 422} == {"insufficient_points"}
    assert till.points(member_id) == (0, 0)


def test_refunds_go_to_card_then_stored_value_then_cash(till: Till) -> None:
    tenders = [("cash", 1000), ("stored_value", 2000), ("card", 3000), ("card", 4000)]
    paid = [{"type": kind, "amount_minor": amount, "reference": f"R{n}"} for n, (kind, amount) in enumerate(tenders)]
    sale = till.sell(lines=lines_of("35.00", "55.00", "10.00"), tenders=paid)
    parts = [till.reverse(sale, (line, "1")) for line in (1, 2, 3)]
    went = [[(each["reference"], each["amount_minor"]) for each in part["tenders"]] for part in parts]
    assert went == [[("R2", 3000), ("R3", 500)], [("R3", 3500), ("R1", 2000)], [("R0", 1000)]]


def test_a_guest_buys_and_returns_without_points(till: Till) -> None:
    sale = till.sell()
    assert (sale["member_id"], sale["points"], sale["payable_minor"]) == (None, None, 45960)
    assert by_line(sale, "points_earned") == [0, 0, 0]
    back = till.reverse(sale, (2, "1"))
    assert (back["refund_minor"], back["points"]) == (9990, None)
    assert till.reverse(sale)["refund_minor"] == 45960 - 9990


def test_a_discount_on_the_whole_sale_is_shared_by_largest_remainder(till: Till, member: NewMember) -> None:
    sale = till.sell(member(), lines_of("10.00", "10.00", "10.00"), discounts=[{"amount_minor": 1000, "reason": "coupon"}])
    assert by_line(sale, "discount_minor") == [334, 333, 333]
    assert (sale["net_minor"], sale["points"]["earned"], by_line(sale, "points_earned")) == (2000, 20, [6, 7, 7])


def test_a_late_upload_earns_by_its_day_and_spends_as_if_live(till: Till, member: NewMember) -> None:
    member_id = member(100)
    today = SystemClock().now().astimezone(SHANGHAI)
    last_year = f"{today.year - 1}-06-30T23:59:59+08:00"
    sale = till.sell(member_id, lines_of("501.00"), 100, sold_at=last_year)
    assert sale["business_day"] == f"{today.year - 1}-06-30"
    assert (sale["points"]["spent"], sale["points"]["earned"], sale["points"]["balance"]) == (100, 500, 500)
    assert sale["points"]["next_expiry"] == {"points": 500, "at": f"{today.year}-12-31T16:00:00Z"}
    # Older than its points could last: they were earned, and are gone.
    expired = till.sell(member_id, lines_of("300.00"), sold_at=f"{today.year - 3}-01-02T10:00:00+08:00")
    assert (expired["points"]["earned"], expired["points"]["balance"]) == (300, 500)
    back = till.reverse(expired)
    assert (back["points"]["taken_back"], back["points"]["balance"], back["points"]["debt"]) == (300, 500, 0)


def test_a_business_day_is_the_stores(till: Till) -> None:
    day = SystemClock().now().astimezone(SHANGHAI).date().replace(month=1, day=2)
    assert till.sell(sold_at=f"{day.replace(day=1)}T15:59:59Z")["business_day"] == f"{day.replace(day=1)}"
    assert till.sell(sold_at=f"{day.replace(day=1)}T16:00:00Z")["business_day"] == f"{day}"


def test_every_balance_is_proven(admin: Api) -> None:
    assert admin.differences() == []
