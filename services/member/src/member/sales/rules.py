"""A sale and its reversals (销售, 退货), decided on the state in memory.

Line figures are frozen when the sale is decided: a reversal shares out what is written there and computes nothing again. What the
first r of a line's n units have of a figure is floor(figure × r ÷ n), so whatever the parts of a refund, they add up (LEAP-01).

Pure: no I/O, no clock. A refusal is raised before anything has changed.
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from msgspec import Struct

from kit.money import first_part, line_amount_minor, rounded_half_up, shares
from kit.problems import FieldError, Refusal

if TYPE_CHECKING:
    from member.points.rules import Cause, Lot, Wallet
    from member.programmes.rules import ProgrammeVersion, Rounding

CLOCK_TOLERANCE = timedelta(minutes=10)
RATE_ONE_BP = 10_000
DEFAULT_REFUND_ORDER = ("card", "wechat_pay", "alipay", "stored_value", "other", "cash")


class Store(Struct, frozen=True):
    """Where an act takes place, as the gateway knows it."""

    store_id: str
    code: str
    zone: ZoneInfo
    currency: str
    programme_id: str
    day_cut_over_minutes: int
    till_known: bool

    def business_day(self, at: datetime) -> date:
        """The store's own day (营业日) of an instant: midnight in its zone, unless it sets a cut-over."""
        return (at.astimezone(self.zone) - timedelta(minutes=self.day_cut_over_minutes)).date()


class Discount(Struct, frozen=True):
    """Money off, with the reason that the receipt shows."""

    amount_minor: int
    reason: str


class Tender(Struct, frozen=True):
    """A means of payment and what it paid, or is given back."""

    type: str
    amount_minor: int
    reference: str = ""


class NewLine(Struct, frozen=True):
    """A line as the till sends it."""

    line_no: int
    sku: str
    description: str
    category: str
    quantity: str
    unit_price: str
    amount_minor: int
    discounts: tuple[Discount, ...]
    serials: tuple[str, ...]


class NewSale(Struct, frozen=True):
    """A sale as the till sends it. `store` is None where the gateway knows no such store; `member_id` is empty for a guest."""

    operation_id: str
    store: Store | None
    till_id: str
    receipt_no: str
    sold_at: datetime
    sold_at_offset_minutes: int
    currency: str
    member_id: str
    channel: str
    staff_code: str
    lines: tuple[NewLine, ...]
    discounts: tuple[Discount, ...]
    points_to_spend: int
    tenders: tuple[Tender, ...]


class SaleLine(Struct, frozen=True):
    """A line with its frozen shares. Payable is net less what points paid."""

    line_no: int
    sku: str
    description: str
    category: str
    quantity: str
    unit_price: str
    amount_minor: int
    discount_minor: int
    net_minor: int
    discounts: tuple[Discount, ...]
    points_spent: int
    points_spent_minor: int
    points_earned: int
    # Rate and name of the earning rule that held for it; 0 and empty for a guest's.
    multiplier_bp: int
    rule: str
    serials: tuple[str, ...]

    @property
    def payable_minor(self) -> int:
        """What is left of the line to pay with tenders."""
        return self.net_minor - self.points_spent_minor

    def refund_of_first_minor(self, units: Decimal) -> int:
        """What the first so many units have of the payable amount: their share of the net less their share of what points paid."""
        quantity = Decimal(self.quantity)
        return first_part(self.net_minor, units, quantity) - first_part(self.points_spent_minor, units, quantity)


class Sale(Struct, frozen=True):
    """A recorded sale."""

    sale_id: str
    operation_id: str
    store_id: str
    store_code: str
    till_id: str
    receipt_no: str
    sold_at: datetime
    sold_at_offset_minutes: int
    business_day: date
    currency: str
    # Empty for a guest.
    member_id: str
    programme_id: str
    channel: str
    staff_code: str
    gross_minor: int
    discount_minor: int
    net_minor: int
    points_spent: int
    points_spent_minor: int
    payable_minor: int
    points_earned: int
    # The earning rule of the day of sale, kept for what is due after a refund; 0 for a guest's.
    earn_points: int
    earn_per_minor: int
    earn_rounding: "Rounding"
    earned_lot_id: str | None
    # What each lot gave, in spend order.
    spent_from: tuple[tuple[str, int], ...]
    lines: tuple[SaleLine, ...]
    discounts: tuple[Discount, ...]
    tenders: tuple[Tender, ...]
    recorded_at: datetime
    # Number of the last entry of the wallet after it: the order of its facts; 0 for a guest.
    wallet_sequence: int


