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
