"""Random histories of a chain over the real writer and PostgreSQL, against a second, simple reckoning of them (`model`).

Several groups at once are compared exactly too: groups that share a wallet are serialised by its lock, so the order in which they had
their locks is the order in which the model decides.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from kit.clock import HeldClock
from kit.db import RawConnection, create_engine, raw, transaction
from kit.ids import uuid7
from member.points.operations import get_points, settle_wallet
from member.programmes.operations import Books, apply_programme
from member.programmes.rules import ProgrammeBook, ProgrammeVersion
from member.sales.rules import NewReversal, NewSale, Store
from member.wallet.commands import Act, Command, NewAdjustment, Outcome, SaleToReverse
from services.member.tests import model
from services.member.tests.draws import Draft, Parts, drafts, parts, quantities_of
from services.member.tests.wallet.conftest import Chain

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
SHANGHAI = ZoneInfo("Asia/Shanghai")
T = TypeVar("T")


def definition(programme_id: str, **changes: object) -> dict[str, object]:
    return {
        "programme_id": programme_id,
        "name": programme_id,
        "effective_from": "2010-01-01",
        "zone": "Asia/Shanghai",
        "currency": "CNY",
        "earn": {"points": 1, "per_minor": 100},
        "spend": {"points": 1, "minor": 1},
        "expiry": {"years": 1, "round_to": "year"},
    } | changes


MULTIPLIERS = [
    {"name": "double-audio", "rate_bp": 20_000, "categories": ["audio"]},
    {"name": "nothing-on-b", "rate_bp": 0, "skus": ["B"]},
    {"name": "until-december", "rate_bp": 12_345, "skus": ["C", "A"], "to": "2026-11-30"},
]
# Each differs from the demo programme in what is hard to get right; `changing` has a second version from December on.
PROGRAMMES = [
    definition("demo"),
    definition("pending", pending_days=7, earn={"points": 3, "per_minor": 100, "rounding": "half_up"}),
    definition("monthly", expiry={"months": 1, "round_to": "month"}, shortfall="negative", restore_grace_days=2),
    definition(
        "multiplied",
        earn={"points": 1, "per_minor": 7, "rounding": "ceil", "multipliers": MULTIPLIERS},
        spend={"points": 3, "minor": 7},
        shortfall="forgive",
        restore_grace_days=0,
        expiry={"days": 9},
    ),
    definition("changing", expiry="never", pending_days=1),
    definition("changing", effective_from="2026-12-01", shortfall="negative", expiry={"days": 30}, earn={"points": 9, "per_minor": 10}),
]


class WitnessedBooks(Books):
    """Notes who asks for the book: the writer does, once it has its locks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[object] = []

    async def current(self, connection: RawConnection, *given: Any) -> ProgrammeBook:
        book = await super().current(connection, *given)
        self.asked.append(asyncio.current_task())
        return book


@dataclass
class World:
    """One database for all histories: each has members and operations of its own."""

    runner: asyncio.Runner
    chain: Chain
    books: WitnessedBooks
    book: ProgrammeBook

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    async def at_once(self, groups: Sequence[Sequence[Command]]) -> list[tuple[Command, Outcome]]:
        """Sends the groups at once; what became of each command, in the order in which the groups had their locks."""
        self.books.asked.clear()
        tasks = [asyncio.create_task(self.chain.run(*group)) for group in groups]
        outcomes = await asyncio.gather(*tasks)
        # A group whose attempt was in vain asks again: the last time counts.
        last = {task: place for place, task in enumerate(self.books.asked)}
        in_order = sorted(range(len(tasks)), key=lambda i: last[tasks[i]])
        return [pair for i in in_order for pair in zip(groups[i], outcomes[i], strict=True)]


# --- What a history consists of, as drawn: everything is named by its place among what there is ---------------------------------------


@dataclass(frozen=True)
class Sell:
    who: int
    where: int
    draft: Draft
    age: timedelta


@dataclass(frozen=True)
class TakeBack:
    which: int
    where: int
    parts: Parts
    by_id: bool


@dataclass(frozen=True)
class Adjust:
    who: int
    where: int
    # None: take all there is.
    points: int | None


@dataclass(frozen=True)
class SendAgain:
    which: int
    changed: bool


# Two members, then a guest, then nobody known.
people = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 3])
stores = st.sampled_from([0, 0, 1])
# The newest is the most likely.
places = st.sampled_from([0, 0, 1, 2, 5, 13, 30])
ages = st.sampled_from([0, 0, 0, 0, 40 * 60, 400 * 24 * 60, -9, -11]).map(lambda minutes: timedelta(minutes=minutes))
sells = st.builds(Sell, people, stores, drafts, ages)
takings = st.builds(TakeBack, places, stores, st.just([]) | parts.filter(bool), st.booleans())
adjustments = st.builds(
    Adjust, st.sampled_from([0, 0, 0, 1, 1, 3]), stores, st.sampled_from([1, 40, 700, 20_000, -1, -50, None, None, -10_000])
)
acts = st.one_of(sells, sells, takings, adjustments, st.builds(SendAgain, places, st.booleans()))
passings = st.sampled_from([1, 20, 8 * 24, 40 * 24, 400 * 24, -50]).map(lambda hours: timedelta(hours=hours))


