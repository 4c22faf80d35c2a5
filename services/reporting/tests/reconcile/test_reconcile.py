"""A member service with a past, its events as facts, and both held against each other: the real services but for the bus between them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.bus.connecting import connect
from kit.bus.interface import Bus
from kit.clock import HeldClock, SystemClock
from kit.db import create_engine, migrate
from kit.metrics import LEDGER_CHECKED, LEDGER_MISMATCHES
from kit.outbox import Event
from kit.problems import Refusal
from kit.rpc import Server, call_metadata, create_channel, refusal_of
from kit.tokens import TokenMinter, TokenVerifier
from member.database import MIGRATIONS
from member.exports.rpc import ExportServicer
from member.programmes.operations import Books
from regulars.member.v1.export_service_pb2_grpc import add_ExportServiceServicer_to_server
from regulars.reporting.v1 import reconcile_service_pb2 as pb
from regulars.reporting.v1.reconcile_service_pb2_grpc import ReconcileServiceStub, add_ReconcileServiceServicer_to_server
from reporting.clickhouse import ClickHouse
from reporting.facts.operations import insert_facts
from reporting.facts.rules import Fact, unix_us
from reporting.reconcile import operations
from reporting.reconcile.operations import Days, ask_member, reconcile
from reporting.reconcile.rpc import ReconcileServicer
from services.member.tests.exports.conftest import Past, open_chain
from tests.bus.world import bus_settings

KEY = Ed25519PrivateKey.generate()
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not change for a moment is not waited for."""
    monkeypatch.setattr(operations, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(operations, "STEADY_SECONDS", 0.1)


def token(*roles: str, stores: frozenset[str] | None = None) -> str:
    return TokenMinter(PRIVATE, SystemClock()).mint("key", roles, stores)


@asynccontextmanager
async def serving(register: Callable[[grpc.aio.Server], None]) -> AsyncIterator[grpc.aio.Channel]:
    """A service with these servicers, and a channel to it."""
    server = Server(TokenVerifier(PUBLIC, SystemClock()), [register])
    port = await server.start("127.0.0.1:0")
    async with create_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


@dataclass
class Pair:
    """The ledger and the facts."""

    past: Past
    member: grpc.aio.Channel
    clickhouse: ClickHouse
    bus_url: str

    async def published(self) -> list[Event]:
        """Takes what waits out of the outbox, as the relay does."""
        rows = await self.past.stores[0].rows(
            """
            WITH gone AS (DELETE FROM outbox RETURNING *)
            SELECT event_id::text, topic, key::text, type, payload, traceparent, recorded_at FROM gone ORDER BY position
            """
        )
        return [Event(*row) for row in rows]

    async def take_in(self, events: list[Event]) -> None:
        """Makes facts of events."""
        facts = [Fact(e.event_id, e.topic, e.key, e.type, e.payload, unix_us(e.recorded_at)) for e in events]
        await insert_facts(self.clickhouse, facts)

    def open_bus(self) -> Bus:
        return connect(bus_settings(self.bus_url), client_name="test")

    async def reconcile(self, from_day: str = "", to_day: str = "") -> Any:
        """The document of a reconciliation, of an admin, now."""
        self.past.pass_time(timedelta(seconds=1))
        ask = partial(ask_member, self.member, token("admin"))
        found = await reconcile(self.clickhouse, self.open_bus, ask, Days(from_day, to_day))
        return msgspec.json.decode(msgspec.json.encode(found))


@pytest.fixture
async def member_engine(make_database: Callable[..., str]) -> AsyncIterator[AsyncEngine]:
    url = make_database()
    await migrate(url, MIGRATIONS)
    engine = create_engine(url, 4)
    yield engine
    await engine.dispose()


@pytest.fixture
async def pair(member_engine: AsyncEngine, clickhouse: ClickHouse, bus_url: str) -> AsyncIterator[Pair]:
    """A chain with a past that was told of in full."""
    past = await open_chain(member_engine)
    await past.happen(50)
    servicer = ExportServicer(member_engine, past.desk.clock, past.desk.keys, Books())
    async with serving(partial(add_ExportServiceServicer_to_server, servicer)) as channel:
        made = Pair(past, channel, clickhouse, bus_url)
        await made.take_in(await made.published())
        yield made


async def test_facts_of_every_event_agree_with_the_ledger_to_the_cent(pair: Pair) -> None:
    found = await pair.reconcile()
    assert found["differences"] == []
    assert found["differences_total"] == 0
    assert found["compared"]["store_days"] > 20
    assert found["compared"]["points_days"] > 20
    assert found["compared"]["members_days"] >= 1
    assert found["behind"] == {"unpublished": 0, "unread": 0}


async def test_every_figure_that_differs_is_named_with_its_place_and_both_values(pair: Pair) -> None:
    before = (await pair.clickhouse.query("SELECT count() FROM sales"))[0][0]
    # One that was paid with points alone would differ in fewer figures.
    (row,) = await pair.clickhouse.query(
        "SELECT toString(store_id), toString(business_day), currency, sale_id FROM sales WHERE payable_minor > 0 ORDER BY sale_id LIMIT 1"
    )
    store, day, currency, sale_id = row
    await pair.clickhouse.command("ALTER TABLE sales DELETE WHERE sale_id = {id:UUID} SETTINGS mutations_sync = 1", {"id": str(sale_id)})
    await pair.clickhouse.command(
        "ALTER TABLE points_moves UPDATE points = points + 7 WHERE sequence = 1 AND kind = 'earn' SETTINGS mutations_sync = 1"
    )
    assert (await pair.clickhouse.query("SELECT count() FROM sales"))[0][0] == before - 1
    found = await pair.reconcile()
    assert found["differences_total"] == len(found["differences"])
    named = {each["figure"]: each for each in found["differences"] if each["store_id"] == store and each["day"] == day}
    assert {"receipts", "gross_minor", "net_minor", "items", "payable_minor"} <= named.keys()
    assert int(named["receipts"]["ledger"]) == int(named["receipts"]["reports"]) + 1
    assert named["receipts"]["currency"] == currency
    assert not any(name.startswith("lines.") for name in named), "the lines are all there"
    points = [each for each in found["differences"] if each["figure"] == "points.points"]
    assert points
    assert all(each["kind"] == "earn" and (int(each["reports"]) - int(each["ledger"])) % 7 == 0 for each in points)
    assert any(each["figure"] == "points_total.balance" for each in found["differences"])
    assert all(each["figure"].startswith("points_total") for each in (await pair.reconcile("2299-01-01"))["differences"])


@pytest.mark.parametrize(
    "table, change, figure",
    [
        ("sales", "member_id = generateUUIDv4()", "checksum"),
        ("sales", "channel = 'elsewhere'", "checksum"),
        ("sale_lines", "sku = concat(sku, '?')", "lines.checksum"),
        ("sale_lines", "category = 'another'", "lines.checksum"),
        ("return_lines", "sku = concat(sku, '?')", "lines.returned_checksum"),
    ],
)
async def test_sums_that_are_right_of_the_wrong_thing_are_named_too(pair: Pair, table: str, change: str, figure: str) -> None:
    """A sale of another member or channel, a line of another SKU: the sums of the day are what they should be."""
    await pair.clickhouse.command(f"ALTER TABLE {table} UPDATE {change} WHERE true SETTINGS mutations_sync = 1")
    assert {each["figure"] for each in (await pair.reconcile())["differences"]} == {figure}


async def test_facts_twice_and_out_of_order_change_nothing(pair: Pair) -> None:
    await pair.past.happen(30)
    events = await pair.published()
    await pair.take_in(events[::-1])
    await pair.take_in(events)
    assert (await pair.reconcile())["differences"] == []


async def test_what_is_on_its_way_is_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "STEADY_SECONDS", 30)
    chain = pair.past.stores[0]
    await chain.do(chain.sale(""))
    reconciling = asyncio.create_task(pair.reconcile())
    looked = asyncio.Event()
    sums_of_facts = operations.sums_of_facts

    async def noticed(*given: Any) -> Any:
        sums = await sums_of_facts(*given)
        looked.set()
        return sums

    monkeypatch.setattr(operations, "sums_of_facts", noticed)
    await looked.wait()
    assert not reconciling.done()
    await pair.take_in(await pair.published())
    found = await reconciling
    assert (found["differences"], found["behind"]) == ([], {"unpublished": 0, "unread": 0})


