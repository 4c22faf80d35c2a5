"""Facts from a real bus into a real ClickHouse."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from kit.bus.dead_letters import DeadLetters
from kit.bus.interface import Bus, Message
from kit.clock import SystemClock
from kit.ids import uuid7
from kit.outbox import Event
from regulars.member.v1 import member_events_pb2 as members_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb
from reporting.clickhouse import ClickHouse
from reporting.facts.consumers import GROUP, FactsHandler
from services.reporting.tests.contents import consume_all, contents, one
from services.reporting.tests.events import (
    AT,
    MEMBERS_TOPIC,
    OTHER_STORE,
    SALES_TOPIC,
    STORE,
    changed,
    event,
    points,
    reversal,
    sale,
    signed_up,
    unlinked_return,
)

MEMBER = uuid7()


def a_history() -> list[Event]:
    """Of everything a bit."""
    first, sold = sale(member=MEMBER, lines=[("A100", "1", 189_90), ("B200", "2.5", 199_80)])
    _, again = sale(member=MEMBER, day="2026-11-23", staff_code="s2", channel="web")
    _, guest = sale(day="2026-12-01", store_id=OTHER_STORE)
    return [
        signed_up(MEMBER),
        sold,
        points(MEMBER, (1, "earn", 389)),
        reversal(first, member=MEMBER, lines=[(2, "1.5", 119_88)], store_id=OTHER_STORE),
        points(MEMBER, (2, "take_back", -120), (3, "expire", -1), day="2026-11-22"),
        again,
        guest,
        unlinked_return(),
        changed(MEMBER, city="Suzhou", version=2),
    ]


async def test_every_event_becomes_the_facts_it_tells(clickhouse: ClickHouse, bus: Bus) -> None:
    await bus.publish(a_history())
    await consume_all(bus, FactsHandler(clickhouse))
    sales = await clickhouse.query(
        "SELECT business_day, net_minor, items, channel, staff_code, notEmpty(member_id) FROM sales ORDER BY ALL"
    )
    assert sales == [
        (date(2026, 11, 21), 389_70, Decimal("3.5"), "store", "s1", 1),
        (date(2026, 11, 23), 10_00, Decimal(1), "web", "s2", 1),
        (date(2026, 12, 1), 10_00, Decimal(1), "store", "s1", 0),
    ]
    lines = await clickhouse.query(
        "SELECT sku, quantity, net_minor, channel FROM sale_lines WHERE business_day = '2026-11-21' ORDER BY line_no"
    )
    assert lines == [("A100", Decimal(1), 189_90, "store"), ("B200", Decimal("2.5"), 199_80, "store")]
    returns = await clickhouse.query("SELECT kind, store_id, net_minor, items, channel, notEmpty(sale_id) FROM returns ORDER BY kind")
    assert returns == [
        ("reversal", UUID(OTHER_STORE), 119_88, Decimal("1.5"), "store", 1),
        ("unlinked", UUID(STORE), 5_00, Decimal(1), "", 0),
    ]
    assert await clickhouse.query("SELECT sku, quantity FROM return_lines ORDER BY kind") == [
        ("A100", Decimal("1.5")),
        ("B200", Decimal(1)),
    ]
    moves = await clickhouse.query("SELECT day, sequence, kind, points FROM points_moves ORDER BY sequence")
    assert moves == [
        (date(2026, 11, 21), 1, "earn", 389),
        (date(2026, 11, 22), 2, "take_back", -120),
        (date(2026, 11, 22), 3, "expire", -1),
    ]
    members = await clickhouse.query("SELECT member_id, joined_on, birth_year_from, city FROM members")
    assert members == [(UUID(MEMBER), date(2026, 11, 1), 1985, "Suzhou")]
    first = await clickhouse.query("SELECT member_id, min(first_day) FROM first_purchases GROUP BY member_id")
    assert first == [(UUID(MEMBER), date(2026, 11, 21))]


async def test_a_replay_of_every_topic_changes_no_figure(clickhouse: ClickHouse, bus: Bus) -> None:
    await bus.publish(a_history())
    handler = FactsHandler(clickhouse)
    await consume_all(bus, handler)
    before = await contents(clickhouse)
    sources = [state.source for states in (await bus.topics()).values() for state in states]
    await bus.set_offsets(GROUP, dict.fromkeys(sources, 0))
    # In other batches than before.
    await consume_all(bus, handler, max_messages=2)
    assert await contents(clickhouse) == before
    assert await one(clickhouse, "SELECT sum(net_minor) FROM sales") == 409_70


async def test_an_event_published_twice_counts_once(clickhouse: ClickHouse, bus: Bus) -> None:
    _, sold = sale()
    await bus.publish([sold, sold])
    await bus.publish([sold])
    await consume_all(bus, FactsHandler(clickhouse))
    assert await one(clickhouse, "SELECT count() FROM sales") == 1
    assert await one(clickhouse, "SELECT sum(net_minor) FROM sale_lines") == 10_00


async def test_late_and_out_of_order_events_land_on_their_business_day(clickhouse: ClickHouse, bus: Bus) -> None:
    handler = FactsHandler(clickhouse)
    sale_id, sold = sale(member=MEMBER, day="2026-03-05")
    # The reversal is there first, then a sale of today, then the one of months ago, from a till that was offline.
    await bus.publish([reversal(sale_id, member=MEMBER, day="2026-11-22"), sale(member=MEMBER, day="2026-11-21")[1]])
    await consume_all(bus, handler)
    await bus.publish([sold, changed(MEMBER, city="Suzhou", version=2), signed_up(MEMBER, version=1)])
    await consume_all(bus, handler)
    assert await clickhouse.query("SELECT business_day, sum(net_minor) FROM sales GROUP BY business_day ORDER BY business_day") == [
        (date(2026, 3, 5), 10_00),
        (date(2026, 11, 21), 10_00),
    ]
    assert await clickhouse.query("SELECT business_day, sum(net_minor) FROM returns GROUP BY business_day") == [(date(2026, 11, 22), 10_00)]
    # What was true first is still the first, and of two states of a member the later one stays.
    assert await one(clickhouse, "SELECT min(first_day) FROM first_purchases") == date(2026, 3, 5)
    assert await one(clickhouse, "SELECT city FROM members") == "Suzhou"


class Killed(BaseException):
    """The process is gone."""


async def test_a_crash_between_insert_and_offset_doubles_nothing(clickhouse: ClickHouse, bus: Bus) -> None:
    await bus.publish(a_history())
    handler = FactsHandler(clickhouse)

    async def insert_and_die(messages: Sequence[Message]) -> None:
        await handler(messages)
        raise Killed

    with pytest.raises(Killed):
        await consume_all(bus, insert_and_die)
    assert sum(lag.committed or 0 for lag in await bus.lag(GROUP)) == 0
    before = await contents(clickhouse)
    await consume_all(bus, handler)
    assert await contents(clickhouse) == before


async def test_a_failing_insert_loses_nothing(clickhouse: ClickHouse, bus: Bus) -> None:
    """A disk that is full, a server that is away: what was read is read again, in its order, until it is in."""
    await bus.publish(a_history())
    await clickhouse.command("RENAME TABLE returns TO gone")
    failed = []
    handler = FactsHandler(clickhouse)

    async def observed(messages: Sequence[Message]) -> None:
        try:
            await handler(messages)
        except Exception:
            failed.append(len(messages))
            assert sum(lag.committed or 0 for lag in await bus.lag(GROUP)) == 0
            if len(failed) == 2:
                await clickhouse.command("RENAME TABLE gone TO returns")
            raise

    await consume_all(bus, observed)
    assert len(failed) == 2
    assert await one(clickhouse, "SELECT count() FROM returns") == 2
    assert await one(clickhouse, "SELECT sum(net_minor) FROM sales") == 409_70


async def test_clickhouse_away_is_waited_for(clickhouse: ClickHouse, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await bus.publish(a_history())
    attempts = 0
    connect = clickhouse._connect

    def refuse_twice() -> Any:
        nonlocal attempts
        attempts += 1
        if attempts <= 2:
            raise ConnectionRefusedError
        return connect()

    open_connection = clickhouse._writer.get_nowait()
    assert open_connection
    open_connection.close()
    clickhouse._writer.put_nowait(None)
    monkeypatch.setattr(clickhouse, "_connect", refuse_twice)
    await consume_all(bus, FactsHandler(clickhouse))
    assert attempts == 3
    assert await one(clickhouse, "SELECT count() FROM sales") == 3


async def test_a_type_that_is_not_known_is_kept_whole_and_said_once(
    clickhouse: ClickHouse, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    odd = Event(uuid7(), SALES_TOPIC, MEMBER, "regulars.member.v9.GiftWrapped", b"\x00\xff whole", "", AT)
    await bus.publish([odd, sale()[1], odd])
    handler = FactsHandler(clickhouse)
    await consume_all(bus, handler)
    await handler([message async for messages in bus.read(SALES_TOPIC) for message in messages])
    (said,) = [record for record in caplog.records if "does not know" in record.msg]
    assert vars(said)["types"] == [odd.type]
    kept = await clickhouse.query("SELECT type, topic, toString(event_id), key, hex(payload) FROM unknown_events")
    assert kept == [(odd.type, SALES_TOPIC, odd.event_id, MEMBER, odd.payload.hex().upper())]
    assert await one(clickhouse, "SELECT count() FROM sales") == 1


async def test_a_kind_and_a_field_of_a_newer_producer_are_taken(clickhouse: ClickHouse, bus: Bus) -> None:
    newer = sale(channel="drone")[1]
    unknown_field = b"\xfa\x7f\x03new"
    extended = Event(newer.event_id, newer.topic, newer.key, newer.type, newer.payload + unknown_field, "", AT)
    await bus.publish([extended, points(MEMBER, (1, "lottery", 7))])
    await consume_all(bus, FactsHandler(clickhouse))
    assert await one(clickhouse, "SELECT channel FROM sales") == "drone"
    assert await clickhouse.query("SELECT kind, points FROM points_moves") == [("lottery", 7)]


async def test_poison_becomes_a_dead_letter_and_the_rest_goes_on(clickhouse: ClickHouse, bus: Bus) -> None:
    garbage = Event(uuid7(), SALES_TOPIC, MEMBER, "regulars.member.v1.SaleRecorded", b"\xff\xff\xff", "", AT)
    no_id = event(SALES_TOPIC, MEMBER, sales_pb.SaleRecorded(sale_id="17", business_day="2026-11-21"))
    no_day = event(MEMBERS_TOPIC, MEMBER, members_pb.MemberSignedUp(member_id=MEMBER, joined_on="yesterday"))
    _, good = sale(member=MEMBER)
    await bus.publish([garbage, no_id, no_day, good])
    await consume_all(bus, FactsHandler(clickhouse))
    letters = DeadLetters(bus, GROUP, SystemClock())
    await letters.refresh()
    assert {letter.event_id for letter in letters.open()} == {garbage.event_id, no_id.event_id, no_day.event_id}
    assert await one(clickhouse, "SELECT count() FROM sales") == 1
    assert await one(clickhouse, "SELECT count() FROM members") == 0


async def test_events_of_before_some_fields_existed_are_taken(clickhouse: ClickHouse, bus: Bus) -> None:
    """What an upgraded installation still had in its outbox."""
    old_change = event(MEMBERS_TOPIC, MEMBER, members_pb.MemberChanged(member_id=MEMBER, changed_fields=["city"]))
    await bus.publish([signed_up(MEMBER), old_change, points(MEMBER, (1, "earn", 5), day="")])
    await consume_all(bus, FactsHandler(clickhouse))
    assert await one(clickhouse, "SELECT city FROM members") == "Hangzhou"
    assert await one(clickhouse, "SELECT day FROM points_moves") == date(2026, 11, 21)