@dataclass
class History:
    """What the model knows of one chain."""

    members: list[str]
    stores: list[Store]
    book: ProgrammeBook
    ledgers: dict[tuple[str, str], model.Ledger] = field(default_factory=dict)
    sold: dict[str, tuple[NewSale, model.Sold]] = field(default_factory=dict)
    sale_ids: dict[str, str] = field(default_factory=dict)
    answers: dict[str, tuple[Command, Outcome]] = field(default_factory=dict)

    def ledger(self, member_id: str, programme_id: str, now: datetime) -> model.Ledger:
        if member_id not in self.members:
            raise model.Refused(422, "member_not_found")
        ledger = self.ledgers.setdefault((member_id, programme_id), model.Ledger())
        ledger.settle(now)
        return ledger

    def programme(self, programme_id: str, store: Store, at: datetime) -> ProgrammeVersion:
        found = self.book.at(programme_id, store.business_day(at))
        assert found is not None
        return found

    def figures(self, ledger: model.Ledger, now: datetime, programme_id: str) -> dict[str, Any]:
        """As they are shown today, whatever day an act was dated."""
        today = self.book.at(programme_id, now.astimezone(SHANGHAI).date())
        assert today is not None
        return ledger.figures(today.shortfall)

    def decide(self, act: Act, now: datetime) -> dict[str, Any]:
        """The figures that the answer must hold."""
        if isinstance(act, NewSale):
            return self._sell(act, now)
        if isinstance(act, SaleToReverse):
            return self._take_back(act, now)
        assert isinstance(act, NewAdjustment)
        return self._adjust(act, now)

    def _sell(self, act: NewSale, now: datetime) -> dict[str, Any]:
        assert act.store is not None
        programme = self.programme(act.store.programme_id, act.store, act.sold_at)
        ledger = self.ledger(act.member_id, act.store.programme_id, now) if act.member_id else None
        sold = model.sell(act, programme, ledger, now)
        self.sold[act.operation_id] = act, sold
        return {
            "net_minor": sum(line.net for line in sold.lines),
            "payable_minor": sum(line.payable for line in sold.lines),
            "lines": [
                {"net_minor": n.net, "points_spent": n.spent, "points_spent_minor": n.spent_minor, "points_earned": n.earned}
                for n in sold.lines
            ],
            "points": ledger and {"earned": sold.earned, "spent": act.points_to_spend, **self.figures(ledger, now, act.store.programme_id)},
        }

    def _take_back(self, act: SaleToReverse, now: datetime) -> dict[str, Any]:
        operation_id = act.sale_operation_id or self.sale_ids.get(act.sale_id, "")
        if operation_id not in self.sold:
            raise model.Refused(404, "sale_not_found")
        sale, sold = self.sold[operation_id]
        assert sale.store is not None
        assert act.reversal.store is not None
        programme = self.programme(sale.store.programme_id, act.reversal.store, act.reversal.reversed_at)
        if sold.ledger:
            sold.ledger.settle(now)
        back = model.reverse(act.reversal, sold, programme, now)
        return {
            "refund_minor": back.refund,
            "lines": [{"line_no": number, "refund_minor": refund, "points_returned": n} for number, (refund, n) in back.lines.items()],
            "tenders": [{"type": sale.tenders[index].type, "amount_minor": amount} for index, amount in back.tenders.items()],
            "points": sold.ledger
            and {"taken_back": back.taken_back, "returned": back.returned, **self.figures(sold.ledger, now, sale.store.programme_id)},
        }

    def _adjust(self, act: NewAdjustment, now: datetime) -> dict[str, Any]:
        if act.member_id not in self.members:
            raise model.Refused(404, "member_not_found")
        ledger = self.ledger(act.member_id, act.programme_id, now)
        programme = self.book.at(act.programme_id, now.astimezone(SHANGHAI).date())
        assert programme is not None
        if -act.points > ledger.balance:
            raise model.Refused(422, "insufficient_points")
        if act.points > 0:
            ledger.earn(act.points, now, programme.expires_at(now), now)
        else:
            ledger.debit(-act.points)
        return {"points": act.points, **self.figures(ledger, now, act.programme_id)}