class NewReversal(Struct, frozen=True):
    """A reversal as the till sends it. No lines: all that is left."""

    operation_id: str
    store: Store | None
    till_id: str
    reversed_at: datetime
    reversed_at_offset_minutes: int
    reason: str
    lines: tuple[tuple[int, str], ...]


class ReversalLine(Struct, frozen=True):
    """What came back of one line."""

    line_no: int
    quantity: str
    net_minor: int
    refund_minor: int
    points_returned: int


class Reversal(Struct, frozen=True):
    """A recorded reversal, full or in part."""

    reversal_id: str
    sale_id: str
    operation_id: str
    store_id: str
    till_id: str
    reversed_at: datetime
    reversed_at_offset_minutes: int
    business_day: date
    reason: str
    lines: tuple[ReversalLine, ...]
    net_minor: int
    refund_minor: int
    points_taken_back: int
    points_returned: int
    # What each lot got back.
    returned_to: tuple[tuple[str, int], ...]
    # Per tender of the sale, by its index: what went back to it.
    refunds: tuple[tuple[int, int], ...]
    recorded_at: datetime
    # As a sale's.
    wallet_sequence: int


def decide_sale(sale: NewSale, wallet: "Wallet | None", programme: "ProgrammeVersion | None", cause: "Cause") -> Sale:
    """Records a sale: freezes every line's shares, spends points, earns points.

    `wallet` is the member's, settled as of `cause.at`; None for a guest. `programme` is the version of the day of sale. `cause`
    carries the time of recording and the sale's id.

    Raises Refusal: `store_not_found`, `till_not_found`, `currency_mismatch`, `sold_at_in_future`, `programme_not_found`,
    `programme_currency_mismatch`, `line_amount_mismatch`, `discount_exceeds_amount`, `serials_do_not_match`, `points_not_spendable`,
    `points_step`, `points_exceed_amount`, `insufficient_points`, `tenders_do_not_balance`, `too_many_points`.
    """
    store = checked_store(sale.store)
    if sale.currency != store.currency:
        raise refusal(
            "currency_mismatch", f"This store sells in {store.currency}. Send the sale in {store.currency}.", "/currency", status=422
        )
    check_not_ahead(sale.sold_at, cause.at, "sold_at")
    if wallet is not None and programme is None:
        raise refusal("programme_not_found", f"The store's programme {store.programme_id} has no version. Apply one first.", "/store_id")
    if wallet is not None and programme is not None and programme.currency != sale.currency:
        detail = (
            f"The store's programme counts in {programme.currency}. Give the store a programme in {sale.currency}, or sell without member."
        )
        raise refusal("programme_currency_mismatch", detail, "/store_id")
    day = store.business_day(sale.sold_at)

    nets = [_line_net(line, index, sale.currency) for index, line in enumerate(sale.lines)]
    discounts: list[tuple[Discount, ...]] = [line.discounts for line in sale.lines]
    for index, discount in enumerate(sale.discounts):
        if discount.amount_minor > sum(nets):
            raise refusal(
                "discount_exceeds_amount",
                f"The discount is {discount.amount_minor}, but only {sum(nets)} is left to pay. Lower it.",
                f"/discounts/{index}/amount_minor",
            )
        for i, share in enumerate(shares(discount.amount_minor, nets)):
            if share:
                nets[i] -= share
                discounts[i] = (*discounts[i], Discount(share, discount.reason))
    net = sum(nets)

    spent_minor = _points_worth(sale.points_to_spend, net, wallet, programme) if sale.points_to_spend else 0
    points_shares = shares(sale.points_to_spend, nets)
    minor_shares = shares(spent_minor, nets)
    payable = net - spent_minor
    tendered = sum(tender.amount_minor for tender in sale.tenders)
    if tendered != payable:
        raise refusal("tenders_do_not_balance", f"The tenders come to {tendered}, but {payable} is to pay. Make them equal.", "/tenders")

    earned = 0
    rates: list[tuple[int, str]] = [(0, "")] * len(nets)
    earned_shares = [0] * len(nets)
    if wallet is not None and programme is not None:
        rates = [programme.multiplier_for(sku=line.sku, category=line.category, store_code=store.code, day=day) for line in sale.lines]
        weights = [(net - spent) * rate for net, spent, (rate, _) in zip(nets, minor_shares, rates, strict=True)]
        earned = points_due(sum(weights), programme.earn.points, programme.earn.per_minor, programme.earn.rounding)
        earned_shares = shares(earned, weights)
        if not wallet.has_room_for(earned):
            raise too_many_points(earned, "/lines")

    spent_from: list[tuple[str, int]] = []
    lot_id: str | None = None
    if wallet is not None and programme is not None:
        if sale.points_to_spend:
            spent_from = wallet.debit(sale.points_to_spend, "spend", cause)
        if earned:
            lot_id = wallet.earn(
                earned,
                # A till's clock that is a little fast does not make its points wait for the others'.
                available_at=programme.available_at(min(sale.sold_at, cause.at)),
                expires_at=programme.expires_at(sale.sold_at),
                source_kind="sale",
                cause=cause,
            ).lot_id

    lines = tuple(
        SaleLine(
            line.line_no, line.sku, line.description, line.category, line.quantity, line.unit_price, line.amount_minor,
            line.amount_minor - nets[i], nets[i], discounts[i], points_shares[i], minor_shares[i], earned_shares[i],
            rates[i][0], rates[i][1], line.serials,
        )
        for i, line in enumerate(sale.lines)
    )  # fmt: skip
    gross = sum(line.amount_minor for line in sale.lines)
    return Sale(
        sale_id=cause.sale_id or "",
        operation_id=sale.operation_id,
        store_id=store.store_id,
        store_code=store.code,
        till_id=sale.till_id,
        receipt_no=sale.receipt_no,
        sold_at=sale.sold_at,
        sold_at_offset_minutes=sale.sold_at_offset_minutes,
        business_day=day,
        currency=sale.currency,
        member_id=sale.member_id,
        programme_id=store.programme_id,
        channel=sale.channel,
        staff_code=sale.staff_code,
        gross_minor=gross,
        discount_minor=gross - net,
        net_minor=net,
        points_spent=sale.points_to_spend,
        points_spent_minor=spent_minor,
        payable_minor=payable,
        points_earned=earned,
        earn_points=programme.earn.points if wallet is not None and programme is not None else 0,
        earn_per_minor=programme.earn.per_minor if wallet is not None and programme is not None else 0,
        earn_rounding=programme.earn.rounding if programme is not None else "floor",
        earned_lot_id=lot_id,
        spent_from=tuple(spent_from),
        lines=lines,
        discounts=sale.discounts,
        tenders=sale.tenders,
        recorded_at=cause.at,
        wallet_sequence=wallet.sequence if wallet is not None else 0,
    )


