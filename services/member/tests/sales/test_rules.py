"""Sales and reversals against a second, simple reckoning of them (`model`), and the rules one by one."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import partial
from typing import Any, get_args
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.money import line_amount_minor, shares
from kit.problems import Refusal
from member.points.rules import Cause, Shortfall, Wallet
from member.programmes.rules import Combine, EarnRule, Expiry, Multiplier, ProgrammeVersion, Rounding, SpendRule
from member.sales.rules import (
    Discount,
    NewLine,
    NewReturn,
    NewReversal,
    NewSale,
    Reversal,
    Sale,
    Store,
    Tender,
    decide_return,
    decide_reversal,
    decide_sale,
    points_due,
    share_refund,
)
from services.member.tests import model
from services.member.tests.draws import CATEGORIES, Draft, Parts, decimal_text, drafts, parts, quantities_of

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
SHANGHAI = ZoneInfo("Asia/Shanghai")
STORE = Store("018f0000-0000-7000-8000-000000000001", "S001", SHANGHAI, "CNY", "demo", 0, True)
MULTIPLIERS = (
    Multiplier("double-audio", 20_000, categories=frozenset({"audio"})),
    Multiplier("nothing-on-b", 0, skus=frozenset({"B"})),
    Multiplier("odd-in-store", 12_345, stores=frozenset({"S001"}), skus=frozenset({"A", "C"}), to_day=date(2026, 11, 21)),
)


def programme(**given: Any) -> ProgrammeVersion:
    fields: dict[str, Any] = {
        "programme_id": "demo",
        "version": 1,
        "effective_from": date(2010, 1, 1),
        "name": "Demo programme",
        "zone": SHANGHAI,
        "currency": "CNY",
        "earn": EarnRule(1, 100),
        "spend": SpendRule(1, 1),
        "expiry": Expiry(years=1, round_to="year"),
    }
    return ProgrammeVersion(**(fields | given))


programmes = st.builds(
    programme,
    earn=st.builds(
        EarnRule,
        points=st.sampled_from([1, 2, 7]),
        per_minor=st.sampled_from([1, 3, 100]),
        rounding=st.sampled_from(get_args(Rounding)),
        multipliers=st.lists(st.sampled_from(MULTIPLIERS), unique=True).map(tuple),
        combine=st.sampled_from(get_args(Combine)),
    ),
    spend=st.sampled_from([SpendRule(1, 1), SpendRule(1, 1), SpendRule(10, 1), SpendRule(1, 5), SpendRule(3, 7), None]),
    expiry=st.sampled_from([None, Expiry(years=1, round_to="year"), Expiry(days=2), Expiry(months=1, round_to="month")]),
    pending_days=st.sampled_from([0, 0, 3]),
    restore_grace_days=st.sampled_from([0, 1, 30]),
    shortfall=st.sampled_from(get_args(Shortfall)),
    refund_tender_order=st.sampled_from([programme().refund_tender_order, ("cash", "card"), ()]),
)
# How long ago the till says that it sold: now, long ago (a late upload), or in a while (a clock that is fast, or wrong).
ages = st.sampled_from([0, 0, 0, 2 * 24 * 60, 400 * 24 * 60, -9, -11]).map(lambda minutes: timedelta(minutes=minutes))
passings = st.sampled_from([0, 0, 1, 3, 40, -2]).map(lambda days: timedelta(days=days))


def opening(wallet: Wallet, ledger: model.Ledger, lots: list[tuple[int, int]], now: datetime) -> None:
    """Grants lots of so many points that live so many days."""
    for number, days in lots:
        ends = now + timedelta(days=days)
        wallet.earn(number, available_at=now, expires_at=ends, source_kind="adjustment", cause=Cause(now, "opening"))
        ledger.earn(number, now, ends, now)


def figures(wallet: Wallet) -> tuple[Any, ...]:
    lots = [(lot.remaining, lot.expired, lot.expires_at, lot.matured or not lot.remaining) for lot in wallet.lots.values()]
    return wallet.balance, wallet.pending, wallet.debt, wallet.sequence, lots


def of_model(ledger: model.Ledger, sequence: int) -> tuple[Any, ...]:
    lots = [(lot.left, lot.lapsed, lot.ends, lot.is_open or not lot.left) for lot in ledger.lots]
    return ledger.balance, ledger.pending, ledger.debt, sequence, lots


def same_sale(sale: Sale, sold: model.Sold) -> None:
    assert [(n.net_minor, n.points_spent, n.points_spent_minor, n.points_earned, n.multiplier_bp) for n in sale.lines] == [
        (n.net, n.spent, n.spent_minor, n.earned, n.rate_bp) for n in sold.lines
    ]
    for line in sale.lines:
        assert 0 <= line.points_spent_minor <= line.net_minor <= line.amount_minor
        assert line.discount_minor == sum(discount.amount_minor for discount in line.discounts)
    assert sale.gross_minor - sale.discount_minor == sale.net_minor == sum(line.net for line in sold.lines)
    assert sale.net_minor - sale.points_spent_minor == sale.payable_minor == sum(tender.amount_minor for tender in sale.tenders)
    assert sale.points_earned == sold.earned == sum(line.points_earned for line in sale.lines)
    assert sale.points_spent == sum(line.points_spent for line in sale.lines)


def same_reversal(reversal: Reversal, back: model.Back) -> None:
    assert {n.line_no: (n.refund_minor, n.points_returned) for n in reversal.lines} == back.lines
    assert (reversal.refund_minor, reversal.points_returned) == (back.refund, back.returned)
    assert reversal.points_taken_back == back.taken_back >= 0
    assert dict(reversal.refunds) == back.tenders
    assert min([0, *(line.refund_minor for line in reversal.lines), *back.tenders.values()]) == 0, "nobody pays for bringing goods back"


def refused_alike(refusal: model.Refused, decided: Callable[[], object], wallet: Wallet) -> None:
    before = figures(wallet)
    with pytest.raises(Refusal) as caught:
        decided()
    assert (caught.value.status, caught.value.code) == refusal.answer
    assert figures(wallet) == before, "a refusal changes nothing"


def line(number: int, price: str, quantity: str = "1", *, sku: str = "A", discounts: tuple[Discount, ...] = ()) -> NewLine:
    return NewLine(number, sku, "", CATEGORIES[sku], quantity, price, line_amount_minor(quantity, price, "CNY"), discounts, ())


def sale_of(lines: tuple[NewLine, ...], *, points: int = 0, tenders: tuple[Tender, ...] | None = None, **fields: Any) -> NewSale:
    """A sale paid with points at one minor unit each, and the rest in cash unless told otherwise."""
    payable = sum(line.amount_minor - sum(d.amount_minor for d in line.discounts) for line in lines) - points
    payable -= sum(discount.amount_minor for discount in fields.get("discounts", ()))
    paid = tenders if tenders is not None else (Tender("cash", payable),)
    sale = NewSale("sale", STORE, "till", "", NOW, 480, "CNY", "member", "", "", lines, (), points, paid)
    return msgspec.structs.replace(sale, **fields)


def wallet_of(points: int) -> Wallet:
    wallet = Wallet("member", "demo")
    if points:
        wallet.earn(points, available_at=NOW, expires_at=None, source_kind="adjustment", cause=Cause(NOW))
    return wallet


def reversal_of(lines: list[tuple[int, str]], at: datetime) -> NewReversal:
    return NewReversal("reversal", STORE, "till", at, 480, "", tuple(lines))


@settings(max_examples=500)
@given(
    draft=drafts,
    rules=programmes,
    lots=st.lists(st.tuples(st.integers(1, 200) | st.integers(1, 60_000), st.integers(1, 50)), min_size=1, max_size=4),
    owed=st.sampled_from([0, 0, 0, 0, 100]),
    is_guest=st.sampled_from([False, False, False, False, True]),
    age=ages,
    refunds=st.lists(st.tuples(passings, parts), max_size=5),
)
def test_the_parts_of_a_refund_add_up_to_the_whole_whatever_they_are(
    draft: Draft,
    rules: ProgrammeVersion,
    lots: list[tuple[int, int]],
    owed: int,
    is_guest: bool,  # noqa: FBT001  # drawn by name
    age: timedelta,
    refunds: list[tuple[timedelta, Parts]],
) -> None:
    """LEAP-01, for money, points returned and points taken back; and every figure on the way is the model's."""
    wallet, ledger = Wallet("member", "demo"), model.Ledger()
    opening(wallet, ledger, lots, NOW)
    if owed:
        wallet.take_back(wallet.balance + owed, None, "debt", Cause(NOW))
        ledger.take_back(ledger.balance + owed, None, "debt")
    asked = draft.sale(STORE, "" if is_guest else "member", NOW - age, rules.spend, ledger.balance)
    given_wallet, given_ledger = (None, None) if is_guest else (wallet, ledger)

    def decided() -> Sale:
        return decide_sale(asked, given_wallet, rules, Cause(NOW, "sale", "sale"))

    try:
        sold = model.sell(asked, rules, given_ledger, NOW)
    except model.Refused as refusal:
        refused_alike(refusal, decided, wallet)
        return
    sale = decided()
    same_sale(sale, sold)
    assert figures(wallet) == of_model(ledger, wallet.sequence)

    now = NOW
    reversals: list[Reversal] = []
    for passing, asked_parts in [*refunds, (timedelta(0), [])]:
        now += passing
        wallet.settle(now)
        ledger.settle(now)
        new = reversal_of(quantities_of(asked_parts, sold.lines), now)
        decide = partial(decide_reversal, new, sale, reversals, given_wallet, rules, Cause(now, "reversal", "sale"))
        try:
            back = model.reverse(new, sold, rules, now)
        except model.Refused as refusal:
            refused_alike(refusal, decide, wallet)
            continue
        reversals.append(decide())
        same_reversal(reversals[-1], back)
        assert figures(wallet) == of_model(ledger, wallet.sequence)

    assert sum(reversal.net_minor for reversal in reversals) == sale.net_minor
    assert sum(reversal.refund_minor for reversal in reversals) == sale.payable_minor
    assert sum(reversal.points_returned for reversal in reversals) == sale.points_spent
    assert sum(reversal.points_taken_back for reversal in reversals) == sale.points_earned
    for index, tender in enumerate(sale.tenders):
        assert sum(dict(reversal.refunds).get(index, 0) for reversal in reversals) == tender.amount_minor


