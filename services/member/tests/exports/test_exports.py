import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from google.protobuf.message import Message

from kit.db import raw, reading, transaction
from kit.ids import uuid7
from kit.outbox import Event
from kit.problems import Refusal
from member.exports import reads
from member.exports.reads import export_page
from member.exports.summaries import Summary, summarise
from member.points.rules import instant, unix_us
from member.programmes.operations import Books, apply_programme
from regulars.member.v1 import member_events_pb2, points_events_pb2, sale_events_pb2

if TYPE_CHECKING:
    from .conftest import Past
else:
    Past = Any

MESSAGES: dict[str, type[Message]] = {
    f"regulars.member.v1.{name}": getattr(module, name)
    for module, names in (
        (member_events_pb2, ("MemberSignedUp", "MemberChanged")),
        (sale_events_pb2, ("SaleRecorded", "SaleReversed", "ReturnRecorded")),
        (points_events_pb2, ("PointsMoved",)),
    )
    for name in names
}
EVERY_KIND = {"earn", "mature", "spend", "return", "take_back", "forgive", "expire", "adjust", "debt_payment"}


def decoded(type_: str, payload: bytes) -> Any:
    return MESSAGES[type_].FromString(payload)


async def pages(past: Past, size: int) -> AsyncIterator[list[Event]]:
    token, first = "", True
    books = Books()
    while token or first:
        first = False
        async with reading(past.desk.engine) as connection:
            driver = raw(connection)
            page = await export_page(driver, past.desk.keys, await books.current(driver), size=size, page_token=token)
        yield page.events
        token = page.next_page_token


async def exported(past: Past, size: int = 1000) -> list[Event]:
    return [event async for page in pages(past, size) for event in page]


async def published(past: Past) -> list[Any]:
    return await past.desk.rows("SELECT topic, key::text, type, payload, recorded_at FROM outbox ORDER BY position")


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_what_is_exported_is_what_was_published_field_by_field(past: Past, size: int) -> None:
    await past.happen(80)
    events = await exported(past, size)

    was = [(row["topic"], row["key"], row["recorded_at"], decoded(row["type"], row["payload"])) for row in await published(past)]
    made = [(event.topic, event.key, event.recorded_at, decoded(event.type, event.payload)) for event in events]
    kinds = Counter(move.kind for *_, message in was if isinstance(message, points_events_pb2.PointsMoved) for move in message.moves)
    assert set(kinds) == EVERY_KIND
    assert {type(message).__name__ for *_, message in was} == {name.rsplit(".", 1)[1] for name in MESSAGES}

    changed = {fact[1] for fact in was if isinstance(fact[3], member_events_pb2.MemberChanged)}
    assert len(changed) == 1
    # A member that was changed is told of as it is now.
    untouched = [fact for fact in was if not (fact[0] == "member.member.v1" and fact[1] in changed)]
    assert by_text(fact for fact in made if not (fact[0] == "member.member.v1" and fact[1] in changed)) == by_text(untouched)
    last = [fact for fact in was if isinstance(fact[3], member_events_pb2.MemberChanged)][-1]
    signed_up, change = [fact for fact in made if fact[0] == "member.member.v1" and fact[1] in changed]
    del last[3].changed_fields[:]
    assert change == last
    assert (signed_up[3].city, signed_up[3].birth_year_from) == ("上海", 1985)
    assert signed_up[3].version < change[3].version


async def test_the_facts_of_a_wallet_and_of_a_sale_come_in_their_order(past: Past) -> None:
    await past.happen(60)
    sequence: Counter[tuple[str, str]] = Counter()
    seen: set[str] = set()
    for event in await exported(past, 10):
        message = decoded(event.type, event.payload)
        if isinstance(message, points_events_pb2.PointsMoved):
            wallet = (message.member_id, message.programme_id)
            assert [move.sequence for move in message.moves] == list(range(sequence[wallet] + 1, sequence[wallet] + 1 + len(message.moves)))
            sequence[wallet] = message.wallet_sequence
        elif isinstance(message, sale_events_pb2.SaleRecorded):
            seen.add(message.sale_id)
        elif isinstance(message, sale_events_pb2.SaleReversed):
            assert message.sale_id in seen


async def test_a_page_is_about_as_long_as_asked_for(past: Past) -> None:
    await past.happen(40)
    sizes = [len(page) async for page in pages(past, 10)]
    assert len(sizes) > 5
    assert all(size >= 10 for size in sizes[:-1])
    assert max(sizes) <= 20