def decide_reversal(
    reversal: NewReversal,
    sale: Sale,
    earlier: Sequence[Reversal],
    wallet: "Wallet | None",
    programme: "ProgrammeVersion | None",
    cause: "Cause",
) -> Reversal:
    """Takes back all or part of a sale: money, points earned, points spent.

    `earlier` are all reversals of the sale so far. `wallet` is the one the sale was made with, settled as of `cause.at`, holding the
    sale's own lot and those it spent from; None for a guest's. `programme` is the version in force now: its settings say what becomes
    of points that cannot be taken back. `cause.cause_id` is the reversal's id.

    Raises Refusal: `store_not_found`, `till_not_found`, `currency_mismatch`, `reversed_at_in_future`, `reversed_before_sold`,
    `line_not_found`, `line_repeated`, `quantity_exceeds_sold` (422); `quantity_already_reversed`, `nothing_left_to_reverse` (409).
    """
    store = checked_store(reversal.store)
    if store.currency != sale.currency:
        raise refusal("currency_mismatch", f"The sale was made in {sale.currency}; this store works in {store.currency}.", "/store_id")
    check_not_ahead(reversal.reversed_at, cause.at, "reversed_at")
    # Of a sale that the clock, having gone back, finds ahead, nothing is said.
    if reversal.reversed_at < min(sale.sold_at, cause.at) - CLOCK_TOLERANCE:
        detail = "The reversal is dated before the sale. Set the till's clock right, and send the time of the reversal."
        raise refusal("reversed_before_sold", detail, "/reversed_at")

    before = reversed_quantities(earlier)
    taken = _quantities_to_reverse(reversal, sale, before)
    refunded = _refunds(earlier)
    lines: list[ReversalLine] = []
    weight_left = 0
    for line in sale.lines:
        paid_back = refunded.get(line.line_no, 0)
        quantity = taken.get(line.line_no)
        if quantity is not None:
            start, sold = before.get(line.line_no, Decimal(0)), Decimal(line.quantity)
            end = start + quantity
            paid_by_points = first_part(line.points_spent_minor, end, sold) - first_part(line.points_spent_minor, start, sold)
            points = first_part(line.points_spent, end, sold) - first_part(line.points_spent, start, sold)
            # Two floors: their difference can fall by one while units come back. That part is refunded nothing, and the next less.
            refund = max(line.refund_of_first_minor(end) - paid_back, 0)
            paid_back += refund
            lines.append(ReversalLine(line.line_no, f"{quantity:f}", refund + paid_by_points, refund, points))
        weight_left += (line.payable_minor - paid_back) * line.multiplier_bp

    points_returned = sum(line.points_returned for line in lines)
    granted = sale.points_earned - sum(r.points_taken_back for r in earlier)
    due = points_due(weight_left, sale.earn_points, sale.earn_per_minor, sale.earn_rounding) if sale.earn_per_minor else 0
    returned_to: list[tuple[str, int]] = []
    if wallet is not None:
        if points_returned:
            grace = timedelta(days=programme.restore_grace_days if programme else 30)
            returned_to = wallet.give_back(points_returned, spends_left(sale, earlier), grace, cause)
        if granted > due:
            own: Lot | None = wallet.lots.get(sale.earned_lot_id) if sale.earned_lot_id else None
            wallet.take_back(granted - due, own, programme.shortfall if programme else "debt", cause)
        # With a grace of no days, what came back to an expired lot has lapsed already.
        wallet.settle(cause.at)

    refund = sum(line.refund_minor for line in lines)
    order = programme.refund_tender_order if programme else DEFAULT_REFUND_ORDER
    return Reversal(
        reversal_id=cause.cause_id or "",
        sale_id=sale.sale_id,
        operation_id=reversal.operation_id,
        store_id=store.store_id,
        till_id=reversal.till_id,
        reversed_at=reversal.reversed_at,
        reversed_at_offset_minutes=reversal.reversed_at_offset_minutes,
        business_day=store.business_day(reversal.reversed_at),
        reason=reversal.reason,
        lines=tuple(lines),
        net_minor=sum(line.net_minor for line in lines),
        refund_minor=refund,
        points_taken_back=granted - due,
        points_returned=points_returned,
        returned_to=tuple(returned_to),
        refunds=tuple(share_refund(refund, sale.tenders, earlier, order)),
        recorded_at=cause.at,
        wallet_sequence=wallet.sequence if wallet is not None else 0,
    )