@settings(max_examples=300)
@given(
    units=st.integers(2, 12),
    price=st.integers(1, 60),
    off=st.integers(0, 30),
    unpaid=st.integers(0, 12),
)
def test_no_part_of_a_refund_is_less_than_nothing(units: int, price: int, off: int, unpaid: int) -> None:
    """Where points paid nearly all, the floors of net and of points cross: the part is worth nothing then, and the next evens it out."""
    net = max(1, units * price - off)
    points = max(0, net - unpaid)
    lines = (line(1, decimal_text(price, 2), str(units), discounts=(Discount(units * price - net, ""),)),)
    wallet = wallet_of(points)
    rules = programme(earn=EarnRule(1, 1))
    sale = decide_sale(sale_of(lines, points=points), wallet, rules, Cause(NOW, "sale", "sale"))
    reversals: list[Reversal] = []
    for _ in range(units):
        reversals.append(decide_reversal(reversal_of([(1, "1")], NOW), sale, reversals, wallet, rules, Cause(NOW, "back", "sale")))
    assert min(reversal.refund_minor for reversal in reversals) >= 0
    assert min(reversal.points_taken_back for reversal in reversals) >= 0
    assert sum(reversal.refund_minor for reversal in reversals) == sale.payable_minor
    assert (wallet.balance, wallet.debt) == (points, 0), "reversing everything ends at nothing"


