"""Each lint refuses what it names, and leaves its neighbours alone."""

from pathlib import PurePath

import pytest

from scripts.lint_ast import faults_in, main

SOMEWHERE = PurePath("services/member/src/member/wallet/rules.py")
TEST = PurePath("services/member/tests/test_wallet.py")


def rules_broken(source: str, path: PurePath = SOMEWHERE) -> list[str]:
    return [fault.rule for fault in faults_in(source, path)]


@pytest.mark.parametrize(
    "source",
    [
        "amount_minor: float = 0",
        "def pay(price: float | None) -> None: ...",
        "def pay(*, points: list[float]) -> None: ...",
        "def balance_of(member: str) -> float: ...",
        "async def balance_of(member: str) -> float: ...",
        "unit_price = 1.5",
        "line.amount_minor = 10 * 0.1",
        "sale = Sale(amount_minor=1e2)",
        "due = points * 1.5",
        "due = 0.1 + line.amount_minor",
        "x = float(balance)",
        "x = float(line.price)",
        "average = amount_minor / count",
        "points /= 2",
        "points += 0.5",
        "ok = balance > 0.5",
        "x = sum(amounts) / 2",
        "x = lot['x'].points / 2",
    ],
)
def test_no_float_comes_near_money(source: str) -> None:
    assert rules_broken(source) == ["float"]


@pytest.mark.parametrize(
    "source",
    [
        "amount_minor: int = 0",
        "timeout_seconds: float = 0.5",
        "rate = float(text)",
        "share = amount_minor * weight // total",
        "price = Decimal('1.50')",
        "path = folder / 'points'",
        "minority = 0.5",
        "pay(amount_minor, timeout=0.5)",
        "share = done / total",
    ],
)
def test_floats_elsewhere_and_exact_money_are_fine(source: str) -> None:
    assert rules_broken(source) == []


def test_only_the_kit_commits() -> None:
    source = "async def f(connection):\n    await connection.commit()"
    assert rules_broken(source) == ["commit"]
    assert rules_broken(source, PurePath("kit/src/kit/db.py")) == []
    assert rules_broken("log.committed()") == []


@pytest.mark.parametrize(
    "source",
    [
        "at = datetime.now(UTC)",
        "at = datetime.datetime.utcnow()",
        "day = date.today()",
        "at = time.time()",
        "at = time.time_ns()",
        "read = datetime.now",
        "from time import time",
    ],
)
def test_only_the_clock_reads_the_time(source: str) -> None:
    assert rules_broken(source) == ["clock"]
    assert rules_broken(source, PurePath("kit/src/kit/clock.py")) == []


def test_durations_and_given_clocks_are_fine() -> None:
    assert rules_broken("a = time.monotonic()\nb = clock.now()\nc = datetime.fromisoformat(x)") == []


def test_tests_never_sleep() -> None:
    assert rules_broken("time.sleep(1)", TEST) == ["sleep"]
    assert rules_broken("await asyncio.sleep(0.1)", PurePath("conftest.py")) == ["sleep"]
    assert rules_broken("await asyncio.sleep(0)", TEST) == []
    assert rules_broken("await asyncio.sleep(1)") == []


def test_what_is_not_python_is_a_fault() -> None:
    assert rules_broken("def") == ["syntax"]


def test_a_fault_names_its_place_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    [fault] = faults_in("\nx = datetime.now(UTC)", SOMEWHERE)
    assert str(fault) == f"{SOMEWHERE}:2: clock: `datetime.now` cannot be held by a test: take a kit.clock.Clock."
    assert main([__file__]) == 0
    assert capsys.readouterr().out == ""