async def test_what_the_first_release_recorded_is_told_with_the_same_facts(past: Past) -> None:
    """It kept neither the instant at which an entry was recorded nor the wallet's sequence at a sale, nor the programme of a sign-up."""
    await past.happen(60)
    was = [decoded(row["type"], row["payload"]) for row in await published(past)]
    sums = as_sums(await summary_of(past))
    await past.stores[0].execute("UPDATE points_entries SET recorded_at = NULL")
    await past.stores[0].execute("UPDATE sales SET wallet_sequence = NULL")
    await past.stores[0].execute("UPDATE reversals SET wallet_sequence = NULL")
    await past.stores[0].execute("UPDATE members SET programme_id = NULL, changed_at = NULL")
    made = [decoded(event.type, event.payload) for event in await exported(past, 50)]
    assert sorted(moves_of(was)) == sorted(moves_of(made))
    for message in [*was, *made]:
        if hasattr(message, "wallet_sequence"):
            message.ClearField("wallet_sequence")
    kinds = (sale_events_pb2.SaleRecorded, sale_events_pb2.SaleReversed, sale_events_pb2.ReturnRecorded)
    assert by_text(each for each in made if isinstance(each, kinds)) == by_text(each for each in was if isinstance(each, kinds))
    assert {each.programme_id for each in made if isinstance(each, member_events_pb2.MemberSignedUp)} == {"demo"}
    assert as_sums(await summary_of(past)) == sums


def moves_of(messages: list[Any]) -> list[str]:
    """Every move, whatever the event that told of it."""
    return [
        f"{message.member_id} {message.programme_id} {move}"
        for message in messages
        if isinstance(message, points_events_pb2.PointsMoved)
        for move in message.moves
    ]


@pytest.mark.parametrize("query", [reads._MEMBERS, reads._SALES, reads._REVERSALS, reads._RETURNS, reads._ENTRIES])
async def test_a_page_costs_the_same_wherever_it_begins(past: Past, query: str) -> None:
    """Rows come in the order of an index: none is read that is not on the page, and nothing is sorted."""
    values = (
        ("'00000000-0000-0000-0000-000000000000'", "''", "0", "10")
        if query is reads._ENTRIES
        else ("'00000000-0000-0000-0000-000000000000'", "10")
    )
    for number, value in enumerate(values, 1):
        query = query.replace(f"${number}", value)  # with its values in the text, as EXPLAIN takes it
    async with transaction(past.desk.engine) as connection:
        driver = raw(connection)
        # As if there were many rows.
        await driver.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_incremental_sort = off")
        pages_of = [row[0] for row in await driver.fetch(f"EXPLAIN {query}")]
    assert any("Index Scan" in line for line in pages_of)
    assert not any("Sort" in line and "reversals" not in query for line in pages_of), pages_of


async def test_a_member_without_a_key_is_told_of_without_an_age(past: Past) -> None:
    member = await past.desk.member(birthday="1987-03-02")
    async with transaction(past.desk.engine) as connection:
        await raw(connection).execute("UPDATE members SET status = 'erased', data_key = NULL, birthday = NULL, birthday_index = NULL")
    (event,) = await exported(past)
    assert (event.key, decoded(event.type, event.payload).birth_year_from) == (member["id"], 0)


async def test_a_cursor_of_another_list_is_refused(past: Past) -> None:
    async with reading(past.desk.engine) as connection:
        with pytest.raises(Refusal, match="cursor_invalid"):
            await export_page(raw(connection), past.desk.keys, await Books().current(raw(connection)), size=1, page_token="bm8")


async def summary_of(past: Past, *, before: int | None = None, from_day: date | None = None, to_day: date | None = None) -> Summary:
    at = instant(before) if before is not None else past.desk.clock.now() + timedelta(seconds=1)
    async with transaction(past.desk.engine, snapshot=True) as connection:
        driver = raw(connection)
        return await summarise(driver, await Books().current(driver), at, uuid7(), from_day=from_day, to_day=to_day)


