"""A small chain's facts: as the events that tell them, and as plain lists over which figures are reckoned the slow, obvious way."""

import random
from calendar import isleap, monthrange
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any, TypeVar

from google.protobuf.message import Message

from kit.ids import uuid7
from regulars.member.v1 import member_events_pb2 as members_pb
from regulars.member.v1 import points_events_pb2 as points_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb
from reporting.clickhouse import ClickHouse
from reporting.facts.operations import insert_facts
from reporting.facts.rules import Fact

RECORDED_AT = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
NEVER = date(1970, 1, 1)
ITEM_DECIMALS = Decimal("0.0001")


@dataclass(frozen=True)
class Line:
    """What was sold, or came back."""

    sku: str
    category: str
    quantity: Decimal
    net_minor: int
    gross_minor: int = 0


@dataclass(frozen=True)
class Trade:
    """A sale or a return. `member`: empty for a guest."""

    day: date
    store: str
    lines: tuple[Line, ...]
    member: str = ""
    currency: str = "CNY"
    channel: str = ""
    staff: str = ""
    id: str = field(default_factory=uuid7)


@dataclass(frozen=True)
class Move:
    """An entry of a wallet."""

    day: date
    member: str
    programme: str
    kind: str
    points: int = 0
    pending: int = 0
    debt: int = 0
    expired: int = 0


@dataclass(frozen=True)
class Joined:
    """A member's file. Tiers are not told by events yet; the facts have a place for them."""

    member: str
    programme: str
    day: date
    tier: str = ""


Dated = TypeVar("Dated", Trade, Move, Joined)


@dataclass
class Story:
    """All that happened."""

    sales: list[Trade] = field(default_factory=list)
    returns: list[Trade] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    members: list[Joined] = field(default_factory=list)

    async def tell(self, clickhouse: ClickHouse) -> None:
        """Inserts it as the events say it."""
        await insert_facts(clickhouse, [*self._sales(), *self._returns(), *self._moves(), *self._members()])
        for each in self.members:
            if each.tier:
                await clickhouse.command(
                    "INSERT INTO members (member_id, programme_id, joined_on, tier, version)"
                    " VALUES ({member:UUID}, {programme:String}, {day:Date32}, {tier:String}, {version:UInt64})",
                    {
                        "member": each.member,
                        "programme": each.programme,
                        "day": each.day.isoformat(),
                        "tier": each.tier,
                        "version": _us(RECORDED_AT),
                    },
                )

    def _sales(self) -> Iterable[Fact]:
        for sale in self.sales:
            lines = [
                sales_pb.SaleRecordedLine(
                    line_no=number,
                    sku=line.sku,
                    category=line.category,
                    quantity=str(line.quantity),
                    gross_minor=line.gross_minor,
                    net_minor=line.net_minor,
                )
                for number, line in enumerate(sale.lines, 1)
            ]
            gross, net = sum(line.gross_minor for line in sale.lines), sum(line.net_minor for line in sale.lines)
            yield _fact(
                sales_pb.SaleRecorded(
                    sale_id=sale.id,
                    member_id=sale.member,
                    store_id=sale.store,
                    business_day=sale.day.isoformat(),
                    currency=sale.currency,
                    channel=sale.channel,
                    staff_code=sale.staff,
                    gross_minor=gross,
                    discount_minor=gross - net,
                    net_minor=net,
                    lines=lines,
                )
            )

    def _returns(self) -> Iterable[Fact]:
        for index, given in enumerate(self.returns):
            lines = [
                sales_pb.SaleReversedLine(
                    line_no=number,
                    sku=line.sku,
                    category=line.category,
                    quantity=str(line.quantity),
                    net_minor=line.net_minor,
                    refund_minor=line.net_minor,
                )
                for number, line in enumerate(given.lines, 1)
            ]
            net = sum(line.net_minor for line in given.lines)
            day = given.day.isoformat()
            if given.channel or given.staff or index % 2:
                yield _fact(
                    sales_pb.SaleReversed(
                        reversal_id=given.id,
                        sale_id=uuid7(),
                        member_id=given.member,
                        store_id=given.store,
                        business_day=day,
                        currency=given.currency,
                        net_minor=net,
                        lines=lines,
                        channel=given.channel,
                        staff_code=given.staff,
                    )
                )
            else:
                yield _fact(
                    sales_pb.ReturnRecorded(
                        return_id=given.id,
                        member_id=given.member,
                        store_id=given.store,
                        business_day=day,
                        currency=given.currency,
                        refund_minor=net,
                        lines=lines,
                    )
                )

    def _moves(self) -> Iterable[Fact]:
        for sequence, move in enumerate(self.moves, 1):
            entry = points_pb.PointsMove(
                sequence=sequence,
                kind=move.kind,
                points=move.points,
                pending=move.pending,
                debt=move.debt,
                expired=move.expired,
                day=move.day.isoformat(),
            )
            yield _fact(points_pb.PointsMoved(member_id=move.member, programme_id=move.programme, moves=[entry]))

    def _members(self) -> Iterable[Fact]:
        for each in self.members:
            yield _fact(
                members_pb.MemberSignedUp(member_id=each.member, programme_id=each.programme, joined_on=each.day.isoformat(), version=1)
            )