def test_however_the_parts_are_cut_the_wallet_ends_where_it_began() -> None:
    lines = (line(1, "3.33", "1.250"), line(2, "0.07", "7", discounts=(Discount(5, ""),)), line(3, "10.00", sku="B"))
    cuts: list[list[list[tuple[int, str]]]] = [
        [[]],
        [[(1, "0.1")], [(2, "3"), (1, "1")], []],
        [[(3, "1")], [(2, "6.5")], [(2, "0.5"), (1, "1.250")]],
    ]
    for plan in cuts:
        wallet = wallet_of(900)
        rules = programme(earn=EarnRule(7, 3, "ceil"))
        sale = decide_sale(sale_of(lines, points=900), wallet, rules, Cause(NOW, "sale", "sale"))
        wallet.debit(wallet.balance, "spend", Cause(NOW))
        spent = sale.points_earned
        reversals: list[Reversal] = []
        for asked in plan:
            reversals.append(decide_reversal(reversal_of(asked, NOW), sale, reversals, wallet, rules, Cause(NOW, "back", "sale")))
        assert sum(reversal.refund_minor for reversal in reversals) == sale.payable_minor
        assert wallet.balance - wallet.debt == 900 - spent


@given(total=st.integers(0, 10**13), weights=st.lists(st.integers(0, 9) | st.integers(0, 10**13), min_size=1, max_size=30))
def test_shares_are_by_largest_remainder_and_add_up(total: int, weights: list[int]) -> None:
    """mall#356: 9.99 of 10."""
    given_shares = shares(total, weights)
    assert given_shares == model.shared(total, weights)
    assert sum(given_shares) == (total if any(weights) else 0)
    if total <= sum(weights):
        assert all(share <= weight for share, weight in zip(given_shares, weights, strict=True))


