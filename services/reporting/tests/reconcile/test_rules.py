from decimal import Decimal

from reporting.reconcile.rules import Difference, Sums, differences_between

DAY = ("store", "2026-11-21", "CNY")


def test_what_is_equal_or_zero_on_both_sides_does_not_differ() -> None:
    ledger = Sums(store_days={DAY: {"net_minor": 100, "items": Decimal("1.5"), "returns": 0}}, points_totals={"demo": {"balance": 0}})
    reports = Sums(store_days={DAY: {"net_minor": 100, "items": Decimal("1.500000")}})
    assert differences_between(ledger, reports) == []


def test_every_difference_is_named_by_day() -> None:
    ledger = Sums(
        store_days={DAY: {"net_minor": 100, "items": Decimal("1.5")}},
        points_days={("demo", "2026-11-20", "earn"): {"points.points": 7}},
        points_totals={"demo": {"points_total.balance": 9}},
        members_days={"2026-11-22": {"members": 2}},
    )
    reports = Sums(store_days={DAY: {"net_minor": 101, "items": Decimal(10)}, ("other", "2026-11-22", "CNY"): {"receipts": 1}})
    assert differences_between(ledger, reports) == [
        Difference("points_total.balance", "9", "0", programme_id="demo"),
        Difference("points.points", "7", "0", programme_id="demo", day="2026-11-20", kind="earn"),
        Difference("items", "1.5", "10", store_id="store", day="2026-11-21", currency="CNY"),
        Difference("net_minor", "100", "101", store_id="store", day="2026-11-21", currency="CNY"),
        Difference("members", "2", "0", day="2026-11-22"),
        Difference("receipts", "0", "1", store_id="other", day="2026-11-22", currency="CNY"),
    ]