async def test_how_far_the_reports_are_behind_is_said(pair: Pair) -> None:
    chain = pair.past.stores[0]
    for _ in range(2):
        await chain.do(chain.sale(""))
    sales = await pair.published()
    await chain.do(chain.sale(""))
    async with pair.open_bus() as bus:
        await bus.publish(sales)
    found = await pair.reconcile()
    assert found["behind"] == {"unpublished": 1, "unread": 2}
    (receipts,) = [each for each in found["differences"] if each["figure"] == "receipts"]
    assert int(receipts["ledger"]) - int(receipts["reports"]) == 3


async def test_what_is_recorded_meanwhile_is_left_out_on_both_sides(pair: Pair) -> None:
    """Sales go on while it is compared."""
    chain = pair.past.stores[0]
    asked = asyncio.Event()

    async def ask(days: Days, before: Any) -> Any:
        ledger = await ask_member(pair.member, token("admin"), days, before)
        if not asked.is_set():
            asked.set()
            pair.past.pass_time(timedelta(seconds=1))
            await chain.do(chain.sale(""))
            await pair.past.desk.member()
            await pair.take_in(await pair.published())
        return ledger

    pair.past.pass_time(timedelta(seconds=1))
    found = await reconcile(pair.clickhouse, pair.open_bus, ask, Days())
    assert found.differences == []