def holds(document: Any, expected: Any) -> bool:
    """Whether a document has all that is expected, whatever else it has."""
    if isinstance(expected, dict):
        return isinstance(document, dict) and all(key in document and holds(document[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(document) == len(expected) and all(map(holds, document, expected))
    return bool(document == expected)


class Wallets(RuleBasedStateMachine):
    """Sells, takes back, adjusts and sends again, in groups and several at once, while time passes forwards and backwards."""

    world: ClassVar[World]
    is_sound = False

    @property
    def now(self) -> datetime:
        return self.world.chain.clock.now()

    @initialize(programmes=st.permutations(["demo", "pending", "monthly", "multiplied", "changing"]).map(lambda ids: ids[:2]))
    def open(self, programmes: list[str]) -> None:
        chain = self.world.chain
        chain.clock.set(NOW)
        members = [self.world.run(chain.member()) for _ in range(2)]
        # A shop that closes at four in the morning, and one at midnight.
        shops = [replace_store(chain.store, programme_id=programmes[i], cut_over=(240, 0)[i]) for i in range(2)]
        self.history = History(members, shops, self.world.book)
        self.commands: list[Command] = []
        self.sales: list[NewSale] = []
        self.is_sound = True

    @rule(by=passings)
    def time_passes_or_goes_back(self, by: timedelta) -> None:
        self.world.chain.clock.advance(by)

    @rule(group=st.lists(acts, min_size=1, max_size=4))
    def send(self, group: list[Any]) -> None:
        self.send_at_once([group])

    @rule(groups=st.lists(st.lists(acts, min_size=1, max_size=4), min_size=2, max_size=3))
    def send_at_once(self, groups: list[list[Any]]) -> None:
        commands: list[list[Command]] = []
        earlier = list(self.sales)
        for group in groups:
            # A group may name sales of its own and those decided before; what is sent beside it may come before or after.
            in_sight = list(earlier)
            commands.append([self.command_of(act, in_sight) for act in group])
            self.sales += in_sight[len(earlier) :]
        self.check(self.world.run(self.world.at_once(commands)))

    def command_of(self, drawn: Any, sales: list[NewSale]) -> Command:
        """The command of what was drawn, as things stand before its group."""
        if isinstance(drawn, SendAgain):
            if not self.commands:
                return self.command_of(Adjust(0, 0, 100), sales)
            command = self.commands[-1 - drawn.which % len(self.commands)]
            return msgspec.structs.replace(command, fingerprint=b"another body") if drawn.changed else command
        command = self.world.chain.command(self.act_of(drawn, sales))
        self.commands.append(command)
        return command

    def act_of(self, drawn: Any, sales: list[NewSale]) -> Act:
        store = self.history.stores[drawn.where]
        if isinstance(drawn, TakeBack):
            if not sales and drawn.which < 5:
                return self.act_of(Adjust(0, drawn.where, 100), sales)
            return self.reversal_of(drawn, store, sales)
        member_id = [*self.history.members, "", uuid7()][drawn.who]
        ledger = deepcopy(self.history.ledgers.get((member_id, store.programme_id), model.Ledger()))
        ledger.settle(self.now)
        if isinstance(drawn, Adjust):
            return NewAdjustment(member_id, store.programme_id, drawn.points or -max(ledger.balance, 1), "by hand")
        sold_at = self.now - drawn.age
        rate = self.history.programme(store.programme_id, store, sold_at).spend
        sale: NewSale = drawn.draft.sale(store, member_id, sold_at, rate, ledger.balance)
        sales.append(sale)
        return sale

    def reversal_of(self, drawn: TakeBack, store: Store, sales: list[NewSale]) -> SaleToReverse:
        ids = [sale.operation_id for sale in sales]
        recorded = [id_ for id_ in ids if id_ in self.history.sold or id_ not in self.history.answers] or ids or ["no-such-sale"]
        operation_id = recorded[-1 - drawn.which % len(recorded)]
        sold = self.history.sold.get(operation_id)
        lines = quantities_of(drawn.parts, sold[1].lines) if sold else []
        reversal = NewReversal(uuid7(), store, uuid7(), self.now, 480, "", tuple(lines))
        sale_id = next((id_ for id_, operation in self.history.sale_ids.items() if operation == operation_id), "")
        return SaleToReverse(reversal, sale_id, "") if drawn.by_id and sale_id else SaleToReverse(reversal, "", operation_id)

    def check(self, decided: list[tuple[Command, Outcome]]) -> None:
        """Every answer is the model's, or the first answer again. After one that is not, nothing more can be compared."""
        self.is_sound = False
        for command, outcome in decided:
            self.check_answer(command, outcome)
        self.is_sound = True

    def check_answer(self, command: Command, outcome: Outcome) -> None:
        document = msgspec.json.decode(outcome.body)
        first = self.history.answers.get(command.operation_id)
        if first is not None:
            if first[0].fingerprint == command.fingerprint:
                assert (outcome.status, outcome.body, outcome.replayed) == (first[1].status, first[1].body, True), "a replay, byte for byte"
                assert outcome.amount_minor == first[1].amount_minor
            else:
                assert (outcome.status, document["code"], outcome.replayed) == (409, "operation_id_reused", False)
            return
        assert not outcome.replayed
        self.history.answers[command.operation_id] = command, outcome
        try:
            expected = self.history.decide(command.act, self.now)
        except model.Refused as refused:
            expected = dict(zip(("status", "code"), refused.answer, strict=True))
        else:
            assert outcome.status == 201, document
            assert outcome.amount_minor == expected.get("refund_minor", expected.get("net_minor", 0))
        assert holds(document, expected), (document, expected)
        if isinstance(command.act, NewSale) and outcome.status == 201:
            self.history.sale_ids[document["id"]] = command.operation_id

    @rule(drawn=takings)
    def preview_then_take_back(self, drawn: TakeBack) -> None:
        """The preview gives exactly what the reversal then does, and changes nothing."""
        command = self.command_of(drawn, self.sales)
        if not isinstance(command.act, SaleToReverse):
            return
        preview = msgspec.json.decode(msgspec.json.encode(self.world.run(self.world.chain.preview(command.act))))
        decided = self.world.run(self.world.at_once([[command]]))
        self.check(decided)
        ((_, outcome),) = decided
        document = msgspec.json.decode(outcome.body)
        assert preview | {"id": document.get("id")} == document | {"id": document.get("id")}

    @rule(who=st.integers(0, 1), where=stores, writes=st.booleans())
    def look(self, who: int, where: int, *, writes: bool) -> None:
        """What is read is settled as of now, whether or not that was written."""
        key = self.history.members[who], self.history.stores[where].programme_id
        self.world.run(self.look_at(*key, writes=writes))

    async def look_at(self, member_id: str, programme_id: str, *, writes: bool) -> None:
        chain = self.world.chain
        if writes:
            await settle_wallet(chain.engine, chain.programmes, member_id, programme_id, self.now)
            self.history.ledgers.setdefault((member_id, programme_id), model.Ledger()).settle(self.now)
        async with transaction(chain.engine, snapshot=True) as connection:
            seen = await get_points(raw(connection), member_id, programme_id, "debt", self.now)
        ledger = deepcopy(self.history.ledgers.get((member_id, programme_id), model.Ledger()))
        ledger.settle(self.now)
        assert msgspec.json.decode(seen) == ledger.figures("debt")

    def teardown(self) -> None:
        if self.is_sound:
            self.world.run(self.check_all())

    async def check_all(self) -> None:
        """The ledgers prove themselves, and every wallet and lot is the model's."""
        chain = self.world.chain
        assert await chain.differences() == []
        for (member_id, programme_id), ledger in self.history.ledgers.items():
            if not ledger.lots:
                continue
            wallets = await chain.rows(
                "SELECT balance, pending, debt FROM wallets WHERE member_id = $1 AND programme_id = $2", member_id, programme_id
            )
            assert [tuple(row) for row in wallets] == [(ledger.balance, ledger.pending, ledger.debt)]
            lots = await chain.rows(
                """
                SELECT quantity, remaining, expired, available_at, expires_at FROM points_lots
                WHERE member_id = $1 AND programme_id = $2 ORDER BY lot_id
                """,
                member_id,
                programme_id,
            )
            assert [tuple(row) for row in lots] == [(lot.quantity, lot.left, lot.lapsed, lot.opens, lot.ends) for lot in ledger.lots]


def replace_store(store: Store, *, programme_id: str, cut_over: int) -> Store:
    return msgspec.structs.replace(store, programme_id=programme_id, day_cut_over_minutes=cut_over)


@pytest.fixture
def world(make_database: Callable[..., str], migrated_database: str) -> Iterator[World]:
    clock, books = HeldClock(NOW), WitnessedBooks()
    with asyncio.Runner() as runner:
        engine = create_engine(make_database(migrated_database), 4)
        store = Store(uuid7(), "S001", SHANGHAI, "CNY", "", 0, True)

        async def apply() -> ProgrammeBook:
            async with transaction(engine) as connection:
                for each in PROGRAMMES:
                    await apply_programme(raw(connection), each, applied_by="test", now=NOW)
                return await books.current(raw(connection))

        yield World(runner, Chain(engine, clock, books, store), books, runner.run(apply()))
        runner.run(engine.dispose())


@pytest.mark.timeout(600)
def test_random_histories_end_as_the_model_and_reconcile(world: World) -> None:
    """No lot below zero, every credit pays debt first, replays byte for byte, previews exact: whatever comes in whatever order."""
    Wallets.world = world
    run_state_machine_as_test(Wallets, settings=settings(max_examples=100, stateful_step_count=20))
