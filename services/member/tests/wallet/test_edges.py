"""Where exactness could break: time and debits in one group, acts that build on one another, extremes of size."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kit.db import raw, transaction
from kit.ids import uuid7
from member.points.operations import list_entries
from member.programmes.operations import apply_programme
from member.sales.rules import Discount, Tender

if TYPE_CHECKING:
    from .conftest import Chain
else:
    Chain = Any


async def figures(chain: Chain, member_id: str) -> tuple[int, int, int]:
    rows = await chain.rows("SELECT balance, pending, debt FROM wallets WHERE member_id = $1", member_id)
    return tuple(rows[0])


async def pages(chain: Chain, read: Any, *given: Any, size: int = 500) -> list[list[Any]]:
    """All pages of a list."""
    found, token = [], ""
    while True:
        async with transaction(chain.engine, snapshot=True) as connection:
            page = msgspec.json.decode(await read(raw(connection), *given, size=size, page_token=token))
        found.append(page["items"])
        token = page["next_cursor"]
        if not token:
            return found


async def in_programme(chain: Chain, **changes: Any) -> Chain:
    """The same chain in a store of another programme."""
    definition: dict[str, Any] = {
        "programme_id": f"p-{uuid7()[-12:]}",
        "name": "Another",
        "effective_from": "2010-01-01",
        "zone": "Asia/Shanghai",
        "currency": "CNY",
        "earn": {"points": 1, "per_minor": 100},
        "spend": {"points": 1, "minor": 1},
        "expiry": {"days": 10},
    }
    async with transaction(chain.engine) as connection:
        await apply_programme(raw(connection), definition | changes, applied_by="test", now=chain.clock.now())
    return replace(chain, store=msgspec.structs.replace(chain.store, programme_id=definition["programme_id"]), numbers=10_000)


async def test_lots_that_expired_do_not_hide_the_live_ones_from_a_spend(chain: Chain) -> None:
    """A debit loads as many lots as it has points: those that lapse now are not among them."""
    chain = await in_programme(chain)
    member = await chain.member()
    for _ in range(3):
        await chain.do(chain.adjustment(member, 5))
    chain.clock.advance(timedelta(days=5))
    await chain.do(chain.adjustment(member, 7))
    chain.clock.advance(timedelta(days=6))
    after = await chain.do(chain.adjustment(member, -2))
    assert after["balance"] == 5
    assert await chain.differences() == []


async def test_lots_that_expired_do_not_hide_the_live_ones_from_a_refund(chain: Chain) -> None:
    chain = await in_programme(chain)
    member = await chain.member()
    sale = await chain.do(chain.sale(member, ["1.00"]))
    await chain.do(chain.sale(member, ["0.01"], points=1, tenders=[]))
    await chain.do(chain.adjustment(member, 1))
    chain.clock.advance(timedelta(days=5))
    await chain.do(chain.adjustment(member, 7))
    chain.clock.advance(timedelta(days=6))
    back = await chain.do(chain.reversal(sale["id"]))
    assert (back["points"]["taken_back"], back["points"]["balance"], back["points"]["debt"]) == (1, 6, 0)
    assert await chain.differences() == []


async def test_a_group_sent_again_while_the_first_is_under_way_finds_the_sale_that_it_reverses(chain: Chain) -> None:
    """An import that was killed and resumed sends a sale and its reversal again while the first request still runs."""
    for member in [await chain.member(), ""] * 5:
        sale = chain.sale(member)
        commands = [chain.command(sale), chain.command(chain.reversal("", sale_operation_id=sale.operation_id))]
        groups = await asyncio.gather(chain.run(commands[0]), chain.run(*commands), chain.run(*commands))
        assert {outcome.status for group in groups for outcome in group} == {201}
        assert len({group[1].body for group in groups[1:]}) == 1
    assert await chain.differences() == []


async def test_a_spend_an_expiry_and_a_reversal_meet_on_one_wallet_in_one_group(chain: Chain) -> None:
    chain = await in_programme(chain, restore_grace_days=3)
    member = await chain.member()
    await chain.do(chain.adjustment(member, 50))
    chain.clock.advance(timedelta(days=4))
    sale = chain.sale(member, ["100.00"], points=30)
    await chain.do(sale)
    chain.clock.advance(timedelta(days=6))
    # Of the first lot, 20 lapse now; the sale's own 99 live on.
    outcomes = await chain.run(
        chain.command(chain.sale(member, ["0.60"], points=60, tenders=[])),
        chain.command(chain.reversal("", sale_operation_id=sale.operation_id)),
        chain.command(chain.adjustment(member, 10)),
    )
    figures_after = [msgspec.json.decode(outcome.body) for outcome in outcomes]
    assert figures_after[0]["points"]["balance"] == 39
    # 39 are left of the sale's lot; the 30 that came back live again, and pay for the 60 that were spent as far as they go.
    assert figures_after[1]["points"] | {"next_expiry": None} == {
        "taken_back": 99,
        "returned": 30,
        "balance": 0,
        "pending": 0,
        "debt": 30,
        "next_expiry": None,
    }
    assert (figures_after[2]["balance"], figures_after[2]["debt"]) == (0, 20)
    assert await chain.differences() == []


async def test_wallets_of_two_programmes_of_one_member_stay_apart(chain: Chain) -> None:
    other = await in_programme(chain, earn={"points": 5, "per_minor": 100})
    member = await chain.member()
    here, there = chain.sale(member, ["10.00"]), other.sale(member, ["10.00"])
    spend = chain.sale(member, ["0.20"], points=20, tenders=[])
    back = other.reversal("", sale_operation_id=here.operation_id)
    outcomes = await chain.run(*(chain.command(act) for act in (here, there, spend, back)))
    assert [outcome.status for outcome in outcomes] == [201, 201, 422, 201], "what was earned there cannot be spent here"
    rows = await chain.rows("SELECT programme_id, balance FROM wallets WHERE member_id = $1", member)
    assert dict(map(tuple, rows)) == {chain.store.programme_id: 0, other.store.programme_id: 50}
    assert await chain.differences() == []


async def test_a_store_of_an_unknown_programme_sells_to_guests_alone(chain: Chain) -> None:
    nowhere = replace(chain, store=msgspec.structs.replace(chain.store, programme_id="nowhere"), numbers=500)
    member = await chain.member()
    assert await chain.refused(nowhere.sale(member)) == (422, "programme_not_found")
    assert await chain.refused(nowhere.adjustment(member, 5)) == (422, "programme_not_found")
    sale = await nowhere.do(nowhere.sale(""))
    back = await nowhere.do(nowhere.reversal(sale["id"]))
    assert (sale["points"], back["points"], back["refund_minor"]) == (None, None, sale["net_minor"])


async def test_a_command_whose_deadline_has_passed_is_not_done_and_may_be_sent_again(chain: Chain) -> None:
    member = await chain.member()
    late = msgspec.structs.replace(chain.command(chain.sale(member, ["10.00"])), deadline=chain.clock.now())
    outcomes = await chain.run(chain.command(chain.sale(member, ["10.00"])), late, chain.command(chain.sale(member, ["10.00"])))
    assert [outcome.status for outcome in outcomes] == [201, 503, 201]
    assert msgspec.json.decode(outcomes[1].body)["code"] == "not_decided_in_time"
    assert await figures(chain, member) == (20, 0, 0)
    (again,) = await chain.run(msgspec.structs.replace(late, deadline=chain.clock.now() + timedelta(seconds=1)))
    assert (again.status, again.replayed) == (201, False)


async def test_the_largest_amounts_are_exact(chain: Chain) -> None:
    member = await chain.member()
    lines = tuple(chain.line(number, "100000000000.00", "0.999999") for number in range(1, 21))
    sale = await chain.do(chain.sale(member, lines=lines, discounts=(Discount(7, "seven fen"),)))
    assert sale["net_minor"] == 20 * 9_999_990_000_000 - 7
    back = await chain.do(chain.reversal(sale["id"], [(1, "0.333333")]))
    rest = await chain.do(chain.reversal(sale["id"]))
    assert back["refund_minor"] + rest["refund_minor"] == sale["net_minor"]
    assert back["points"]["taken_back"] + rest["points"]["taken_back"] == sale["points"]["earned"]
    assert await chain.differences() == []


async def test_more_points_than_any_wallet_holds_are_refused(chain: Chain) -> None:
    """And stored as a refusal, not tried again for ever."""
    generous = await in_programme(chain, earn={"points": 1_000_000, "per_minor": 1})
    member = await chain.member()
    assert await chain.refused(generous.sale(member, ["99999999999.99"])) == (422, "too_many_points")
    await generous.do(generous.adjustment(member, 10**12))
    assert (await generous.do(generous.sale(member, ["9990000.00"])))["points"]["balance"] == 10**12 + 999 * 10**12
    assert await chain.refused(generous.adjustment(member, 1)) == (422, "too_many_points")
    assert await chain.differences() == []


@pytest.mark.parametrize("field", ["receipt_no", "channel", "currency", "operation_id"])
async def test_text_that_the_database_refuses_harms_no_other_command(chain: Chain, field: str) -> None:
    member = await chain.member()
    bad = msgspec.structs.replace(chain.sale(member, ["10.00"]), **{field: "CN\0Y"})
    outcomes = await chain.run(*map(chain.command, (chain.sale(member, ["10.00"]), bad, chain.sale(member, ["10.00"]))))
    assert [outcomes[0].status, outcomes[2].status] == [201, 201]
    assert outcomes[1].status in {422, 500}
    assert await figures(chain, member) == (20, 0, 0)


async def test_the_operation_of_another_act_names_no_sale(chain: Chain) -> None:
    member = await chain.member()
    adjustment = chain.command(chain.adjustment(member, 5))
    refusal = chain.command(chain.sale(uuid7()))
    await chain.run(adjustment, refusal)
    for operation_id in (adjustment.operation_id, refusal.operation_id, "never-sent"):
        assert await chain.refused(chain.reversal("", sale_operation_id=operation_id)) == (404, "sale_not_found")
    # Nor in one group with it.
    adjustment = chain.command(chain.adjustment(member, 5))
    _, outcome = await chain.run(adjustment, chain.command(chain.reversal("", sale_operation_id=adjustment.operation_id)))
    assert outcome.status == 404


async def test_a_reversal_before_its_sale_in_a_group_is_told_that_there_is_none(chain: Chain) -> None:
    sale = chain.sale(await chain.member())
    outcomes = await chain.run(chain.command(chain.reversal("", sale_operation_id=sale.operation_id)), chain.command(sale))
    assert [outcome.status for outcome in outcomes] == [404, 201]


async def test_all_parts_of_a_sale_in_one_group_with_the_sale(chain: Chain) -> None:
    member = await chain.member()
    await chain.do(chain.adjustment(member, 500))
    tenders = [Tender("cash", 6960), Tender("card", 40_000)]
    sale = chain.sale(member, points=0, tenders=tenders)
    parts = [
        chain.reversal("", lines, sale_operation_id=sale.operation_id) for lines in ([(2, "0.5")], [(1, "1"), (3, "1")], [(2, "1.6")], ())
    ]
    outcomes = await chain.run(chain.command(sale), *(chain.command(part) for part in parts))
    assert [outcome.status for outcome in outcomes] == [201, 201, 201, 409, 201]
    refunds = [msgspec.json.decode(outcome.body)["tenders"] for outcome in outcomes[1:] if outcome.status == 201]
    assert [[(tender["type"], tender["amount_minor"]) for tender in each] for each in refunds] == [
        [("card", 4995)],
        [("card", 26_980)],
        [("card", 8025), ("cash", 6960)],
    ]
    assert await figures(chain, member) == (500, 0, 0)
    assert await chain.differences() == []


async def test_where_the_balance_may_be_negative_every_figure_says_so(chain: Chain) -> None:
    chain = await in_programme(chain, shortfall="negative")
    member = await chain.member()
    sale = await chain.do(chain.sale(member, ["10.00"]))
    await chain.do(chain.sale(member, ["0.08"], points=8, tenders=[]))
    back = await chain.do(chain.reversal(sale["id"]))
    assert (back["points"]["balance"], back["points"]["debt"]) == (-8, 0)
    assert await chain.refused(chain.sale(member, ["0.01"], points=1, tenders=[])) == (422, "insufficient_points")
    grant = await chain.do(chain.adjustment(member, 10))
    assert (grant["balance"], grant["debt"]) == (2, 0)
    entries = (await pages(chain, list_entries, member, chain.store.programme_id, "negative"))[0]
    # Newest first: each balance is the one before it and its points.
    older = [*(entry["balance"] for entry in entries[1:]), 0]
    assert [entry["balance"] for entry in entries] == [before + entry["points"] for before, entry in zip(older, entries, strict=True)]
    assert {entry["debt"] for entry in entries} == {0}
    assert entries[-1]["balance"] == 10
    assert min(entry["balance"] for entry in entries) == -8
