"""A second reckoning of sales and points, as simple as it can be, for tests to compare the service with.

Fractions instead of scaled integers, one list of lots a member, and every figure summed anew whenever it is asked for. Refusals come
in the order in which a sale is judged. Dates and rates are the programme's own, which its own tests prove.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Any

from member.programmes.rules import ProgrammeVersion
from member.sales.rules import NewReversal, NewSale

NEVER = datetime.max.replace(tzinfo=UTC)


class Refused(Exception):
    """The act is not done; nothing has changed."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.answer = status, code


def shared(total: int, weights: Sequence[int]) -> list[int]:
    """Largest remainder: everyone their floor, then one each to the largest remainders, the lower index first."""
    if not total or not any(weights):
        return [0] * len(weights)
    ideal = [Fraction(total * weight, sum(weights)) for weight in weights]
    given = [floor(share) for share in ideal]
    while sum(given) < total:
        given[max(range(len(given)), key=lambda i: (ideal[i] - given[i], -i))] += 1
    return given


def rounded(value: Fraction, rounding: str) -> int:
    """`floor`, `ceil`, or `half_up`."""
    return {"floor": floor(value), "ceil": ceil(value), "half_up": floor(value + Fraction(1, 2))}[rounding]


def first_of(total: int, units: Fraction, of: Fraction) -> int:
    """What the first units of a line have of a figure."""
    return floor(total * units / of)


# --- Points --------------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Lot:
    """`left` can be spent, or waits while the lot is not open yet; `lapsed` is gone by time."""

    quantity: int
    opens: datetime
    ends: datetime | None
    left: int
    lapsed: int = 0
    is_open: bool = False


@dataclass(eq=False)
class Ledger:
    """One member's points in one programme, oldest lot first."""

    lots: list[Lot] = field(default_factory=list)
    debt: int = 0

    @property
    def balance(self) -> int:
        return sum(lot.left for lot in self.lots if lot.is_open)

    @property
    def pending(self) -> int:
        return sum(lot.left for lot in self.lots if not lot.is_open)

    @property
    def expiries(self) -> dict[datetime, int]:
        """Spendable points by the instant at which they lapse."""
        ends = {lot.ends for lot in self.lots if lot.is_open and lot.left and lot.ends}
        return {end: sum(lot.left for lot in self.lots if lot.is_open and lot.ends == end) for end in ends}

    @property
    def maturities(self) -> dict[datetime, int]:
        """Pending points by the instant at which they can be spent."""
        opens = {lot.opens for lot in self.lots if not lot.is_open and lot.left}
        return {at: sum(lot.left for lot in self.lots if not lot.is_open and lot.opens == at) for at in opens}

    def settle(self, now: datetime) -> None:
        for lot in sorted(self.lots, key=lambda lot: lot.opens):
            if not lot.is_open and lot.opens <= now:
                lot.is_open = True
                self._pay_debt(lot, lot.left)
        for lot in self.lots:
            if lot.is_open and lot.ends and lot.ends <= now:
                lot.lapsed += lot.left
                lot.left = 0

    def earn(self, points: int, opens: datetime, ends: datetime | None, now: datetime) -> Lot:
        lot = Lot(points, opens, ends, points)
        self.lots.append(lot)
        self.settle(now)
        return lot

    def debit(self, points: int) -> list[tuple[Lot, int]]:
        """Earliest expiry first, then earliest available, then oldest."""
        given = []
        for lot in sorted(self.lots, key=lambda lot: (lot.ends or NEVER, lot.opens)):
            part = min(points, lot.left) if lot.is_open else 0
            if part:
                lot.left -= part
                points -= part
                given.append((lot, part))
        assert not points
        return given

    def give_back(self, points: int, spent_from: list[tuple[Lot, int]], grace: timedelta, now: datetime) -> list[tuple[Lot, int]]:
        """To the lot that gave last first; one that is over lives again for a while."""
        returned = []
        for lot, spent in reversed(spent_from):
            part = min(points, spent)
            if part:
                points -= part
                if lot.ends and lot.ends <= now:
                    lot.ends = now + grace
                lot.left += part
                self._pay_debt(lot, part)
                returned.append((lot, part))
        assert not points
        return returned

    def take_back(self, points: int, own: Lot | None, shortfall: str) -> None:
        """From the sale's own lot, waiting and lapsed points too; then as a spend would; the rest is owed or forgiven."""
        if own:
            part = min(points, own.left)
            own.left -= part
            points -= part
            part = min(points, own.lapsed)
            own.lapsed -= part
            points -= part
        part = min(points, self.balance)
        self.debit(part)
        if shortfall != "forgive":
            self.debt += points - part

    def _pay_debt(self, lot: Lot, credited: int) -> None:
        paid = min(self.debt, credited)
        self.debt -= paid
        lot.left -= paid

    def figures(self, shortfall: str) -> dict[str, Any]:
        """As the API shows them."""
        first = min(self.expiries, default=None)
        return {
            "balance": self.balance - (self.debt if shortfall == "negative" else 0),
            "pending": self.pending,
            "debt": 0 if shortfall == "negative" else self.debt,
            "next_expiry": {"points": self.expiries[first], "at": first.isoformat().replace("+00:00", "Z")} if first else None,
        }