async def test_the_summary_is_the_sum_of_the_events(past: Past) -> None:
    await past.happen(70)
    await a_later_version_moves_the_zone(past)
    await past.happen(30)
    rows = await published(past)
    messages = [(row["recorded_at"], decoded(row["type"], row["payload"])) for row in rows]
    whole = await summary_of(past)
    assert as_sums(whole) == sums_of_events([message for _, message in messages])
    joined = Counter(message.joined_on for _, message in messages if isinstance(message, member_events_pb2.MemberSignedUp))
    assert {day.isoformat(): members for day, members in whole.members_days} == joined
    assert whole.unpublished_events == len(rows)

    days = sorted({day for _, message in messages for day in days_of(message)})
    first, last = days[len(days) // 3], days[2 * len(days) // 3]
    some = await summary_of(past, from_day=date.fromisoformat(first), to_day=date.fromisoformat(last))
    expected = sums_of_events([message for _, message in messages])
    for part in ("stores", "points"):
        assert as_sums(some)[part] == {key: value for key, value in expected[part].items() if first <= key[1] < last}
    assert some.points_totals == (await summary_of(past)).points_totals, "of all days"

    before = rows[len(rows) // 2]["recorded_at"]
    then = sums_of_events([message for at, message in messages if at < before])
    assert {key: value for key, value in as_sums(await summary_of(past, before=unix_us(before))).items() if key != "totals"} == {
        key: value for key, value in then.items() if key != "totals"
    }


async def a_later_version_moves_the_zone(past: Past) -> None:
    async with transaction(past.desk.engine) as connection:
        now = past.desk.clock.now()
        definition = {
            "programme_id": "demo",
            "name": "Moved",
            "effective_from": (now + timedelta(days=3)).date().isoformat(),
            "zone": "Pacific/Auckland",
            "currency": "CNY",
            "earn": {"points": 1, "per_minor": 100},
            "spend": {"points": 1, "minor": 1},
            "expiry": "never",
        }
        await apply_programme(raw(connection), definition, applied_by="test", now=now)


def by_text(facts: Any) -> list[str]:
    return sorted(str(fact) for fact in facts)


def days_of(message: Any) -> list[str]:
    if isinstance(message, points_events_pb2.PointsMoved):
        return [move.day for move in message.moves]
    return [message.business_day] if hasattr(message, "business_day") else []


def as_sums(summary: Summary) -> dict[str, Any]:
    return {
        "stores": {
            (each.store_id, each.business_day.isoformat(), each.currency): (
                each.receipts, each.gross_minor, each.discount_minor, each.net_minor, each.payable_minor, Decimal(each.quantity),
                each.returns, each.returned_net_minor, each.refund_minor, Decimal(each.returned_quantity),
                each.sales_checksum, each.lines_checksum, each.returned_lines_checksum,
            )
            for each in summary.store_days
        },
        "points": {
            (each.programme_id, each.day.isoformat(), each.kind): (each.entries, each.points, each.pending, each.debt, each.expired)
            for each in summary.points_days
        },
        "totals": {each.programme_id: (each.balance, each.pending, each.debt) for each in summary.points_totals},
    }  # fmt: skip


def sums_of_events(messages: list[Any]) -> dict[str, Any]:
    """The same sums, from what was published: an independent reckoning."""
    stores: dict[Any, list[Any]] = {}
    points: dict[Any, list[int]] = {}
    totals: dict[str, list[int]] = {}
    for message in messages:
        if isinstance(message, points_events_pb2.PointsMoved):
            total = totals.setdefault(message.programme_id, [0, 0, 0])
            for move in message.moves:
                sums = points.setdefault((message.programme_id, move.day, move.kind), [0] * 5)
                for at, value in enumerate((1, move.points, move.pending, move.debt, move.expired)):
                    sums[at] += value
                for at, value in enumerate((move.points, move.pending, move.debt)):
                    total[at] += value
        elif hasattr(message, "store_id"):
            day = stores.setdefault((message.store_id, message.business_day, message.currency), [0] * 13)
            quantity = sum(Decimal(line.quantity) for line in message.lines)
            if isinstance(message, sale_events_pb2.SaleRecorded):
                values = [1, message.gross_minor, message.discount_minor, message.net_minor, message.payable_minor, quantity, 0, 0, 0, 0]
                checksums = [*checksums_of_sale(message), 0]
            else:
                net = message.net_minor if isinstance(message, sale_events_pb2.SaleReversed) else message.refund_minor
                values = [0, 0, 0, 0, 0, 0, 1, net, message.refund_minor, quantity]
                checksums = [0, 0, checksum_of_return(message)]
            values += checksums
            stores[message.store_id, message.business_day, message.currency] = [a + b for a, b in zip(day, values, strict=True)]
    return {
        "stores": {key: tuple(value) for key, value in stores.items()},
        "points": {key: tuple(value) for key, value in points.items()},
        "totals": {key: tuple(value) for key, value in totals.items()},
    }


def checksum(*values: object) -> int:
    """What one row adds to a checksum, as `export_service.proto` says."""
    return int.from_bytes(hashlib.md5("\x1f".join(map(str, values)).encode(), usedforsecurity=False).digest()[:4])


def checksums_of_sale(sale: Any) -> tuple[int, int]:
    member_id = sale.member_id or str(UUID(int=0))
    return (
        checksum(sale.sale_id, member_id, sale.programme_id, sale.channel, sale.staff_code, sale.net_minor, sale.points_earned),
        sum(
            checksum(
                sale.sale_id, line.line_no, member_id, sale.channel, sale.staff_code, line.sku, line.category, line.net_minor,
                line.points_earned,
            )
            for line in sale.lines
        ),
    )  # fmt: skip


def checksum_of_return(back: Any) -> int:
    is_reversal = isinstance(back, sale_events_pb2.SaleReversed)
    labels = (back.channel, back.staff_code) if is_reversal else ("", "")
    identity, member_id = back.reversal_id if is_reversal else back.return_id, back.member_id or str(UUID(int=0))
    return sum(
        checksum(identity, line.line_no, member_id, *labels, line.sku, line.category, line.net_minor, line.refund_minor)
        for line in back.lines
    )