def test_the_shares_of_equals_go_to_the_lower_lines_first() -> None:
    assert shares(100, [1, 1, 1]) == [34, 33, 33]
    assert shares(2, [5, 5, 5]) == [1, 1, 0]


@given(
    weight=st.integers(0, 10**18),
    points=st.integers(1, 10**6),
    per_minor=st.integers(1, 10**9),
    rounding=st.sampled_from(get_args(Rounding)),
)
def test_points_due_are_rounded_once_for_the_whole_sale(weight: int, points: int, per_minor: int, rounding: Rounding) -> None:
    assert points_due(weight, points, per_minor, rounding) == model.rounded(Fraction(weight * points, per_minor * 10_000), rounding)


@pytest.mark.parametrize("rounding, due", [("floor", [0, 0, 1]), ("half_up", [0, 1, 1]), ("ceil", [1, 1, 1])])
def test_a_point_begun_counts_as_the_rounding_says(rounding: Rounding, due: list[int]) -> None:
    assert [points_due(minor * 10_000, 1, 100, rounding) for minor in (49, 50, 100)] == due


TENDER_TYPES = ["card", "cash", "alipay", "barter"]


@given(
    paid=st.lists(st.builds(Tender, st.sampled_from(TENDER_TYPES), st.integers(0, 500)), max_size=5),
    order=st.permutations(TENDER_TYPES).map(lambda types: types[:3]),
    cuts=st.lists(st.integers(0, 600), max_size=5),
)
def test_refunds_go_to_tenders_in_order_and_never_above_what_they_have_left(paid: list[Tender], order: list[str], cuts: list[int]) -> None:
    left = [tender.amount_minor for tender in paid]
    rank = {kind: place for place, kind in enumerate(order)}
    earlier: list[Any] = []
    for cut in cuts:
        refund = min(cut, sum(left))
        refunds = share_refund(refund, paid, earlier, order)
        earlier.append(FakeReversal(tuple(refunds)))
        assert sum(amount for _, amount in refunds) == refund
        places = [(rank.get(paid[index].type, len(rank)), index) for index, _ in refunds]
        assert places == sorted(places), "by the order of types, then by their order in the sale"
        for index, amount in refunds:
            assert 0 < amount <= left[index]
            left[index] -= amount
        emptied = [index for index, _ in refunds][:-1]
        assert all(left[index] == 0 for index in emptied), "the next tender is touched only when this one has nothing left"


