import pytest

from cli.tests.imports.fake_gateway import KEY, FakeGateway, Json, serving
from regulars_cli.main import main

DIFFERENCE: Json = {
    "member_id": "m",
    "programme_id": "p",
    "figure": "balance",
    "subject_id": None,
    "cached": "40",
    "proven": "45",
    "rebuilt": False,
}


def reconcile(pages: list[Json], *more: str) -> int:
    with serving(FakeGateway(wallet_pages=pages)) as gateway:
        return main(["reconcile", "--url", gateway.url, "--key", KEY, *more])


def test_proven_wallets_are_counted_over_all_pages(capsys: pytest.CaptureFixture[str]) -> None:
    pages = [{"wallets": 1000, "differences": [], "next_cursor": "1"}, {"wallets": 7, "differences": [], "next_cursor": None}]
    assert reconcile(pages) == 0
    assert capsys.readouterr().out == "1,007 wallets proven from their entries, 0 differences.\n"


def test_every_difference_is_named_and_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    lot = DIFFERENCE | {"figure": "lot.remaining", "subject_id": "lot-1", "rebuilt": True}
    assert reconcile([{"wallets": 1, "differences": [DIFFERENCE, lot], "next_cursor": None}], "--rebuild") == 1
    assert capsys.readouterr().out.splitlines() == [
        "Wallet m/p: balance is 40; proven is 45.",
        "Wallet m/p: lot.remaining of lot-1 is 40; proven is 45; rebuilt.",
        "1 wallets proven from their entries, 2 differences, 1 rebuilt; 1 need a person: nothing proves which figure is right.",
    ]


RECONCILED: Json = {
    "as_of": "2026-11-21T10:03:12Z",
    "compared": {"store_days": 1200, "points_days": 30, "members_days": 4},
    "behind": {"unpublished": 0, "unread": 0},
    "differences_total": 0,
    "differences": [],
}


def reconcile_reports(answer: Json, *more: str) -> tuple[int, list[Json]]:
    gateway = FakeGateway(others={"POST /v1/reports:reconcile": [(200, answer)]})
    with serving(gateway):
        code = main(["reconcile", "--reports", "--url", gateway.url, "--key", KEY, *more])
    return code, [body for _, body in gateway.sent]


def test_reports_that_agree_with_the_ledger_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert reconcile_reports(RECONCILED, "--from", "2026-11-01", "--to", "2026-12-01") == (0, [{"from": "2026-11-01", "to": "2026-12-01"}])
    assert capsys.readouterr().out == (
        "1,200 days of stores, 30 sums of points and 4 days of joining compared as of 2026-11-21T10:03:12Z, 0 differences.\n"
    )


def test_every_difference_of_the_reports_is_named_with_how_late_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    sales = {"figure": "net_minor", "ledger": "100", "reports": "90", "store_id": "s", "day": "2026-11-21", "currency": "CNY"}
    points = {"figure": "points.points", "ledger": "5", "reports": "0", "programme_id": "demo", "day": "2026-11-21", "kind": "earn"}
    found = RECONCILED | {"differences_total": 1002, "differences": [sales, points], "behind": {"unpublished": 3, "unread": 1200}}
    assert reconcile_reports(found) == (1, [{}])
    assert capsys.readouterr().out.splitlines() == [
        "store s, 2026-11-21, CNY: net_minor is 100 in the ledger and 90 in the reports.",
        "programme demo, earn, 2026-11-21: points.points is 5 in the ledger and 0 in the reports.",
        "… and 1,000 more.",
        "1,200 days of stores, 30 sums of points and 4 days of joining compared as of 2026-11-21T10:03:12Z, 1,002 differences.",
        "The reports were behind: 3 events waited to be published and 1,200 to be taken in; compare again when `regulars bus lag` says 0.",
    ]


@pytest.mark.parametrize(
    "behind, hint",
    [
        ({"unpublished": 0, "unread": 0}, "Nothing is on its way: `regulars reporting rebuild --from-ledger` makes the reports anew"),
        ({"unpublished": 0, "unread": None}, "The bus did not answer, so the reports may only be late"),
    ],
)
def test_after_differences_it_says_what_to_do(behind: Json, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reconcile_reports(RECONCILED | {"differences_total": 1, "behind": behind})[0] == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(hint)
    assert ("After a restore of PostgreSQL these lines are what was lost" in said) is (behind["unread"] == 0)


@pytest.mark.parametrize("to_day", ["2026-12-01", "2026-11-01"])
def test_a_period_without_a_day_proves_nothing_and_is_not_asked_for(to_day: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reconcile_reports(RECONCILED, "--from", "2026-12-01", "--to", to_day) == (2, [])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "--to must be after --from: it is the day after the last.\n")


def test_a_refused_period_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    fault = {"pointer": "/from", "code": "out_of_range", "detail": "Must be between 1970-01-01 and 2200-01-01."}
    problem = {"code": "day_invalid", "detail": "Correct what `errors` names.", "errors": [fault]}
    gateway = FakeGateway(others={"POST /v1/reports:reconcile": [(400, problem)]})
    with serving(gateway):
        assert main(["reconcile", "--reports", "--url", gateway.url, "--key", KEY, "--from", "0001-01-01"]) == 1
    assert capsys.readouterr().err.endswith("/from: Must be between 1970-01-01 and 2200-01-01. (400 day_invalid)\n")


def test_days_are_of_reports_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconcile", "--from", "2026-11-01"]) == 2
    assert capsys.readouterr().err == "--from and --to go with --reports: wallets are proven whole.\n"