async def test_the_call_passes_its_own_rights_on_and_answers_a_document(pair: Pair) -> None:
    servicer = ReconcileServicer(pair.clickhouse, pair.open_bus, pair.member, SystemClock())
    pair.past.pass_time(timedelta(seconds=1))
    async with serving(partial(add_ReconcileServiceServicer_to_server, servicer)) as channel:
        stub = ReconcileServiceStub(channel)
        answer = await stub.ReconcileFacts(pb.ReconcileFactsRequest(), metadata=call_metadata(token("admin")))
        document = msgspec.json.decode(answer.body)
        assert (document["differences"], document["differences_total"]) == ([], 0)
        assert document["as_of"].endswith("Z")
        for given, asked, code in [
            (token("till"), {}, "forbidden"),
            (token("admin", stores=frozenset({"some"})), {}, "all_stores_needed"),
            (token("admin"), {"to_day": "tomorrow"}, "day_invalid"),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ReconcileFacts(pb.ReconcileFactsRequest(**asked), metadata=call_metadata(given))
            refused = refusal_of(caught.value)
            assert refused is not None
            assert refused.code == code


@pytest.mark.parametrize(
    "asked, pointer, says",
    [
        ({"from_day": "0001-01-01"}, "/from", "between 1970-01-01 and 2200-01-01"),
        ({"to_day": "9999-12-31"}, "/to", "between 1970-01-01 and 2200-01-01"),
        ({"from_day": "1969-12-31", "to_day": "1970-01-01"}, "/from", "between 1970-01-01 and 2200-01-01"),
        ({"from_day": "2026-02-30"}, "/from", "date that exists"),
        ({"from_day": "2026-12-01", "to_day": "2026-11-01"}, "/to", "after `from`"),
        ({"from_day": "2026-12-01", "to_day": "2026-12-01"}, "/to", "after `from`"),
    ],
)
async def test_a_period_that_no_query_may_have_is_refused_by_its_place(
    clickhouse: ClickHouse, bus_url: str, asked: dict[str, str], pointer: str, says: str
) -> None:
    """Nothing is asked of the ledger, which here is away."""
    async with create_channel("127.0.0.1:9") as nowhere:
        servicer = ReconcileServicer(clickhouse, lambda: connect(bus_settings(bus_url), client_name="test"), nowhere, SystemClock())
        async with serving(partial(add_ReconcileServiceServicer_to_server, servicer)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ReconcileServiceStub(channel).ReconcileFacts(
                    pb.ReconcileFactsRequest(**asked), metadata=call_metadata(token("admin"))
                )
    refused = refusal_of(caught.value)
    assert refused is not None
    assert (refused.status, refused.code, [each.pointer for each in refused.errors]) == (400, "day_invalid", [pointer])
    assert says in refused.errors[0].detail


async def test_the_first_and_the_last_day_that_a_query_may_have_are_compared(pair: Pair) -> None:
    servicer = ReconcileServicer(pair.clickhouse, pair.open_bus, pair.member, SystemClock())
    pair.past.pass_time(timedelta(seconds=1))
    async with serving(partial(add_ReconcileServiceServicer_to_server, servicer)) as channel:
        for asked in ({"from_day": "1970-01-01", "to_day": "2200-01-01"}, {"to_day": "1970-01-01"}, {"from_day": "2200-01-01"}):
            request = pb.ReconcileFactsRequest(**asked)
            answer = await ReconcileServiceStub(channel).ReconcileFacts(request, metadata=call_metadata(token("admin")))
            assert msgspec.json.decode(answer.body)["differences"] == []


async def test_a_ledger_that_is_away_is_said_to_be(pair: Pair) -> None:
    async with create_channel("127.0.0.1:9") as nowhere:
        with pytest.raises(Refusal) as caught:
            await reconcile(pair.clickhouse, pair.open_bus, partial(ask_member, nowhere, token("admin")), Days())
    assert (caught.value.status, caught.value.code) == (503, "ledger_unavailable")


async def test_operators_see_when_the_reports_were_compared_and_what_differed(pair: Pair) -> None:
    def seen() -> list[float]:
        return [s.value for gauge in (LEDGER_MISMATCHES, LEDGER_CHECKED) for family in gauge.collector.collect() for s in family.samples]

    LEDGER_MISMATCHES.forget()
    LEDGER_CHECKED.forget()
    clock = HeldClock(SystemClock().now())
    servicer = ReconcileServicer(pair.clickhouse, pair.open_bus, pair.member, clock)
    pair.past.pass_time(timedelta(seconds=1))
    async with serving(partial(add_ReconcileServiceServicer_to_server, servicer)) as channel:

        async def compare(**days: str) -> int:
            answer = await ReconcileServiceStub(channel).ReconcileFacts(
                pb.ReconcileFactsRequest(**days), metadata=call_metadata(token("admin"))
            )
            return int(msgspec.json.decode(answer.body)["differences_total"])

        assert await compare(to_day="1970-01-02") == 0
        # That long past days agree is no proof of the present.
        assert seen() == []
        assert await compare() == 0
        assert seen() == [0, clock.now().timestamp()]
        await pair.clickhouse.command("ALTER TABLE sales DELETE WHERE 1 SETTINGS mutations_sync = 1")
        clock.advance(timedelta(hours=1))
        assert (differences := await compare()) > 0
        assert seen() == [differences, clock.now().timestamp()]