class FakeReversal(msgspec.Struct, frozen=True):
    """As much of a reversal as sharing a refund looks at."""

    refunds: tuple[tuple[int, int], ...]


@pytest.mark.parametrize(
    "zone, cut_over, at, day",
    [
        ("Asia/Shanghai", 0, "2026-11-20T23:59:59.999999+08:00", "2026-11-20"),
        ("Asia/Shanghai", 0, "2026-11-21T00:00:00+08:00", "2026-11-21"),
        ("Asia/Shanghai", 0, "2026-11-20T16:00:00+00:00", "2026-11-21"),
        # A shop that closes at four in the morning.
        ("Asia/Shanghai", 240, "2026-11-21T03:59:59+08:00", "2026-11-20"),
        ("Asia/Shanghai", 240, "2026-11-21T04:00:00+08:00", "2026-11-21"),
        ("Asia/Shanghai", 240, "2027-01-01T00:00:00+08:00", "2026-12-31"),
        # In the night in which the clocks go forward, and back, it still closes at four by the clock on the wall.
        ("Europe/London", 240, "2026-03-29T03:59:59+01:00", "2026-03-28"),
        ("Europe/London", 240, "2026-03-29T04:00:00+01:00", "2026-03-29"),
        ("Europe/London", 240, "2026-10-25T03:59:59+00:00", "2026-10-24"),
        ("Europe/London", 240, "2026-10-25T04:00:00+00:00", "2026-10-25"),
        # Midnight itself is skipped, or comes twice.
        ("America/Havana", 0, "2026-03-07T23:59:59-05:00", "2026-03-07"),
        ("America/Havana", 0, "2026-03-08T01:00:00-04:00", "2026-03-08"),
        ("America/Havana", 0, "2026-11-01T00:30:00-04:00", "2026-11-01"),
        ("America/Havana", 0, "2026-11-01T00:30:00-05:00", "2026-11-01"),
        ("Australia/Lord_Howe", 90, "2026-04-05T01:29:00+11:00", "2026-04-04"),
        ("Australia/Lord_Howe", 90, "2026-04-05T01:30:00+11:00", "2026-04-05"),
    ],
)
def test_a_business_day_begins_at_midnight_or_the_cut_over_by_the_stores_own_clock(zone: str, cut_over: int, at: str, day: str) -> None:
    store = Store("s", "S001", ZoneInfo(zone), "CNY", "demo", cut_over, True)
    assert store.business_day(datetime.fromisoformat(at).astimezone(UTC)) == date.fromisoformat(day)


@pytest.mark.parametrize(
    "quantity, price, currency, amount",
    [
        ("1.250", "3.98", "CNY", 498),
        ("1", "0.005", "CNY", 1),
        ("0.333333", "0.01", "CNY", 0),
        ("3", "100", "JPY", 300),
        ("0.5", "1", "JPY", 1),
        ("1", "1.2345", "KWD", 1235),
        ("999999999999.999999", "0.01", "CNY", 1_000_000_000_000),
    ],
)
def test_a_lines_amount_is_rounded_half_up_in_its_currencys_minor_units(quantity: str, price: str, currency: str, amount: int) -> None:
    assert line_amount_minor(quantity, price, currency) == amount


def test_discounts_on_the_whole_sale_are_shared_after_those_on_lines_and_shown_on_each() -> None:
    lines = (line(1, "10.00", discounts=(Discount(400, "member"),)), line(2, "3.00"), line(3, "0.00"))
    sale = decide_sale(sale_of(lines, discounts=(Discount(100, "coupon"), Discount(1, "tip"))), None, None, Cause(NOW, None, "sale"))
    assert [each.discounts for each in sale.lines] == [
        (Discount(400, "member"), Discount(67, "coupon"), Discount(1, "tip")),
        (Discount(33, "coupon"),),
        (),
    ]
    assert [each.net_minor for each in sale.lines] == [532, 267, 0]
    assert (sale.gross_minor, sale.discount_minor, sale.net_minor) == (1300, 501, 799)


