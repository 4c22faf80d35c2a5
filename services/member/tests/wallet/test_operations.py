"""The batch writer: the worked examples of api.md, groups, replays, and what two at once may do."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import structs

from kit.ids import uuid7
from member.sales.rules import Discount, Tender
from regulars.member.v1 import points_events_pb2 as points_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb

if TYPE_CHECKING:
    from .conftest import Chain
else:
    Chain = Any


def by_line(document: dict[str, Any], figure: str) -> list[Any]:
    return [line[figure] for line in document["lines"]]


async def points(chain: Chain, member_id: str) -> tuple[int, int, int]:
    rows = await chain.rows("SELECT balance, pending, debt FROM wallets WHERE member_id = $1", member_id)
    return tuple(rows[0]) if rows else (0, 0, 0)


async def test_worked_example_1(chain: Chain) -> None:
    """LEAP-01: earned points come back as points due on what is left, less points granted."""
    member = await chain.member()
    lines = (
        chain.line(1, "199.90", discounts=(Discount(1000, "member price"),)),
        chain.line(2, "99.90", "2"),
        chain.line(3, "69.90"),
    )
    sale = await chain.do(chain.sale(member, lines=lines))
    assert sale["points"]["earned"] == 459
    assert by_line(sale, "points_earned") == [190, 199, 70]
    assert sale["points"]["next_expiry"] == {"points": 459, "at": "2027-12-31T16:00:00Z"}
    steps = [((2, "1"), 100, 9990), ((1, "1"), 190, 18_990), ((2, "1"), 100, 9990), ((3, "1"), 69, 6990)]
    for line, taken_back, refund in steps:
        preview = await chain.preview(chain.reversal(sale["id"], [line]))
        back = await chain.do(chain.reversal(sale["id"], [line]))
        assert (back["points"]["taken_back"], back["refund_minor"]) == (taken_back, refund)
        assert preview["points"] == back["points"]
        assert preview["lines"] == back["lines"]
        assert preview["tenders"] == back["tenders"]
    assert await points(chain, member) == (0, 0, 0)
    assert await chain.refused(chain.reversal(sale["id"])) == (409, "nothing_left_to_reverse")
    assert await chain.differences() == []


async def test_worked_example_2(chain: Chain) -> None:
    """Spent points are shared to lines, and return to the lots they came from."""
    member = await chain.member()
    await chain.do(chain.adjustment(member, 2000))
    lines = (
        chain.line(1, "199.90", discounts=(Discount(1000, "member price"),)),
        chain.line(2, "99.90", "2"),
        chain.line(3, "69.90"),
    )
    sale = await chain.do(chain.sale(member, lines=lines, points=1000))
    assert by_line(sale, "points_spent") == [413, 435, 152]
    assert by_line(sale, "payable_minor") == [18_577, 19_545, 6838]
    assert sale["points"] == {
        "earned": 449,
        "spent": 1000,
        "balance": 1449,
        "pending": 0,
        "debt": 0,
        "next_expiry": {"points": 1449, "at": "2027-12-31T16:00:00Z"},
    }
    third = await chain.do(chain.reversal(sale["id"], [(3, "1")]))
    assert (third["refund_minor"], third["points"]["returned"], third["points"]["taken_back"]) == (6838, 152, 68)
    halves = [await chain.do(chain.reversal(sale["id"], [(2, "1")])) for _ in range(2)]
    assert [half["refund_minor"] for half in halves] == [9773, 9772]
    assert [half["points"]["returned"] for half in halves] == [217, 218]
    await chain.do(chain.reversal(sale["id"]))
    assert await points(chain, member) == (2000, 0, 0)
    assert await chain.differences() == []


async def test_worked_example_3_what_was_spent_becomes_a_debt_paid_first(chain: Chain) -> None:
    """Complaint 1: earn, spend, refund must not keep the points."""
    member = await chain.member()
    lines = (chain.line(1, "189.90"), chain.line(2, "99.90", "2"), chain.line(3, "69.90"))
    first = await chain.do(chain.sale(member, lines=lines))
    await chain.do(chain.sale(member, ["4.59"], points=459, tenders=[]))
    back = await chain.do(chain.reversal(first["id"]))
    assert (back["points"]["taken_back"], back["points"]["balance"], back["points"]["debt"]) == (459, 0, 459)
    later = await chain.do(chain.sale(member, ["500.00"]))
    assert (later["points"]["earned"], later["points"]["balance"], later["points"]["debt"]) == (500, 41, 0)
    assert await chain.differences() == []


async def test_a_replay_gives_the_first_answer_byte_for_byte(chain: Chain) -> None:
    """Worked example 4, also within one group and also for a refusal."""
    member = await chain.member()
    command = chain.command(chain.sale(member))
    broke = chain.command(chain.sale(member, ["5.00"], points=500, tenders=[]))
    first = await asyncio.gather(chain.run(command), chain.run(command, broke, command), chain.run(broke))
    flat = [outcome for group in first for outcome in group]
    assert len({outcome.body for outcome in flat if outcome.status == 201}) == 1
    assert sum(outcome.replayed for outcome in flat) == 3
    (again,) = await chain.run(command)
    assert again.replayed
    assert again.amount_minor == 46_960
    assert (await chain.rows("SELECT count(*) FROM sales"))[0][0] == 1


async def test_the_same_id_with_another_body_is_a_reuse_and_leaves_the_first_answer(chain: Chain) -> None:
    member = await chain.member()
    command = chain.command(chain.sale(member))
    (first,) = await chain.run(command)
    (other,) = await chain.run(chain.command(chain.sale(member, ["1.00"]), command.operation_id))
    assert (other.status, msgspec.json.decode(other.body)["code"]) == (409, "operation_id_reused")
    (again,) = await chain.run(command)
    assert again.body == first.body


async def test_concurrent_spends_never_overdraw(chain: Chain) -> None:
    """Worked example 5: 64 sales of 10.00 paid with points from a balance of 10,000: exactly ten succeed."""
    member = await chain.member()
    await chain.do(chain.adjustment(member, 10_000))
    commands = [chain.command(chain.sale(member, ["10.00"], points=1000, tenders=[])) for _ in range(64)]
    groups = await asyncio.gather(*(chain.run(*commands[i : i + 4]) for i in range(0, 64, 4)))
    outcomes = [outcome for group in groups for outcome in group]
    assert sorted(outcome.status for outcome in outcomes) == [201] * 10 + [422] * 54
    assert {msgspec.json.decode(o.body)["code"] for o in outcomes if o.status == 422} == {"insufficient_points"}
    assert await points(chain, member) == (0, 0, 0)
    assert await chain.differences() == []


async def test_two_tills_reversing_the_same_line_one_wins_and_the_other_is_told(chain: Chain) -> None:
    for member in (await chain.member(), ""):
        sale = await chain.do(chain.sale(member))
        commands = [chain.command(chain.reversal(sale["id"], [(1, "1")])) for _ in range(2)]
        outcomes = [outcome for group in await asyncio.gather(*map(chain.run, commands)) for outcome in group]
        assert sorted(outcome.status for outcome in outcomes) == [201, 409]
        codes = [msgspec.json.decode(o.body).get("code") for o in outcomes]
        assert "quantity_already_reversed" in codes
    assert await chain.differences() == []


async def test_a_refused_command_refuses_only_itself(chain: Chain) -> None:
    member = await chain.member()
    group = [
        chain.command(chain.sale(member, ["10.00"])),
        chain.command(chain.sale(member, ["10.00"], tenders=[Tender("cash", 999)])),
        chain.command(chain.sale(uuid7(), ["10.00"])),
        chain.command(chain.reversal(uuid7())),
        chain.command(chain.sale("", ["10.00"])),
    ]
    outcomes = await chain.run(*group)
    assert [outcome.status for outcome in outcomes] == [201, 422, 422, 404, 201]
    codes = [msgspec.json.decode(outcome.body).get("code") for outcome in outcomes]
    assert codes == [None, "tenders_do_not_balance", "member_not_found", "sale_not_found", None]


async def test_a_fault_of_data_fails_alone(chain: Chain) -> None:
    """PostgreSQL refuses text with a NUL character: whatever slips past the gateway must not take its neighbours along."""
    member = await chain.member()
    group = [chain.command(chain.sale(member, ["10.00"])) for _ in range(5)]
    group.insert(2, chain.command(chain.sale(member, ["10.00"], staff_code="a\0b")))
    outcomes = await chain.run(*group)
    assert [outcome.status for outcome in outcomes] == [201, 201, 500, 201, 201, 201]
    assert await points(chain, member) == (50, 0, 0)


async def test_a_reversal_may_follow_its_sale_in_the_same_group(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.adjustment(member, 5))
    sale = chain.sale(member)
    spend = chain.sale(member, ["4.00"], points=400, tenders=[])
    reversal = chain.reversal("", sale_operation_id=sale.operation_id)
    outcomes = await chain.run(chain.command(sale), chain.command(spend), chain.command(reversal))
    assert [outcome.status for outcome in outcomes] == [201, 201, 201]
    assert outcomes[2].amount_minor == 46_960
    assert await points(chain, member) == (0, 0, 395)
    assert await chain.differences() == []


async def test_lots_are_spent_earliest_expiry_first_and_expired_ones_are_gone(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.sale(member, ["100.00"], sold_at=chain.clock.now() - timedelta(days=365)))
    await chain.do(chain.sale(member, ["300.00"]))
    spent = await chain.do(chain.sale(member, ["0.50"], points=50, tenders=[]))
    assert spent["points"]["next_expiry"] == {"points": 50, "at": "2026-12-31T16:00:00Z"}
    chain.clock.advance(timedelta(days=60))
    after = await chain.do(chain.sale(member, ["3.00"], points=300, tenders=[]))
    assert after["points"]["balance"] == 0
    back = await chain.do(chain.reversal(spent["id"]))
    assert back["points"]["returned"] == 50
    assert back["points"]["next_expiry"]["at"].startswith("2027-02-19"), "an expired lot lives again for the grace of 30 days"
    assert await chain.differences() == []


async def test_a_late_upload_earns_by_its_day_and_what_has_lapsed_counts_as_taken_back(chain: Chain) -> None:
    member = await chain.member()
    sale = await chain.do(chain.sale(member, ["100.00"], sold_at=chain.clock.now() - timedelta(days=4000)))
    assert (sale["points"]["earned"], sale["points"]["balance"]) == (100, 0)
    back = await chain.do(chain.reversal(sale["id"]))
    assert (back["points"]["taken_back"], back["points"]["debt"]) == (100, 0)
    assert await chain.differences() == []


async def test_points_of_a_late_upload_that_lapsed_long_ago_leave_no_day_with_fewer_than_none(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.sale(member, ["100.00"], sold_at=chain.clock.now() - timedelta(days=1000)))
    rows = await chain.rows("SELECT kind, at, points, expires_at FROM points_entries WHERE member_id = $1 ORDER BY sequence", member)
    assert [tuple(row)[:3] for row in rows] == [("earn", chain.clock.now(), 100), ("expire", chain.clock.now(), -100)]
    assert rows[1]["expires_at"] < chain.clock.now() - timedelta(days=200)
    (payload,) = await chain.rows("SELECT payload FROM outbox WHERE type LIKE '%PointsMoved' AND key = $1", member)
    moves = points_pb.PointsMoved.FromString(payload[0]).moves
    assert [(move.kind, move.day) for move in moves] == [("earn", "2026-11-21"), ("expire", "2026-11-21")]
    assert await chain.differences() == []


async def test_a_clock_that_goes_back_does_no_harm(chain: Chain) -> None:
    member = await chain.member()
    first = await chain.do(chain.sale(member, ["100.00"]))
    chain.clock.advance(timedelta(days=-400))
    await chain.do(chain.sale(member, ["50.00"]))
    back = await chain.do(chain.reversal(first["id"]))
    assert back["points"]["balance"] == 50
    assert await chain.differences() == []


async def test_reconcile_names_every_difference_and_rebuilds_it(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.sale(member))
    await chain.execute("UPDATE wallets SET balance = balance + 7, expiries = '{}'")
    await chain.execute("UPDATE points_lots SET remaining = remaining - 1")
    figures = {difference.figure for difference in await chain.differences()}
    assert figures == {"balance", "expiries", "lot.remaining"}
    assert all(difference.rebuilt for difference in await chain.differences(rebuild=True))
    assert await chain.differences() == []
    assert await points(chain, member) == (469, 0, 0)


async def test_reconcile_proves_a_lots_state_and_expiry_from_its_entries(chain: Chain) -> None:
    """What a corrupted lot says must never become the truth."""
    member = await chain.member()
    await chain.do(chain.adjustment(member, 1000))
    await chain.execute("UPDATE points_lots SET matured = false, expires_at = now()")
    assert {difference.figure for difference in await chain.differences()} == {"lot.matured", "lot.expires_at"}
    await chain.differences(rebuild=True)
    assert await chain.differences() == []
    spent = await chain.do(chain.sale(member, ["1.00"], points=100, tenders=[]))
    assert (spent["points"]["balance"], spent["points"]["next_expiry"]["at"]) == (900, "2027-12-31T16:00:00Z")


async def test_reconcile_names_what_it_cannot_rebuild(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.sale(member))
    await chain.do(chain.sale(member))
    await chain.execute("DELETE FROM points_entries WHERE sequence = 1")
    rebuilt = {difference.figure: difference.rebuilt for difference in await chain.differences(rebuild=True)}
    assert rebuilt["balance"]
    assert not rebuilt["number of entries"]
    assert await chain.differences() != []


async def test_a_reversal_dated_before_its_sale_is_refused(chain: Chain) -> None:
    sale = await chain.do(chain.sale(""))
    early = chain.reversal(sale["id"])
    dated = structs.replace(early, reversal=structs.replace(early.reversal, reversed_at=chain.clock.now() - timedelta(days=1)))
    assert await chain.refused(dated) == (422, "reversed_before_sold")


async def test_a_programme_in_another_currency_is_refused(chain: Chain) -> None:
    """Points of one currency must not pay in another."""
    member = await chain.member()
    store = structs.replace(chain.store, currency="USD")
    assert await chain.refused(chain.sale(member, store=store, currency="USD")) == (422, "programme_currency_mismatch")
    assert (await chain.do(chain.sale("", store=store, currency="USD")))["currency"] == "USD"


async def test_an_event_leaves_with_every_act_and_names_no_person(chain: Chain) -> None:
    member = await chain.member()
    sale = await chain.do(chain.sale(member, channel="web", staff_code="E042"))
    chain.clock.advance(timedelta(hours=6))
    await chain.do(chain.reversal(sale["id"]))
    rows = await chain.rows("SELECT topic, key::text, type, payload FROM outbox ORDER BY position")
    assert [(row["topic"], row["key"], row["type"].rsplit(".", 1)[1]) for row in rows] == [
        ("member.sale.v1", member, "SaleRecorded"),
        ("member.points.v1", member, "PointsMoved"),
        ("member.sale.v1", member, "SaleReversed"),
        ("member.points.v1", member, "PointsMoved"),
    ]
    reversed_ = sales_pb.SaleReversed.FromString(rows[2]["payload"])
    assert (reversed_.channel, reversed_.staff_code, reversed_.wallet_sequence) == ("web", "E042", 2), "the sale's, whoever took it back"
    moved = [points_pb.PointsMoved.FromString(rows[at]["payload"]) for at in (1, 3)]
    assert [move.day for each in moved for move in each.moves] == ["2026-11-21", "2026-11-22"], "in the zone of the programme"


@pytest.mark.parametrize(
    "change, code",
    [
        ({"store": None}, "store_not_found"),
        ({"currency": "USD"}, "currency_mismatch"),
        ({"points_to_spend": 1}, "insufficient_points"),
        ({"discounts": (Discount(99_999_999, "x"),)}, "discount_exceeds_amount"),
    ],
)
async def test_a_sale_against_the_rules_is_refused_with_its_code(chain: Chain, change: dict[str, Any], code: str) -> None:
    member = await chain.member()
    assert await chain.refused(chain.sale(member, **change)) == (422, code)
