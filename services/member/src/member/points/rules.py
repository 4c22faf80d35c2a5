"""The points ledger (积分): lots, append-only entries, and a wallet whose figures are sums of them.

A lot holds points with one expiry. Every change is an entry with four deltas: `points` (spendable), `pending` (earned, not yet
spendable), `debt` (owed after a refund of what was already spent) and `expired` (lapsed, kept because a refund counts them as taken
back). A wallet's and a lot's figures are the sums of their entries; `reconcile` proves it.

Invariants: no lot goes below zero; a wallet with debt has no spendable points, since every credit pays debt first; entries carry a
sequence without gaps per wallet.

Pure: no I/O and no clock (it draws ids, which say nothing). A `Wallet` is changed in memory only; whoever loaded it writes what changed.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from kit.ids import uuid7

Shortfall = Literal["debt", "negative", "forgive"]
EntryKind = Literal["earn", "mature", "spend", "return", "take_back", "forgive", "expire", "adjust", "debt_payment"]

# More than any member will have: beyond it a programme's rate or somebody's hand is wrong. Exact in every client's JSON, too.
MOST_POINTS = 10**15

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NEVER = datetime.max.replace(tzinfo=UTC)


def unix_us(at: datetime) -> int:
    """An aware instant as Unix time in microseconds, exactly."""
    return (at - _EPOCH) // _MICROSECOND


def instant(us: int) -> datetime:
    """Unix time in microseconds as a UTC instant, exactly."""
    return _EPOCH + us * _MICROSECOND


@dataclass(slots=True)
class Lot:
    """Points from one source with one expiry. `remaining` and `expired` are sums of its entries."""

    lot_id: str
    quantity: int
    remaining: int
    expired: int
    # Whether the pending period is over and the remainder counts as spendable.
    matured: bool
    available_at: datetime
    # None: never.
    expires_at: datetime | None
    source_kind: str
    source_id: str
    is_new: bool = False
    is_changed: bool = False

    @property
    def spend_order(self) -> tuple[datetime, datetime, str]:
        """Earliest expiry first, then earliest effective (驿氪 增值金)."""
        return (self.expires_at or _NEVER, self.available_at, self.lot_id)

    def has_expired(self, now: datetime) -> bool:
        """Whether its points lapse at or before `now`; the expiry is the first instant at which they are gone."""
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the points ledger. Never changed, never removed."""

    entry_id: str
    sequence: int
    at: datetime
    kind: EntryKind
    points: int
    pending: int
    debt: int
    expired: int
    # The wallet's figures after it.
    balance: int
    debt_after: int
    lot_id: str | None
    sale_id: str | None
    # The sale, reversal or adjustment that caused it; None where time did.
    cause_id: str | None
    reason: str | None
    # When its lot's points lapsed, as the lot stood then; None: never, or no lot.
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why entries are made: the act's id, the sale it concerns, and a person's reason."""

    at: datetime
    cause_id: str | None = None
    sale_id: str | None = None
    reason: str | None = None


class InsufficientPoints(Exception):
    """The wallet has fewer spendable points than asked for."""


@dataclass(slots=True)
class Wallet:
    """A member's points in one programme, with the lots that the group's commands may touch.

    `lots` needs to hold only: every lot that has matured or expired since it was last settled, the first lots in spend order up to
    the points that may be debited, and every lot named by a command. `expiries` and `maturities` hold the sums of *all* lots by
    instant (Unix microseconds), so that the common case, a sale that only earns, loads no lot at all.
    """

    member_id: str
    programme_id: str
    balance: int = 0
    pending: int = 0
    debt: int = 0
    sequence: int = 0
    # Spendable points by expiry, without those that never expire.
    expiries: dict[int, int] = field(default_factory=dict)
    # Pending points by the instant they become spendable.
    maturities: dict[int, int] = field(default_factory=dict)
    lots: dict[str, Lot] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    _in_spend_order: list[tuple[datetime, datetime, str]] | None = None

    def is_due(self, now: datetime) -> bool:
        """Whether lots matured or expired since the wallet was last settled."""
        us = unix_us(now)
        return (bool(self.expiries) and min(self.expiries) <= us) or (bool(self.maturities) and min(self.maturities) <= us)

    @property
    def next_expiry(self) -> tuple[datetime, int] | None:
        """When spendable points lapse next, and how many."""
        if not self.expiries:
            return None
        us = min(self.expiries)
        return instant(us), self.expiries[us]

    def has_room_for(self, points: int) -> bool:
        """Whether it may hold so many points more."""
        return self.balance + self.pending + points <= MOST_POINTS

    def settle(self, now: datetime) -> None:
        """Enters what time did: lots that matured become spendable, then lots that expired lapse, each at its own instant.

        No lapse is dated before the entry by which its points came.
        """
        if not self.is_due(now):
            return
        for lot in sorted(self.lots.values(), key=lambda lot: (lot.available_at, lot.lot_id)):
            if not lot.matured and lot.available_at <= now:
                self._mature(lot)
        for lot in sorted(self.lots.values(), key=lambda lot: lot.spend_order):
            if lot.matured and lot.remaining and lot.has_expired(now):
                # What was earned after its expiry has lapsed already, and what was returned after it got a later one: only pending
                # points can have come after it.
                self._expire(lot, lot.available_at)

    def earn(self, points: int, *, available_at: datetime, expires_at: datetime | None, source_kind: str, cause: Cause) -> Lot:
        """Grants points as a new lot; they pay debt first, wait if they are pending, and lapse if their time is over already."""
        lot = Lot(
            lot_id=uuid7(),
            quantity=points,
            remaining=points,
            expired=0,
            matured=available_at <= cause.at,
            available_at=available_at,
            expires_at=expires_at,
            source_kind=source_kind,
            source_id=cause.cause_id or "",
            is_new=True,
        )
        self._hold(lot)
        kind: EntryKind = "adjust" if source_kind == "adjustment" else "earn"
        if lot.matured:
            self._add_spendable(lot, points)
            self._enter(kind, cause, lot=lot, points=points)
            self._pay_debt(lot, points, cause)
            if lot.remaining and lot.has_expired(cause.at):
                self._expire(lot, cause.at)
        else:
            self._add_pending(lot, points)
            self._enter(kind, cause, lot=lot, pending=points)
        return lot

    def debit(self, points: int, kind: EntryKind, cause: Cause) -> list[tuple[str, int]]:
        """Takes spendable points in spend order. Returns what each lot gave, in that order.

        Raises InsufficientPoints, and changes nothing, when there are fewer.
        """
        if points > self.balance:
            raise InsufficientPoints
        return self._debit_up_to(points, kind, cause)

    def give_back(self, points: int, spent_from: Iterable[tuple[str, int]], grace: timedelta, cause: Cause) -> list[tuple[str, int]]:
        """Returns spent points to the lots they came from, last spent first; what a lot may still get back is in `spent_from`.

        A lot that has expired meanwhile lives again until now + grace. Returned points pay debt first, as every credit does.
        """
        returned: list[tuple[str, int]] = []
        left = points
        for lot_id, spent in reversed(list(spent_from)):
            part = min(left, spent)
            if part == 0:
                continue
            left -= part
            lot = self.lots[lot_id]
            if lot.has_expired(cause.at):
                self._drop(lot)
                lot.expires_at = cause.at + grace
            lot.remaining += part
            self._hold(lot)
            self._add_spendable(lot, part)
            self._enter("return", cause, lot=lot, points=part)
            self._pay_debt(lot, part, cause)
            returned.append((lot_id, part))
        if left:
            message = f"{left} points returned that were never spent"
            raise AssertionError(message)
        return returned

    def take_back(self, points: int, own_lot: Lot | None, shortfall: Shortfall, cause: Cause) -> None:
        """Takes back points that a sale had earned (domain.md, "Order of taking back").

        First from the sale's own lot, where pending and lapsed points count as taken; then from live lots in spend order; what is
        left was spent already, and becomes a debt or is forgiven.
        """
        left = points
        if own_lot is not None:
            left -= self._take_from_own(own_lot, left, cause)
        taken = min(left, self.balance)
        self._debit_up_to(taken, "take_back", cause)
        left -= taken
        if left and shortfall == "forgive":
            self._enter("forgive", cause)
        elif left:
            self.debt += left
            self._enter("take_back", cause, debt=left)

    def _take_from_own(self, lot: Lot, points: int, cause: Cause) -> int:
        part = min(points, lot.remaining)
        if part:
            lot.remaining -= part
            if lot.matured:
                self._add_spendable(lot, -part)
                self._enter("take_back", cause, lot=lot, points=-part)
            else:
                self._add_pending(lot, -part)
                self._enter("take_back", cause, lot=lot, pending=-part)
        lapsed = min(points - part, lot.expired)
        if lapsed:
            lot.expired -= lapsed
            self._enter("take_back", cause, lot=lot, expired=-lapsed)
        return part + lapsed

    def _debit_up_to(self, points: int, kind: EntryKind, cause: Cause) -> list[tuple[str, int]]:
        given: list[tuple[str, int]] = []
        left = points
        if not left:
            return given
        for _, _, lot_id in list(self._order()):
            lot = self.lots[lot_id]
            part = min(left, lot.remaining) if lot.matured else 0
            if part:
                lot.remaining -= part
                self._add_spendable(lot, -part)
                self._enter(kind, cause, lot=lot, points=-part)
                given.append((lot_id, part))
                left -= part
                if not left:
                    break
        if left:
            message = f"wallet {self.member_id}/{self.programme_id}: {left} points of the balance are in no loaded lot"
            raise AssertionError(message)
        return given

    def _mature(self, lot: Lot) -> None:
        cause = Cause(at=lot.available_at)
        points = lot.remaining
        lot.matured = True
        lot.is_changed = True
        if points:
            self._add_pending_at(lot.available_at, -points)
            self._add_spendable(lot, points)
            self._enter("mature", cause, lot=lot, points=points, pending=-points)
            self._pay_debt(lot, points, cause)

    def _expire(self, lot: Lot, came_at: datetime) -> None:
        """Enters the lapse at the lot's expiry, or at `came_at` if its points came after that, as those of a sale recorded late.

        Dated before they came, it would leave the days between with fewer points than none.
        """
        points = lot.remaining
        expires_at = lot.expires_at
        assert expires_at is not None  # noqa: S101 - has_expired() was asked before
        self._add_spendable(lot, -points)
        lot.remaining = 0
        lot.expired += points
        self._enter("expire", Cause(at=max(expires_at, came_at)), lot=lot, points=-points, expired=points)

    def _pay_debt(self, lot: Lot, credited: int, cause: Cause) -> None:
        payment = min(self.debt, credited)
        if payment:
            lot.remaining -= payment
            self.debt -= payment
            self._add_spendable(lot, -payment)
            self._enter("debt_payment", cause, lot=lot, points=-payment, debt=-payment)

    def _add_spendable(self, lot: Lot, points: int) -> None:
        lot.is_changed = True
        self.balance += points
        if lot.expires_at is not None:
            _add(self.expiries, unix_us(lot.expires_at), points)

    def _add_pending(self, lot: Lot, points: int) -> None:
        lot.is_changed = True
        self._add_pending_at(lot.available_at, points)

    def _add_pending_at(self, available_at: datetime, points: int) -> None:
        self.pending += points
        _add(self.maturities, unix_us(available_at), points)

    def _enter(
        self, kind: EntryKind, cause: Cause, *, lot: Lot | None = None, points: int = 0, pending: int = 0, debt: int = 0, expired: int = 0
    ) -> None:
        self.sequence += 1
        if lot is not None:
            lot.is_changed = True
        self.entries.append(
            Entry(
                uuid7(), self.sequence, cause.at, kind, points, pending, debt, expired, self.balance, self.debt,
                lot.lot_id if lot else None, cause.sale_id, cause.cause_id, cause.reason, lot.expires_at if lot else None,
            )
        )  # fmt: skip

    def _order(self) -> list[tuple[datetime, datetime, str]]:
        if self._in_spend_order is None:
            self._in_spend_order = sorted(lot.spend_order for lot in self.lots.values())
        return self._in_spend_order

    def _hold(self, lot: Lot) -> None:
        if self._in_spend_order is not None and lot.spend_order not in self._in_spend_order:
            insort(self._in_spend_order, lot.spend_order)
        self.lots[lot.lot_id] = lot

    def _drop(self, lot: Lot) -> None:
        if self._in_spend_order is not None:
            self._in_spend_order.remove(lot.spend_order)


def _add(sums: dict[int, int], key: int, points: int) -> None:
    total = sums.get(key, 0) + points
    if total:
        sums[key] = total
    else:
        sums.pop(key, None)