def test_points_may_pay_all_that_discounts_leave_and_the_sale_earns_nothing() -> None:
    wallet = wallet_of(800)
    lines = (line(1, "10.00", discounts=(Discount(300, ""),)), line(2, "1.00"))
    sale = decide_sale(sale_of(lines, points=700, discounts=(Discount(100, ""),), tenders=()), wallet, programme(), Cause(NOW, "s", "s"))
    assert (sale.payable_minor, sale.points_earned, wallet.balance) == (0, 0, 100)
    back = decide_reversal(reversal_of([], NOW), sale, [], wallet, programme(), Cause(NOW, "r", "s"))
    assert (back.refund_minor, back.refunds, wallet.balance) == (0, (), 800)


def test_a_sale_of_nothing_is_recorded_and_reversed() -> None:
    wallet = wallet_of(0)
    sale = decide_sale(sale_of((line(1, "0.00", "2"),), tenders=()), wallet, programme(), Cause(NOW, "s", "s"))
    back = decide_reversal(reversal_of([], NOW), sale, [], wallet, programme(), Cause(NOW, "r", "s"))
    assert (sale.net_minor, back.refund_minor, back.lines[0].quantity, wallet.entries) == (0, 0, "2", [])


def test_quantities_keep_the_decimals_they_were_sent_with() -> None:
    sale = decide_sale(sale_of((line(1, "10.00", "1.250"),)), None, None, Cause(NOW, None, "s"))
    first = decide_reversal(reversal_of([(1, "0.5")], NOW), sale, [], None, None, Cause(NOW, None, "s"))
    rest = decide_reversal(reversal_of([], NOW), sale, [first], None, None, Cause(NOW, None, "s"))
    assert [reversal.lines[0].quantity for reversal in (first, rest)] == ["0.5", "0.750"]
    assert (first.refund_minor, rest.refund_minor) == (500, 750)


def test_a_reversal_is_judged_by_the_rule_of_the_day_of_sale_though_the_rule_changed() -> None:
    wallet = wallet_of(0)
    lines = (line(1, "10.00", sku="A"), line(2, "10.00", sku="D"))
    sale = decide_sale(sale_of(lines), wallet, programme(earn=EarnRule(1, 100, "floor", MULTIPLIERS[:1])), Cause(NOW, "s", "s"))
    assert [each.points_earned for each in sale.lines] == [20, 10]
    assert [each.rule for each in sale.lines] == ["demo@1/double-audio", "demo@1/base"]
    later = programme(version=2, earn=EarnRule(9, 1))
    back = decide_reversal(reversal_of([(1, "1")], NOW), sale, [], wallet, later, Cause(NOW, "r", "s"))
    assert (back.points_taken_back, wallet.balance) == (20, 10)


