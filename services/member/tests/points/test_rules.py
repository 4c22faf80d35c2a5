"""The points ledger against a second, simple reckoning of it (`model.Ledger`), over random histories."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from member.points.rules import Cause, InsufficientPoints, Lot, Shortfall, Wallet, instant, unix_us
from services.member.tests import model

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)

points = st.integers(1, 1000)


def hours(*choices: int) -> st.SearchStrategy[timedelta]:
    return st.sampled_from(choices).map(lambda number: timedelta(hours=number))


class Ledgers(RuleBasedStateMachine):
    """Earns, spends, returns, takes back and lets time pass, forwards and backwards, on a wallet and on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.wallet = Wallet("member", "programme")
        self.ledger = model.Ledger()
        self.lots: list[tuple[Lot, model.Lot]] = []
        # What each spend took from which lot and has not given back; what of each earning was not taken back yet.
        self.spends: list[tuple[list[tuple[str, int]], list[tuple[model.Lot, int]]]] = []
        self.earned: list[int] = []

    @property
    def cause(self) -> Cause:
        return Cause(self.now, "cause")

    @initialize(shortfall=st.sampled_from(get_args(Shortfall)), grace=hours(0, 30, 90))
    def choose_policy(self, shortfall: Shortfall, grace: timedelta) -> None:
        self.shortfall: Shortfall = shortfall
        self.grace = grace

    @rule(by=hours(1, 25, 50, 100, -30))
    def time_passes_or_goes_back(self, by: timedelta) -> None:
        self.now += by
        self.settle()

    def settle(self) -> None:
        self.wallet.settle(self.now)
        self.ledger.settle(self.now)

    @rule(number=points, opens=hours(0, 0, 0, -5, 20, 70), lives=hours(40, 80, 160, 10, -1) | st.none(), by_hand=st.booleans())
    def earn(self, number: int, opens: timedelta, lives: timedelta | None, *, by_hand: bool) -> None:
        self.settle()
        opens_at, ends_at = self.now + opens, None if lives is None else self.now + lives
        kind = "adjustment" if by_hand else "sale"
        lot = self.wallet.earn(number, available_at=opens_at, expires_at=ends_at, source_kind=kind, cause=self.cause)
        self.lots.append((lot, self.ledger.earn(number, opens_at, ends_at, self.now)))
        self.earned.append(number)

    @rule(tenths=st.sampled_from([10, 9, 5, 1, 0]))
    def spend(self, tenths: int) -> None:
        self.settle()
        number = self.ledger.balance * tenths // 10
        by_model = self.ledger.debit(number)
        given = self.wallet.debit(number, "spend", self.cause)
        assert [(self.of_model(lot_id), part) for lot_id, part in given] == by_model
        self.spends.append((given, by_model))

    def of_model(self, lot_id: str) -> model.Lot:
        return next(twin for lot, twin in self.lots if lot.lot_id == lot_id)

    @rule()
    def more_than_the_balance_cannot_be_spent_and_changes_nothing(self) -> None:
        before = len(self.wallet.entries)
        with pytest.raises(InsufficientPoints):
            self.wallet.debit(self.wallet.balance + 1, "spend", self.cause)
        assert len(self.wallet.entries) == before

    @rule(which=st.integers(0, 50), tenths=st.sampled_from([10, 5, 1]))
    def return_what_was_spent(self, which: int, tenths: int) -> None:
        self.settle()
        if not self.spends:
            return
        given, by_model = self.spends[which % len(self.spends)]
        number = sum(part for _, part in given) * tenths // 10
        returned = self.wallet.give_back(number, given, self.grace, self.cause)
        twins = self.ledger.give_back(number, by_model, self.grace, self.now)
        assert [(self.of_model(lot_id), part) for lot_id, part in returned] == twins
        self.spends[which % len(self.spends)] = (
            [(lot_id, part - dict(returned).get(lot_id, 0)) for lot_id, part in given],
            [(lot, part - dict(twins).get(lot, 0)) for lot, part in by_model],
        )

    @rule(which=st.integers(0, 50), tenths=st.sampled_from([10, 5, 1]), knows_its_lot=st.booleans())
    def take_back_what_was_earned(self, which: int, tenths: int, *, knows_its_lot: bool) -> None:
        self.settle()
        if not self.earned:
            return
        index = which % len(self.earned)
        number = -(-self.earned[index] * tenths // 10)
        self.earned[index] -= number
        lot, twin = self.lots[index] if knows_its_lot else (None, None)
        self.wallet.take_back(number, lot, self.shortfall, self.cause)
        self.ledger.take_back(number, twin, self.shortfall)

    @invariant()
    def figures_are_those_of_the_model(self) -> None:
        wallet, ledger = self.wallet, self.ledger
        assert (wallet.balance, wallet.pending, wallet.debt) == (ledger.balance, ledger.pending, ledger.debt)
        for lot, twin in self.lots:
            assert (lot.remaining, lot.expired, lot.expires_at) == (twin.left, twin.lapsed, twin.ends)
            assert lot.matured == twin.is_open or not twin.left, "whether an empty lot has matured is nothing to anyone"

    @invariant()
    def no_lot_goes_below_zero_or_above_what_it_was(self) -> None:
        for lot in self.wallet.lots.values():
            assert lot.remaining >= 0
            assert lot.expired >= 0
            assert lot.remaining + lot.expired <= lot.quantity

    @invariant()
    def a_debt_leaves_nothing_to_spend(self) -> None:
        assert self.wallet.debt >= 0
        assert self.wallet.debt == 0 or self.wallet.balance == 0

    @invariant()
    def sums_by_expiry_and_maturity_are_those_of_the_lots(self) -> None:
        assert {instant(us): number for us, number in self.wallet.expiries.items()} == self.ledger.expiries
        assert {instant(us): number for us, number in self.wallet.maturities.items()} == self.ledger.maturities

    @invariant()
    def entries_have_no_gaps_and_carry_running_figures(self) -> None:
        entries = self.wallet.entries
        assert [entry.sequence for entry in entries] == list(range(1, self.wallet.sequence + 1))
        assert [entry.balance for entry in entries] == list(accumulate(entry.points for entry in entries))
        assert [entry.debt_after for entry in entries] == list(accumulate(entry.debt for entry in entries))
        assert sum(entry.pending for entry in entries) == self.wallet.pending

    @invariant()
    def entries_of_a_lot_sum_to_its_figures(self) -> None:
        remaining: dict[str | None, int] = defaultdict(int)
        expired: dict[str | None, int] = defaultdict(int)
        for entry in self.wallet.entries:
            remaining[entry.lot_id] += entry.points + entry.pending
            expired[entry.lot_id] += entry.expired
        for lot, _ in self.lots:
            assert (remaining[lot.lot_id], expired[lot.lot_id]) == (lot.remaining, lot.expired)

    @invariant()
    def no_lapse_is_dated_before_its_points_came(self) -> None:
        came: dict[str | None, datetime] = {}
        for entry in self.wallet.entries:
            if entry.kind == "expire":
                assert entry.at >= came[entry.lot_id]
            elif entry.points > 0:
                came[entry.lot_id] = entry.at


TestLedgers = Ledgers.TestCase
TestLedgers.settings = settings(max_examples=150, stateful_step_count=50)


def wallet_with(*lots: tuple[int, timedelta, timedelta | None], now: datetime = NOW) -> tuple[Wallet, list[Lot]]:
    """A wallet that earned lots of so many points, available and expiring so long from now."""
    wallet = Wallet("member", "programme")
    earned = [
        wallet.earn(number, available_at=now + opens, expires_at=None if ends is None else now + ends, source_kind="sale", cause=Cause(now))
        for number, opens, ends in lots
    ]
    return wallet, earned


AT_ONCE, DAY = timedelta(0), timedelta(days=1)


def test_points_are_spent_earliest_expiry_first_then_earliest_available_then_oldest() -> None:
    lots = [(1, AT_ONCE, None), (1, AT_ONCE, 2 * DAY), (1, AT_ONCE, DAY), (1, -DAY, 2 * DAY), (1, AT_ONCE, DAY)]
    wallet, earned = wallet_with(*lots)
    order = [lot_id for lot_id, _ in wallet.debit(5, "spend", Cause(NOW))]
    assert order == [earned[i].lot_id for i in (2, 4, 3, 1, 0)]


def test_what_is_taken_back_comes_from_the_sales_own_lot_first_though_others_expire_sooner() -> None:
    wallet, (sooner, own) = wallet_with((10, AT_ONCE, DAY), (10, AT_ONCE, 9 * DAY))
    wallet.take_back(12, own, "debt", Cause(NOW))
    assert (own.remaining, sooner.remaining, wallet.debt) == (0, 8, 0)


def test_pending_points_of_the_sale_are_taken_back_and_those_of_other_sales_are_not() -> None:
    wallet, (own, other) = wallet_with((10, DAY, None), (10, DAY, None))
    wallet.take_back(15, own, "debt", Cause(NOW))
    assert (own.remaining, other.remaining, wallet.pending, wallet.debt) == (0, 10, 10, 5)
    wallet.settle(NOW + DAY)
    assert (wallet.balance, wallet.debt, other.remaining) == (5, 0, 5), "what matures pays the debt first"


def test_lapsed_points_of_the_sale_count_as_taken_back() -> None:
    wallet, (own, other) = wallet_with((10, AT_ONCE, DAY), (10, AT_ONCE, None))
    wallet.debit(4, "spend", Cause(NOW))
    wallet.settle(NOW + DAY)
    wallet.take_back(10, own, "debt", Cause(NOW + DAY))
    assert (own.expired, other.remaining, wallet.debt) == (0, 6, 0), "six had lapsed, four were spent"


@pytest.mark.parametrize("shortfall, debt", [("debt", 7), ("negative", 7), ("forgive", 0)])
def test_what_cannot_be_taken_back_is_owed_or_forgiven(shortfall: Shortfall, debt: int) -> None:
    wallet, (own,) = wallet_with((10, AT_ONCE, None))
    wallet.debit(7, "spend", Cause(NOW))
    wallet.take_back(10, own, shortfall, Cause(NOW))
    assert (wallet.balance, wallet.debt) == (0, debt)


def test_spent_points_return_to_the_lot_that_gave_last_first_with_its_own_expiry() -> None:
    wallet, (sooner, later) = wallet_with((10, AT_ONCE, DAY), (10, AT_ONCE, 9 * DAY))
    given = wallet.debit(15, "spend", Cause(NOW))
    assert wallet.give_back(7, given, 30 * DAY, Cause(NOW)) == [(later.lot_id, 5), (sooner.lot_id, 2)]
    assert (sooner.expires_at, later.expires_at) == (NOW + DAY, NOW + 9 * DAY)


def test_points_returned_to_an_expired_lot_live_again_for_the_grace_alone() -> None:
    wallet, (lot,) = wallet_with((10, AT_ONCE, DAY))
    given = wallet.debit(6, "spend", Cause(NOW))
    later = NOW + 5 * DAY
    wallet.settle(later)
    wallet.give_back(6, given, 30 * DAY, Cause(later))
    assert (wallet.balance, lot.expired, wallet.next_expiry) == (6, 4, (later + 30 * DAY, 6))
    wallet.settle(later + 30 * DAY)
    assert (wallet.balance, lot.expired) == (0, 10)


def test_every_credit_pays_debt_first_returned_points_too() -> None:
    wallet, (lot,) = wallet_with((10, AT_ONCE, None))
    given = wallet.debit(10, "spend", Cause(NOW))
    wallet.take_back(10, lot, "debt", Cause(NOW))
    wallet.give_back(4, given, DAY, Cause(NOW))
    assert (wallet.balance, wallet.debt) == (0, 6)
    wallet.earn(5, available_at=NOW, expires_at=None, source_kind="sale", cause=Cause(NOW))
    assert (wallet.balance, wallet.debt) == (0, 1)
    wallet.earn(5, available_at=NOW, expires_at=None, source_kind="adjustment", cause=Cause(NOW))
    assert (wallet.balance, wallet.debt) == (4, 0)


def test_a_lot_that_lives_again_is_spent_by_its_new_expiry() -> None:
    wallet, (lot, other) = wallet_with((10, AT_ONCE, DAY), (10, AT_ONCE, 9 * DAY))
    given = wallet.debit(10, "spend", Cause(NOW))
    later = NOW + 5 * DAY
    wallet.give_back(10, given, 30 * DAY, Cause(later))
    assert wallet.debit(15, "spend", Cause(later)) == [(other.lot_id, 10), (lot.lot_id, 5)]


def test_the_instant_of_expiry_is_the_first_without_the_points() -> None:
    wallet, _ = wallet_with((10, AT_ONCE, DAY))
    wallet.settle(NOW + DAY - timedelta(microseconds=1))
    assert wallet.balance == 10
    wallet.settle(NOW + DAY)
    assert wallet.balance == 0


def lapses(wallet: Wallet) -> list[tuple[datetime, int, datetime | None]]:
    """When how many points lapsed, and the expiry that their lot had then."""
    return [(entry.at, -entry.points, entry.expires_at) for entry in wallet.entries if entry.kind == "expire"]


def test_points_lapse_at_their_expiry_whenever_it_is_entered() -> None:
    wallet, _ = wallet_with((10, AT_ONCE, DAY))
    wallet.settle(NOW + 5 * DAY)
    assert lapses(wallet) == [(NOW + DAY, 10, NOW + DAY)]


def test_points_of_a_sale_recorded_after_their_expiry_lapse_when_they_are_earned() -> None:
    wallet, (lot,) = wallet_with((10, -700 * DAY, -300 * DAY))
    assert lapses(wallet) == [(NOW, 10, NOW - 300 * DAY)]
    assert [(entry.sequence, entry.kind, entry.balance) for entry in wallet.entries] == [(1, "earn", 10), (2, "expire", 0)]
    assert (lot.expired, lot.expires_at, wallet.expiries) == (10, NOW - 300 * DAY, {})


def test_pending_points_released_after_their_expiry_lapse_when_they_are_released() -> None:
    wallet, _ = wallet_with((10, 3 * DAY, -DAY))
    wallet.settle(NOW + 9 * DAY)
    assert lapses(wallet) == [(NOW + 3 * DAY, 10, NOW - DAY)]


@pytest.mark.parametrize("grace", [30 * DAY, AT_ONCE])
def test_points_returned_after_their_lots_expiry_lapse_when_their_grace_is_over(grace: timedelta) -> None:
    wallet, _ = wallet_with((10, AT_ONCE, DAY))
    given = wallet.debit(6, "spend", Cause(NOW))
    later = NOW + 5 * DAY
    wallet.settle(later)
    wallet.give_back(6, given, grace, Cause(later))
    wallet.settle(later + 99 * DAY)
    assert lapses(wallet) == [(NOW + DAY, 4, NOW + DAY), (later + grace, 6, later + grace)]


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001  # the strategy adds UTC
def test_an_instant_is_kept_to_the_microsecond(at: datetime) -> None:
    assert instant(unix_us(at)) == at