def _fact(message: Message) -> Fact:
    return Fact(uuid7(), "", "", message.DESCRIPTOR.full_name, message.SerializeToString(), _us(RECORDED_AT))


def _us(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000


def random_story(seed: int, first: date, days: int, *, currencies: Sequence[str] = ("CNY",)) -> Story:
    """Facts drawn at random: few of everything, so that they meet."""
    draw = random.Random(seed)
    stores, people = [uuid7() for _ in range(3)], [uuid7() for _ in range(6)]
    story = Story()

    def day() -> date:
        return first + timedelta(days=draw.randrange(days))

    def trade(*, is_return: bool) -> Trade:
        lines = []
        for _ in range(draw.randint(1, 3)):
            net = draw.randint(0, 30_000)
            quantity = draw.choice([Decimal(1), Decimal(2), Decimal("0.355"), Decimal("1.5")])
            sku = draw.choice(["A", "B", "C"])
            lines.append(
                Line(sku, {"A": "audio", "B": "audio", "C": ""}[sku], quantity, net, 0 if is_return else net + draw.choice([0, 500]))
            )
        store = draw.choice(stores)
        return Trade(
            day(),
            store,
            tuple(lines),
            draw.choice([*people, "", ""]),
            currencies[stores.index(store) % len(currencies)],
            draw.choice(["store", "online", ""]),
            draw.choice(["E1", "E2", ""]),
        )

    story.sales = [trade(is_return=False) for _ in range(draw.randint(0, 60))]
    story.returns = [trade(is_return=True) for _ in range(draw.randint(0, 12))]
    kinds = ["earn", "mature", "spend", "return", "take_back", "forgive", "expire", "adjust", "debt_payment", "of_tomorrow"]
    for _ in range(draw.randint(0, 40)):
        amounts = [draw.choice([0, draw.randint(-500, 500)]) for _ in range(4)]
        story.moves.append(Move(day(), draw.choice(people), draw.choice(["demo", "vip"]), draw.choice(kinds), *amounts))
    # The last of them has no file yet: events of two topics come in any order.
    story.members = [Joined(member, draw.choice(["demo", "vip"]), day(), draw.choice(["gold", "silver", ""])) for member in people[:-1]]
    return story


# --- Comparison, from its definition in words --------------------------------------------------------------------------------------


def counterparts(from_day: date, to_day: date, compare: str, *, by_week: bool = False) -> dict[date, date]:
    """Every day of the period before, in order, with the day of the period asked for that it counts on."""
    asked = [from_day + timedelta(days=number) for number in range((to_day - from_day).days)]
    if compare == "previous_year" and by_week:
        return {day - timedelta(weeks=52): day for day in asked}
    if compare == "previous_year":
        found = {}
        # A period that begins on 29 February begins a year before on the 28th.
        if (from_day.month, from_day.day) == (2, 29):
            found[date(from_day.year - 1, 2, 28)] = from_day
        for day in asked:
            if (day.month, day.day) != (2, 29):
                found[day.replace(year=day.year - 1)] = day
            if (day.month, day.day) == (2, 28) and isleap(day.year - 1) and not isleap(day.year):
                found[date(day.year - 1, 2, 29)] = day
        return found
    if by_week or from_day.day != 1 or to_day.day != 1:
        return {day - timedelta(days=len(asked)): day for day in asked}
    found, months = {}, sorted({(day.year, day.month) for day in asked})
    year, month = months[0]
    for _ in months:
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    for its_year, its_month in months:
        last = monthrange(its_year, its_month)[1]
        for number in range(1, monthrange(year, month)[1] + 1):
            found[date(year, month, number)] = date(its_year, its_month, min(number, last))
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return found


def told_as(story: Story, days: dict[date, date]) -> Story:
    """The story as if it had happened on the counterparts; what was before the days stays before, what was after is left out."""
    start = min(days)
    before = min(days.values()) - timedelta(days=1)

    def moved(facts: Iterable[Dated]) -> list[Dated]:
        return [replace(each, day=days.get(each.day, before)) for each in facts if each.day in days or each.day < start]

    return Story(moved(story.sales), moved(story.returns), moved(story.moves), moved(story.members))


# --- The figures, from their definitions in words ---------------------------------------------------------------------------------

Bucket = tuple[Any, ...]
TRADE = ("store", "category", "sku", "channel", "staff", "currency")


class Model:
    """Works out any metric of a story within a window, by any dimensions that it is defined for."""

    def __init__(self, story: Story, from_day: date, to_day: date) -> None:
        self._story = story
        self._from, self._to = from_day, to_day
        self._tiers = {each.member: each.tier for each in story.members}

    def figure(self, key: str, dimensions: Sequence[str]) -> dict[Bucket, object]:
        """The metric by bucket; of buckets that nothing fell into, none."""
        return dict(getattr(self, f"_{key}")(tuple(dimensions)))

    def _within(self, day: date) -> bool:
        return self._from <= day < self._to

    def _time(self, key: str, day: date) -> date:
        match key:
            case "week":
                return day - timedelta(days=day.weekday())
            case "month":
                return day.replace(day=1)
            case _:
                return day

    def _starts(self, dimensions: Sequence[str], bucket: Bucket) -> date:
        starts: list[date] = [value for key, value in zip(dimensions, bucket, strict=True) if key in ("day", "week", "month")]
        return max([self._from, *starts])

    def _of_trade(self, trade: Trade, dimensions: Sequence[str]) -> dict[Bucket, list[Line]]:
        """The lines of a sale or return by bucket; one bucket, unless goods are asked about."""
        found: dict[Bucket, list[Line]] = defaultdict(list)
        if not self._within(trade.day):
            return found
        known = {"store": trade.store, "channel": trade.channel, "staff": trade.staff, "currency": trade.currency}
        known["tier"] = self._tiers.get(trade.member, "")
        for line in trade.lines:
            of_line = known | {"sku": line.sku, "category": line.category}
            found[tuple(of_line[key] if key in of_line else self._time(key, trade.day) for key in dimensions)].append(line)
        return found

    def _sum(self, trades: list[Trade], dimensions: Sequence[str], of: Callable[[Line], Any]) -> dict[Bucket, Any]:
        sums: dict[Bucket, Any] = defaultdict(int)
        for trade in trades:
            for bucket, lines in self._of_trade(trade, dimensions).items():
                sums[bucket] += sum(of(line) for line in lines)
        return sums

    def _gross_sales_minor(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return self._sum(self._story.sales, dimensions, lambda line: line.gross_minor)

    def _returns_minor(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return self._sum(self._story.returns, dimensions, lambda line: line.net_minor)

    def _net_sales_minor(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return _less(self._sum(self._story.sales, dimensions, lambda line: line.net_minor), self._returns_minor(dimensions))

    def _quantities(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        sold = self._sum(self._story.sales, dimensions, lambda line: line.quantity)
        return _less(sold, self._sum(self._story.returns, dimensions, lambda line: line.quantity))

    def _items(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return {bucket: _text(Decimal(quantity)) for bucket, quantity in self._quantities(dimensions).items()}

    def _receipts(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        counts: dict[Bucket, int] = defaultdict(int)
        for sale in self._story.sales:
            for bucket in self._of_trade(sale, dimensions):
                counts[bucket] += 1
        return counts

    def _average_receipt_minor(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return _divided(self._net_sales_minor(dimensions), self._receipts(dimensions), 1)

    def _items_per_receipt(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        rounded = _divided(self._quantities(dimensions), self._receipts(dimensions), 10_000)
        return {bucket: None if value is None else _text(Decimal(value) * ITEM_DECIMALS) for bucket, value in rounded.items()}

    def _days_of(self, dimensions: Sequence[str]) -> dict[Bucket, dict[str, set[date]]]:
        found: dict[Bucket, dict[str, set[date]]] = defaultdict(lambda: defaultdict(set))
        for sale in self._story.sales:
            for bucket in self._of_trade(sale, dimensions):
                if sale.member:
                    found[bucket][sale.member].add(sale.day)
        return found

    def _buyers(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return {bucket: len(members) for bucket, members in self._days_of(dimensions).items()}

    def _repurchase_rate_bp(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        again = {bucket: sum(len(days) > 1 for days in members.values()) for bucket, members in self._days_of(dimensions).items()}
        return _divided(again, self._buyers(dimensions), 10_000)

    def _returning_buyers(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        first = {sale.member: min(each.day for each in self._story.sales if each.member == sale.member) for sale in self._story.sales}
        return {
            bucket: sum(first[member] < self._starts(dimensions, bucket) for member in members)
            for bucket, members in self._days_of(dimensions).items()
        }

    def _new_members(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        counts: dict[Bucket, int] = defaultdict(int)
        for each in self._story.members:
            if self._within(each.day):
                known = {"tier": each.tier, "programme": each.programme}
                counts[tuple(known[key] if key in known else self._time(key, each.day) for key in dimensions)] += 1
        return counts

    def _active_members(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        seen: dict[Bucket, set[str]] = defaultdict(set)
        acts = [(trade.day, trade.member) for trade in self._story.sales + self._story.returns if trade.member]
        acts += [(move.day, move.member) for move in self._story.moves if move.kind == "spend"]
        for day, member in acts:
            if self._within(day):
                tier = self._tiers.get(member, "")
                seen[tuple(tier if key == "tier" else self._time(key, day) for key in dimensions)].add(member)
        return {bucket: len(members) for bucket, members in seen.items()}

    def _points(self, dimensions: Sequence[str], of: Callable[[Move], int]) -> dict[Bucket, Any]:
        sums: dict[Bucket, int] = defaultdict(int)
        for move in self._story.moves:
            if self._within(move.day):
                sums[self._of_move(move, dimensions, move.day)] += of(move)
        return sums

    def _of_move(self, move: Move, dimensions: Sequence[str], day: date) -> Bucket:
        known = {"tier": self._tiers.get(move.member, ""), "programme": move.programme}
        return tuple(known[key] if key in known else self._time(key, day) for key in dimensions)

    def _points_issued(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        granting = ("earn", "adjust", "take_back")
        return self._points(dimensions, lambda move: move.points + move.pending + move.expired - move.debt if move.kind in granting else 0)

    def _points_spent(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return self._points(dimensions, lambda move: -move.points if move.kind in ("spend", "return") else 0)

    def _points_expired(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        return self._points(dimensions, lambda move: move.expired)

    def _points_outstanding(self, dimensions: Sequence[str]) -> dict[Bucket, Any]:
        """Of each bucket's last day within the window: what every move up to it left."""
        days = [self._from + timedelta(days=number) for number in range((self._to - self._from).days)]
        ends = {tuple(self._time(key, day) for key in dimensions if key in ("day", "week", "month")): day for day in days}
        held: dict[Bucket, int] = defaultdict(int)
        for end in ends.values():
            for move in self._story.moves:
                if move.day <= end:
                    held[self._of_move(move, dimensions, end)] += move.points + move.pending
        return held


def _less(left: dict[Bucket, Any], right: dict[Bucket, Any]) -> dict[Bucket, Any]:
    return {bucket: left.get(bucket, 0) - right.get(bucket, 0) for bucket in left.keys() | right.keys()}


def _divided(numerators: dict[Bucket, Any], denominators: dict[Bucket, Any], times: int) -> dict[Bucket, Any]:
    """Rounded half up, which is away from zero; None where there is nothing to divide by."""
    found: dict[Bucket, Any] = {}
    for bucket in numerators.keys() | denominators.keys():
        by = denominators.get(bucket, 0)
        exact = Fraction(numerators.get(bucket, 0)) * times / by if by else None
        found[bucket] = (
            None if exact is None else int(Decimal(exact.numerator * 10**12 // exact.denominator).scaleb(-12).quantize(0, ROUND_HALF_UP))
        )
    return found


def _text(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