# --- Sales ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class SoldLine:
    """A line's frozen figures, and what has come back of it."""

    line_no: int
    quantity: Fraction
    amount: int
    net: int
    spent: int
    spent_minor: int
    rate_bp: int
    earned: int = 0
    back: Fraction = Fraction(0)
    refunded: int = 0

    @property
    def payable(self) -> int:
        return self.net - self.spent_minor


@dataclass
class Sold:
    """A recorded sale, and what is left of it."""

    lines: list[SoldLine]
    # Type, and what is left to refund to it.
    tenders: list[tuple[str, int]]
    programme: ProgrammeVersion | None
    ledger: Ledger | None
    earned: int = 0
    own_lot: Lot | None = None
    # What each lot gave and has not got back, in the order in which it was spent.
    spent_from: list[tuple[Lot, int]] = field(default_factory=list)
    taken_back: int = 0

    def due(self) -> int:
        """Points due on what is left of the sale."""
        if self.programme is None or self.ledger is None:
            return 0
        earn = self.programme.earn
        weight = sum((line.payable - line.refunded) * line.rate_bp for line in self.lines)
        return rounded(Fraction(weight * earn.points, 10_000 * earn.per_minor), earn.rounding)


@dataclass(frozen=True)
class Back:
    """What a reversal did: per line refund and points returned, per tender its refund."""

    lines: dict[int, tuple[int, int]]
    tenders: dict[int, int]
    taken_back: int

    @property
    def refund(self) -> int:
        return sum(refund for refund, _ in self.lines.values())

    @property
    def returned(self) -> int:
        return sum(points for _, points in self.lines.values())


