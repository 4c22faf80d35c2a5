"""What is counted of the business, once it is committed: how sales went, how much was sold, how points moved."""

from collections.abc import Iterable, Sequence

from kit.metrics import POINTS_MOVED, REFUNDS, REFUSALS, REVERSALS, SALES, SALES_NET
from member.points.rules import Wallet
from member.sales.rules import Reversal, Sale, UnlinkedReturn
from member.wallet.commands import Outcome

_BY_ACT = {"record_sale": SALES, "reverse_sale": REVERSALS}


def count_outcome(act: str, outcome: Outcome) -> None:
    """Counts how a command ended. `act`: which it was, as the message names it."""
    if outcome.code:
        REFUSALS.of(outcome.code).inc()
    if counter := _BY_ACT.get(act):
        counter.of(_said(outcome)).inc()


def _said(outcome: Outcome) -> str:
    if outcome.replayed:
        return "replayed"
    if outcome.status >= 500:
        return "failed"
    return "refused" if outcome.status >= 400 else "recorded"


def count_amounts(sales: Iterable[Sale], reversals: Iterable[tuple[Sale, Reversal]], returns: Iterable[UnlinkedReturn]) -> None:
    """Counts what a group that was committed sold and gave back."""
    for sale in sales:
        SALES_NET.of(sale.currency).inc(sale.net_minor)
    for sale, reversal in reversals:
        REFUNDS.of(sale.currency).inc(reversal.refund_minor)
    for given in returns:
        REFUNDS.of(given.currency).inc(given.refund_minor)


def count_moves(wallets: Sequence[Wallet]) -> None:
    """Counts the entries of wallets that were committed."""
    moved: dict[str, int] = {}
    for wallet in wallets:
        for entry in wallet.entries:
            points = max(abs(entry.points), abs(entry.pending), abs(entry.debt), entry.expired)
            moved[entry.kind] = moved.get(entry.kind, 0) + points
    for kind, points in moved.items():
        POINTS_MOVED.of(kind).inc(points)