def refused(decided: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        decided()
    return caught.value.code


@pytest.mark.parametrize(
    "change, code",
    [
        ({"store": None}, "store_not_found"),
        ({"store": msgspec.structs.replace(STORE, till_known=False)}, "till_not_found"),
        ({"currency": "GBP"}, "currency_mismatch"),
        ({"sold_at": NOW + timedelta(minutes=10, microseconds=1)}, "sold_at_in_future"),
        ({"lines": (msgspec.structs.replace(line(1, "10.00"), amount_minor=1001),)}, "line_amount_mismatch"),
        ({"lines": (msgspec.structs.replace(line(1, "10.00"), serials=("a", "b")),)}, "serials_do_not_match"),
        ({"lines": (line(1, "10.00", discounts=(Discount(999, ""), Discount(2, ""))),)}, "discount_exceeds_amount"),
        ({"discounts": (Discount(1000, ""), Discount(1, ""))}, "discount_exceeds_amount"),
        ({"points_to_spend": 1}, "points_step"),
        ({"points_to_spend": 2000}, "points_exceed_amount"),
        ({"points_to_spend": 60, "tenders": ()}, "insufficient_points"),
        ({"tenders": (Tender("cash", 999),)}, "tenders_do_not_balance"),
    ],
)
def test_what_is_wrong_with_a_sale_is_told_by_its_code_and_changes_nothing(change: dict[str, Any], code: str) -> None:
    wallet = wallet_of(50)
    sale = msgspec.structs.replace(sale_of((line(1, "10.00"),)), **change)
    before = figures(wallet)
    assert refused(lambda: decide_sale(sale, wallet, programme(spend=SpendRule(10, 10)), Cause(NOW, "s", "s"))) == code
    assert figures(wallet) == before


def test_points_are_spent_by_members_alone_and_where_the_programme_lets_them() -> None:
    sale = sale_of((line(1, "10.00"),), points=10)
    assert refused(lambda: decide_sale(sale, None, programme(), Cause(NOW, "s", "s"))) == "points_not_spendable"
    assert refused(lambda: decide_sale(sale, wallet_of(10), programme(spend=None), Cause(NOW, "s", "s"))) == "points_not_spendable"
    assert refused(lambda: decide_sale(sale, wallet_of(10), None, Cause(NOW, "s", "s"))) == "programme_not_found"


@pytest.mark.parametrize(
    "lines, code",
    [
        ([(3, "1")], "line_not_found"),
        ([(1, "1"), (1, "0.5")], "line_repeated"),
        ([(1, "2.1")], "quantity_exceeds_sold"),
        ([(1, "1.6")], "quantity_already_reversed"),
        ([(2, "1")], "quantity_already_reversed"),
    ],
)
def test_no_more_comes_back_than_was_sold(lines: list[tuple[int, str]], code: str) -> None:
    wallet = wallet_of(0)
    sale = decide_sale(sale_of((line(1, "10.00", "2"), line(2, "1.00"))), wallet, programme(), Cause(NOW, "s", "s"))
    first = decide_reversal(reversal_of([(1, "0.5"), (2, "1")], NOW), sale, [], wallet, programme(), Cause(NOW, "r", "s"))
    before = figures(wallet)
    assert refused(lambda: decide_reversal(reversal_of(lines, NOW), sale, [first], wallet, programme(), Cause(NOW, "r", "s"))) == code
    assert figures(wallet) == before


def test_a_reversal_elsewhere_is_in_the_sales_currency_and_counts_on_its_own_day_there() -> None:
    sale = decide_sale(sale_of((line(1, "10.00"),)), None, None, Cause(NOW, None, "s"))
    elsewhere = msgspec.structs.replace(STORE, store_id="other", zone=ZoneInfo("Pacific/Auckland"))
    asked = msgspec.structs.replace(reversal_of([], NOW + timedelta(minutes=10)), store=elsewhere)
    wrong = msgspec.structs.replace(asked, store=msgspec.structs.replace(elsewhere, currency="NZD"))
    ahead = msgspec.structs.replace(asked, reversed_at=NOW + timedelta(minutes=11))
    assert refused(lambda: decide_reversal(wrong, sale, [], None, None, Cause(NOW))) == "currency_mismatch"
    assert refused(lambda: decide_reversal(ahead, sale, [], None, None, Cause(NOW))) == "reversed_at_in_future"
    back = decide_reversal(asked, sale, [], None, None, Cause(NOW))
    assert (back.store_id, back.business_day) == ("other", date(2026, 11, 21))


def test_a_return_without_a_sale_is_recorded_as_it_was_sent() -> None:
    lines = ((1, "A", "", "", "2", "1.00", 200), (2, "B", "", "", "1.5", "9.99", 1498))
    given_return = NewReturn("return", STORE, "till", "", NOW, 480, "CNY", "", "", lines)
    recorded = decide_return(given_return, "id", NOW)
    assert (recorded.refund_minor, recorded.business_day) == (1698, date(2026, 11, 21))
    assert refused(lambda: decide_return(msgspec.structs.replace(given_return, store=None), "id", NOW)) == "store_not_found"
    assert refused(lambda: decide_return(msgspec.structs.replace(given_return, currency="USD"), "id", NOW)) == "currency_mismatch"
    late = msgspec.structs.replace(given_return, returned_at=NOW + timedelta(hours=1))
    assert refused(lambda: decide_return(late, "id", NOW)) == "returned_at_in_future"