def sell(sale: NewSale, programme: ProgrammeVersion | None, ledger: Ledger | None, now: datetime) -> Sold:
    """Judges and books a sale in a known store, of lines with right amounts."""
    if sale.sold_at > now + timedelta(minutes=10):
        raise Refused(422, "sold_at_in_future")
    nets = [line.amount_minor - sum(d.amount_minor for d in line.discounts) for line in sale.lines]
    if min(nets) < 0:
        raise Refused(422, "discount_exceeds_amount")
    for discount in sale.discounts:
        if discount.amount_minor > sum(nets):
            raise Refused(422, "discount_exceeds_amount")
        nets = [net - share for net, share in zip(nets, shared(discount.amount_minor, nets), strict=True)]
    points, worth = sale.points_to_spend, Fraction(0)
    if points:
        if ledger is None or programme is None or programme.spend is None:
            raise Refused(422, "points_not_spendable")
        worth = Fraction(points, programme.spend.points) * programme.spend.minor
        if points % programme.spend.points:
            raise Refused(422, "points_step")
        if worth > sum(nets):
            raise Refused(422, "points_exceed_amount")
        if points > ledger.balance:
            raise Refused(422, "insufficient_points")
    if sum(tender.amount_minor for tender in sale.tenders) != sum(nets) - worth:
        raise Refused(422, "tenders_do_not_balance")

    assert sale.store is not None
    day = sale.store.business_day(sale.sold_at)
    figures = zip(sale.lines, nets, shared(points, nets), shared(int(worth), nets), strict=True)
    lines = [
        SoldLine(
            line.line_no, Fraction(line.quantity), line.amount_minor, net, spent, minor,
            programme.multiplier_for(sku=line.sku, category=line.category, store_code=sale.store.code, day=day)[0]
            if programme and ledger
            else 0,
        )
        for line, net, spent, minor in figures
    ]  # fmt: skip
    sold = Sold(lines, [(tender.type, tender.amount_minor) for tender in sale.tenders], programme, ledger)
    if programme and ledger:
        sold.earned = sold.due()
        for line, share in zip(lines, shared(sold.earned, [line.payable * line.rate_bp for line in lines]), strict=True):
            line.earned = share
        sold.spent_from = ledger.debit(points)
        if sold.earned:
            # A till's clock may be a little fast; what it earns at once is not held back by that.
            opens = programme.available_at(min(sale.sold_at, now))
            sold.own_lot = ledger.earn(sold.earned, opens, programme.expires_at(sale.sold_at), now)
    return sold


def reverse(asked: NewReversal, sold: Sold, programme: ProgrammeVersion | None, now: datetime) -> Back:
    """Judges and books a reversal in a known store; `programme` is the version of its own day."""
    if asked.reversed_at > now + timedelta(minutes=10):
        raise Refused(422, "reversed_at_in_future")
    by_number = {line.line_no: line for line in sold.lines}
    wanted = {number: Fraction(quantity) for number, quantity in asked.lines}
    if not asked.lines:
        wanted = {line.line_no: line.quantity - line.back for line in sold.lines if line.back < line.quantity}
        if not wanted:
            raise Refused(409, "nothing_left_to_reverse")
    for number, quantity in wanted.items():
        if number not in by_number:
            raise Refused(422, "line_not_found")
        if quantity > by_number[number].quantity:
            raise Refused(422, "quantity_exceeds_sold")
        if quantity > by_number[number].quantity - by_number[number].back:
            raise Refused(409, "quantity_already_reversed")

    lines: dict[int, tuple[int, int]] = {}
    for line in (line for line in sold.lines if line.line_no in wanted):
        end = line.back + wanted[line.line_no]
        returned = first_of(line.spent, end, line.quantity) - first_of(line.spent, line.back, line.quantity)
        # Both are floored, so that their difference may fall by one where a part begins; nobody pays for bringing goods back.
        paid = first_of(line.net, end, line.quantity) - first_of(line.spent_minor, end, line.quantity)
        refund = max(0, paid - line.refunded)
        line.back, line.refunded = end, line.refunded + refund
        lines[line.line_no] = refund, returned
    taken = sold.earned - sold.taken_back - sold.due()
    back = Back(lines, _refund_tenders(sum(refund for refund, _ in lines.values()), sold, programme), taken)
    if sold.ledger:
        assert programme is not None
        returns = sold.ledger.give_back(back.returned, sold.spent_from, timedelta(days=programme.restore_grace_days), now)
        for lot, part in returns:
            sold.spent_from = [(each, left - part if each is lot else left) for each, left in sold.spent_from]
        sold.ledger.take_back(taken, sold.own_lot, programme.shortfall)
        sold.ledger.settle(now)
    sold.taken_back += taken
    return back


def _refund_tenders(refund: int, sold: Sold, programme: ProgrammeVersion | None) -> dict[int, int]:
    order = programme.refund_tender_order if programme else ("card", "wechat_pay", "alipay", "stored_value", "other", "cash")
    result: dict[int, int] = {}
    for kind in [*order, None]:
        for index, (type_, left) in enumerate(sold.tenders):
            part = min(refund, left) if type_ == kind or (kind is None and type_ not in order) else 0
            if part:
                sold.tenders[index] = type_, left - part
                result[index] = part
                refund -= part
    assert not refund
    return result
