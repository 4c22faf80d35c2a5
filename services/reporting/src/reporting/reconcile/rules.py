"""What the facts and a ledger come to, beside each other. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeVar

from msgspec import Struct

K = TypeVar("K")

Figure = int | Decimal
Figures = dict[str, Figure]
StoreDayKey = tuple[str, str, str]
PointsDayKey = tuple[str, str, str]

SALE_FIGURES = ("receipts", "gross_minor", "discount_minor", "net_minor", "payable_minor", "items", "checksum")
RETURN_FIGURES = ("returns", "returned_net_minor", "refund_minor", "returned_items")
# Reports by category or SKU are made of lines, which have to come to the same. A checksum is of every row with all that reports group it
# by: sums that agree could be those of another member, channel or SKU.
SALE_LINE_FIGURES = ("lines.gross_minor", "lines.net_minor", "lines.payable_minor", "lines.items", "lines.checksum")
RETURN_LINE_FIGURES = ("lines.returned_net_minor", "lines.refund_minor", "lines.returned_items", "lines.returned_checksum")
POINTS_FIGURES = ("points.entries", "points.points", "points.pending", "points.debt", "points.expired")
TOTAL_FIGURES = ("points_total.balance", "points_total.pending", "points_total.debt")
MEMBERS = "members"


@dataclass(slots=True)
class Sums:
    """What one side comes to. What is not there is zero."""

    # By store, business day and currency.
    store_days: dict[StoreDayKey, Figures] = field(default_factory=dict)
    # By programme, day and kind of entry.
    points_days: dict[PointsDayKey, Figures] = field(default_factory=dict)
    # By programme.
    points_totals: dict[str, Figures] = field(default_factory=dict)
    # By day of joining.
    members_days: dict[str, Figures] = field(default_factory=dict)


class Difference(Struct, frozen=True):
    """One figure that the reports have otherwise than the ledger, and of what it is."""

    figure: str
    ledger: str
    reports: str
    store_id: str | None = None
    day: str | None = None
    currency: str | None = None
    programme_id: str | None = None
    kind: str | None = None


def differences_between(ledger: Sums, reports: Sums) -> list[Difference]:
    """Every figure that differs, by day."""
    found = [
        *(
            Difference(figure, one, other, store_id=store_id, day=day, currency=currency)
            for (store_id, day, currency), figure, one, other in _differing(ledger.store_days, reports.store_days)
        ),
        *(
            Difference(figure, one, other, programme_id=programme_id, day=day, kind=kind)
            for (programme_id, day, kind), figure, one, other in _differing(ledger.points_days, reports.points_days)
        ),
        *(Difference(figure, one, other, day=day) for day, figure, one, other in _differing(ledger.members_days, reports.members_days)),
        *(
            Difference(figure, one, other, programme_id=programme_id)
            for programme_id, figure, one, other in _differing(ledger.points_totals, reports.points_totals)
        ),
    ]
    return sorted(found, key=lambda each: (each.day or "", each.store_id or "", each.programme_id or "", each.kind or "", each.figure))


def _differing(ledger: Mapping[K, Figures], reports: Mapping[K, Figures]) -> Iterator[tuple[K, str, str, str]]:
    nothing: Figures = {}
    for key in ledger.keys() | reports.keys():
        one, other = ledger.get(key, nothing), reports.get(key, nothing)
        for figure in one.keys() | other.keys():
            if one.get(figure, 0) != other.get(figure, 0):
                yield key, figure, _text(one.get(figure, 0)), _text(other.get(figure, 0))


def _text(figure: Figure) -> str:
    """A number as people write it: a quantity without the zeros at its end."""
    return str(figure) if isinstance(figure, int) else f"{figure.normalize():f}"
