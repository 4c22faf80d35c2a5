"""Random baskets and refunds, drawn as portions of what is there, so that most of what is drawn can be done."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from math import floor

from hypothesis import strategies as st

from kit.ids import uuid7
from member.programmes.rules import SpendRule
from member.sales.rules import Discount, NewLine, NewSale, Store, Tender
from services.member.tests.model import SoldLine, rounded

CATEGORIES = {"A": "audio", "B": "case", "C": "film", "D": ""}
TENDERS = ("card", "cash", "wechat_pay", "stored_value", "barter")
MORE_THAN_THERE_IS = 11


def decimal_text(digits: int, scale: int) -> str:
    """`digits` with so many decimals, such as "1.250"."""
    return f"{Decimal(digits).scaleb(-scale):f}"


@dataclass(frozen=True)
class DraftLine:
    """A line with a discount of so many tenths of its amount."""

    sku: str
    quantity: str
    unit_price: str
    discount_tenths: int


@dataclass(frozen=True)
class Draft:
    """A sale before it is known what the member can spend."""

    lines: Sequence[DraftLine]
    discount_tenths: Sequence[int]
    # Of the most that can be spent on it; MORE_THAN_THERE_IS asks for one step more than the balance.
    spend_tenths: int
    # Each takes so many tenths of what the earlier ones left; the last takes the rest.
    tenders: Sequence[tuple[str, int]]

    def sale(self, store: Store, member_id: str, sold_at: datetime, rate: SpendRule | None, balance: int) -> NewSale:
        """The sale for a member with this balance."""
        lines = tuple(self._line(number, line) for number, line in enumerate(self.lines, 1))
        left = sum(line.amount_minor - sum(d.amount_minor for d in line.discounts) for line in lines)
        discounts = []
        for tenths in self.discount_tenths:
            discounts.append(Discount(left * tenths // 10, f"{tenths}0 % off"))
            left -= discounts[-1].amount_minor
        points = 0
        if rate is not None and self.spend_tenths == MORE_THAN_THERE_IS:
            points = (balance // rate.points + 1) * rate.points
        elif rate is not None:
            points = min(balance // rate.points, left // rate.minor) * self.spend_tenths // 10 * rate.points
        left = max(0, left - (points // rate.points * rate.minor if rate else 0))
        tenders = []
        for kind, tenths in self.tenders[:-1]:
            tenders.append(Tender(kind, left * tenths // 10))
            left -= tenders[-1].amount_minor
        if self.tenders or left:
            tenders.append(Tender(self.tenders[-1][0] if self.tenders else "cash", left))
        return NewSale(
            uuid7(), store, uuid7(), "", sold_at, 480, store.currency, member_id, "", "", lines, tuple(discounts), points, tuple(tenders)
        )

    def _line(self, number: int, line: DraftLine) -> NewLine:
        amount = rounded(Fraction(line.quantity) * Fraction(line.unit_price) * 100, "half_up")
        off = amount * line.discount_tenths // 10
        discounts = (Discount(off, "member price"),) if line.discount_tenths else ()
        return NewLine(number, line.sku, "", CATEGORIES[line.sku], line.quantity, line.unit_price, amount, discounts, ())


tenths = st.integers(0, 10)
quantities = st.one_of(
    st.integers(1, 12).map(str),
    st.sampled_from(["1.250", "0.5", "2.00", "0.000001", "1000000"]),
    st.builds(decimal_text, st.integers(1, 20_000), st.integers(1, 6)),
)
unit_prices = st.one_of(
    st.sampled_from(["9.99", "1", "0.01", "0.005", "0"]),
    st.builds(decimal_text, st.integers(0, 50_000), st.just(2)),
)
drafts = st.builds(
    Draft,
    lines=st.lists(st.builds(DraftLine, st.sampled_from("ABCD"), quantities, unit_prices, st.just(0) | tenths), min_size=1, max_size=4),
    discount_tenths=st.lists(tenths, max_size=2),
    spend_tenths=st.sampled_from([10, 9, 5, 1, 0, MORE_THAN_THERE_IS]),
    tenders=st.lists(st.tuples(st.sampled_from(TENDERS), tenths), max_size=3),
)

# A refund: for some lines, how many tenths of what is left of them come back; none named: all that is left.
Parts = Sequence[tuple[int, int]]
parts: st.SearchStrategy[Parts] = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 10)), max_size=3, unique_by=lambda part: part[0])


def quantities_of(asked: Parts, lines: Sequence[SoldLine]) -> list[tuple[int, str]]:
    """Line numbers and quantities of a refund of those parts, in whole units where a line has them."""
    result = []
    for index, tenths_back in asked:
        if index < len(lines):
            line = lines[index]
            left = line.quantity - line.back
            unit = 1 if line.quantity.denominator == 1 and tenths_back % 2 else 10**6
            back = Fraction(floor(left * tenths_back / 10 * unit), unit)
            if quantity := back or left:
                result.append((line.line_no, decimal_text(floor(quantity * 10**6), 6)))
    return result