def points_due(weight_bp: int, points: int, per_minor: int, rounding: "Rounding") -> int:
    """Points for Σ payable × multiplier (in basis points), at `points` per `per_minor`, rounded once for the whole sale."""
    numerator, denominator = weight_bp * points, per_minor * RATE_ONE_BP
    if rounding == "ceil":
        return -(-numerator // denominator)
    if rounding == "half_up":
        return rounded_half_up(numerator, denominator)
    return numerator // denominator


def reversed_quantities(reversals: Sequence[Reversal]) -> dict[int, Decimal]:
    """How many units of each line have come back."""
    sums: dict[int, Decimal] = {}
    for reversal in reversals:
        for line in reversal.lines:
            sums[line.line_no] = sums.get(line.line_no, Decimal(0)) + Decimal(line.quantity)
    return sums


def _refunds(reversals: Sequence[Reversal]) -> dict[int, int]:
    """How much of each line was refunded, in minor units."""
    sums: dict[int, int] = {}
    for reversal in reversals:
        for line in reversal.lines:
            sums[line.line_no] = sums.get(line.line_no, 0) + line.refund_minor
    return sums


def spends_left(sale: Sale, earlier: Sequence[Reversal]) -> list[tuple[str, int]]:
    """What each lot gave to the sale and has not got back yet, in spend order."""
    returned: dict[str, int] = {}
    for reversal in earlier:
        for lot_id, points in reversal.returned_to:
            returned[lot_id] = returned.get(lot_id, 0) + points
    return [(lot_id, points - returned.get(lot_id, 0)) for lot_id, points in sale.spent_from]


def share_refund(refund_minor: int, tenders: Sequence[Tender], earlier: Sequence[Reversal], order: Sequence[str]) -> list[tuple[int, int]]:
    """Which tender gets how much back: by `order` of types, ties by their order in the sale, each up to what it has left."""
    left = [tender.amount_minor for tender in tenders]
    for reversal in earlier:
        for index, amount in reversal.refunds:
            left[index] -= amount
    rank = {kind: place for place, kind in enumerate(order)}
    result: list[tuple[int, int]] = []
    for index in sorted(range(len(tenders)), key=lambda i: (rank.get(tenders[i].type, len(rank)), i)):
        amount = min(refund_minor, left[index])
        if amount:
            result.append((index, amount))
            refund_minor -= amount
    if refund_minor:
        message = f"{refund_minor} to refund that no tender paid"
        raise AssertionError(message)
    return result


def checked_store(store: Store | None) -> Store:
    """The store, when it and the till exist. Raises Refusal `store_not_found` or `till_not_found`."""
    if store is None:
        raise refusal("store_not_found", "There is no such store. Take an id from GET /v1/stores.", "/store_id")
    if not store.till_known:
        raise refusal("till_not_found", "This store has no such till. Register the till or send another.", "/till_id")
    return store


def check_not_ahead(at: datetime, now: datetime, field: str) -> None:
    """Refuses a time more than ten minutes ahead: a till's clock may be a little fast, not wrong."""
    if at > now + CLOCK_TOLERANCE:
        raise refusal(f"{field}_in_future", "The time is more than ten minutes ahead. Set the till's clock right.", f"/{field}")


def refusal(code: str, detail: str, pointer: str, *, status: int = 422) -> Refusal:
    """A refusal about one field of the request; of none (what the path names, the state as a whole) where `pointer` is empty."""
    errors = (FieldError(pointer, code, detail),) if pointer else ()
    return Refusal(code=code, status=status, title=_title(code), detail=detail, errors=errors)


def _title(code: str) -> str:
    return code.replace("_", " ").capitalize()


def _line_net(line: NewLine, index: int, currency: str) -> int:
    """A line's amount less its own discounts, when both are right."""
    expected = line_amount_minor(line.quantity, line.unit_price, currency)
    if line.amount_minor != expected:
        raise refusal(
            "line_amount_mismatch",
            f"{line.quantity} × {line.unit_price} is {expected} in minor units, not {line.amount_minor}.",
            f"/lines/{index}/amount_minor",
        )
    if line.serials and Decimal(line.quantity) != len(line.serials):
        raise refusal(
            "serials_do_not_match",
            f"The line has {line.quantity} units and {len(line.serials)} serials. Send one serial for each unit, or none.",
            f"/lines/{index}/serials",
        )
    net = line.amount_minor
    for place, discount in enumerate(line.discounts):
        net -= discount.amount_minor
        if net < 0:
            raise refusal(
                "discount_exceeds_amount",
                "The line's discounts come to more than its amount. Lower them.",
                f"/lines/{index}/discounts/{place}/amount_minor",
            )
    return net


def _points_worth(points: int, net_minor: int, wallet: "Wallet | None", programme: "ProgrammeVersion | None") -> int:
    """What the points pay, in minor units, when they may be spent here."""
    if wallet is None or programme is None:
        raise refusal("points_not_spendable", "Only a member can spend points. Send the member or no points.", "/points_to_spend")
    rate = programme.spend
    if rate is None:
        raise refusal("points_not_spendable", "This programme's points cannot be spent at the till.", "/points_to_spend")
    if points % rate.points:
        raise refusal("points_step", f"Points are spent in steps of {rate.points}.", "/points_to_spend")
    worth = points // rate.points * rate.minor
    if worth > net_minor:
        raise refusal(
            "points_exceed_amount", f"The points are worth {worth}, but only {net_minor} is to pay. Spend fewer.", "/points_to_spend"
        )
    if points > wallet.balance:
        raise insufficient_points(points, wallet.balance, "/points_to_spend")
    return worth


def insufficient_points(asked: int, balance: int, pointer: str) -> Refusal:
    """The refusal of more points than are spendable."""
    return refusal("insufficient_points", f"{asked} points were asked for and {balance} can be spent now.", pointer)


def too_many_points(granted: int, pointer: str) -> Refusal:
    """The refusal of points that no wallet can hold."""
    return refusal("too_many_points", f"With {granted} points more the member would have too many. Check the amount.", pointer)


def _quantities_to_reverse(reversal: NewReversal, sale: Sale, before: dict[int, Decimal]) -> dict[int, Decimal]:
    sold = {line.line_no: Decimal(line.quantity) for line in sale.lines}
    if not reversal.lines:
        left = {number: quantity - before.get(number, Decimal(0)) for number, quantity in sold.items()}
        left = {number: quantity for number, quantity in left.items() if quantity}
        if not left:
            raise refusal("nothing_left_to_reverse", "Everything of this sale has been taken back already.", "", status=409)
        return left
    taken: dict[int, Decimal] = {}
    for index, (number, text) in enumerate(reversal.lines):
        quantity = Decimal(text)
        if number not in sold:
            raise refusal("line_not_found", f"The sale has no line {number}.", f"/lines/{index}/line_no")
        if number in taken:
            raise refusal("line_repeated", f"Line {number} is named twice. Name each line once.", f"/lines/{index}/line_no")
        if quantity > sold[number]:
            raise refusal(
                "quantity_exceeds_sold", f"{sold[number]:f} of line {number} was sold, not {quantity:f}.", f"/lines/{index}/quantity"
            )
        left_of_line = sold[number] - before.get(number, Decimal(0))
        if quantity > left_of_line:
            raise refusal(
                "quantity_already_reversed",
                f"Only {left_of_line:f} of line {number} is left: the rest was taken back already. Read the sale again.",
                f"/lines/{index}/quantity",
                status=409,
            )
        taken[number] = quantity
    return taken


class NewReturn(Struct, frozen=True):
    """Goods taken back that belong to no recorded sale. Touches no points."""

    operation_id: str
    store: Store | None
    till_id: str
    receipt_no: str
    returned_at: datetime
    returned_at_offset_minutes: int
    currency: str
    member_id: str
    reason: str
    # (line, sku, description, category, quantity, unit price, refund)
    lines: tuple[tuple[int, str, str, str, str, str, int], ...]


class UnlinkedReturn(Struct, frozen=True):
    """A recorded return without a sale."""

    return_id: str
    operation_id: str
    store_id: str
    till_id: str
    receipt_no: str
    returned_at: datetime
    returned_at_offset_minutes: int
    business_day: date
    currency: str
    member_id: str
    reason: str
    lines: tuple[tuple[int, str, str, str, str, str, int], ...]
    refund_minor: int
    recorded_at: datetime


def decide_return(given: NewReturn, return_id: str, now: datetime) -> UnlinkedReturn:
    """Records a return without a sale.

    Raises Refusal: `store_not_found`, `till_not_found`, `currency_mismatch`, `returned_at_in_future`.
    """
    store = checked_store(given.store)
    if given.currency != store.currency:
        raise refusal("currency_mismatch", f"This store sells in {store.currency}. Send the return in {store.currency}.", "/currency")
    check_not_ahead(given.returned_at, now, "returned_at")
    return UnlinkedReturn(
        return_id=return_id,
        operation_id=given.operation_id,
        store_id=store.store_id,
        till_id=given.till_id,
        receipt_no=given.receipt_no,
        returned_at=given.returned_at,
        returned_at_offset_minutes=given.returned_at_offset_minutes,
        business_day=store.business_day(given.returned_at),
        currency=given.currency,
        member_id=given.member_id,
        reason=given.reason,
        lines=given.lines,
        refund_minor=sum(line[6] for line in given.lines),
        recorded_at=now,
    )
