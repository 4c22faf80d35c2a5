"""The whole command against a gateway in this process."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cli.tests.imports.fake_gateway import KEY, FakeGateway, Fate, Json, serving
from cli.tests.imports.history import HEADING, line, write_csv
from regulars_cli.imports import client, command, sending
from regulars_cli.main import main

LATER = "2011-03-01 10:00:00"
# Small groups, so that a small file has many.
SMALL_GROUPS = 6


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with serving(FakeGateway()) as served:
        yield served


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MAX_COMMANDS", SMALL_GROUPS)


def history() -> list[list[str]]:
    """150 invoices of 25 customers and guests, 50 credit notes, and lines that are not imported."""
    drawn = random.Random(7)
    lines = []
    for number in range(200):
        is_credit = number > 20 and number % 4 == 0
        customer = drawn.choice(["", *map(str, range(1, 26))])
        at = f"2011-02-{1 + number // 10:02} 10:{number % 60:02}:00"
        for _ in range(drawn.randint(1, 3)):
            quantity, price = drawn.randint(1, 5), drawn.choice(["0.85", "2.55", "3.335"])
            sku = drawn.choice("ABC")
            lines.append(line(f"{'C' * is_credit}{number}", sku, -quantity if is_credit else quantity, price, at=at, customer=customer))
    return [*lines, line("900", price="0"), line("901", quantity="many"), line("901", "B")]


def run(gateway: FakeGateway, file: Path, var: Path, *more: str) -> int:
    arguments = ["import", "sales", str(file), "--mapping", "online-retail", "--var", str(var), "--url", gateway.url, "--key", KEY]
    return main([*arguments, *more])


def folder_of(var: Path) -> Path:
    (folder,) = (var / "imports").iterdir()
    return folder


def report_of(var: Path) -> Json:
    report: Json = json.loads((folder_of(var) / "report.json").read_bytes())
    return report


HOW_IT_WENT = {"seconds", "lines_per_second", "commands_replayed", "commands_resumed", "members_known_before", "rejects_file"}


def figures(report: Json) -> Json:
    """The report without how it went: what must be the same however often it was interrupted."""
    return {key: value for key, value in report.items() if key not in HOW_IT_WENT}


def rejects_of(var: Path) -> list[list[str]]:
    with (folder_of(var) / "rejects.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "history.csv", history())


def test_everything_in_the_file_is_imported_or_rejected_and_counted(
    gateway: FakeGateway, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gateway, file, tmp_path) == 0
    report = report_of(tmp_path)
    lines = history()
    sold = [fields for fields in lines if fields[0].isdigit() and int(fields[0]) < 900]
    credited = [fields for fields in lines if fields[0].startswith("C")]
    assert report["lines"] == len(lines)
    assert report["identified_sales"]["lines"] + report["guest_sales"]["lines"] == len(sold)
    assert report["credit_notes"]["lines"] == len(credited)
    assert report["rejected_lines"] == {"held_back": 1, "malformed": 1, "zero_priced": 1}
    assert len(gateway.sales) == report["identified_sales"]["invoices"] + report["guest_sales"]["invoices"]
    amounts = sum(tender["amount_minor"] for sale in gateway.sales.values() for tender in sale["tenders"])
    assert amounts == report["identified_sales"]["amount_minor"] + report["guest_sales"]["amount_minor"]
    notes = report["credit_notes"]
    assert notes["amount_minor"] == notes["linked_note_minor"] + notes["unlinked_minor"]
    assert notes["difference_minor"] == notes["refund_minor"] + notes["linked_note_minor"]
    assert notes["difference_minor"] == sum(each["difference_minor"] for each in report["differences"])
    assert len(gateway.reversals) == notes["reversals"] > 0
    assert len(gateway.returns) == notes["returns"] == len(report["unlinked_returns"]) > 0
    assert len(gateway.members) == report["members"] == 25
    assert rejects_of(tmp_path) == [
        ["row", "code", "reason", *HEADING],
        [str(len(lines) - 1), "zero_priced", "It has no price; a gift, a sample or a note about stock is no sale.", *lines[-3]],
        [str(len(lines)), "malformed", "The quantity 'many' is not a decimal number of at most 12 digits and 6 decimals.", *lines[-2]],
        [
            str(len(lines) + 1),
            "held_back",
            f"An invoice is imported whole or not at all; 901 is not: row {len(lines)} of it is malformed.",
            *lines[-1],
        ],
    ]
    said = capsys.readouterr().out
    assert f"{len(lines):,} lines" in said
    assert str(folder_of(tmp_path) / "rejects.csv") in said
    assert sorted(each.name for each in folder_of(tmp_path).iterdir()) == ["rejects.csv", "report.json"]


def test_a_dry_run_counts_the_same_and_writes_nothing(gateway: FakeGateway, file: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    assert (
        main(["import", "sales", str(file), "--mapping", "online-retail", "--var", str(tmp_path), "--dry-run", "--report", str(report)])
        == 0
    )
    rehearsed = figures(json.loads(report.read_bytes()))
    assert gateway.calls == 0
    assert run(gateway, file, tmp_path) == 0
    assert rehearsed.pop("dry_run")
    assert rehearsed.pop("members") == 0
    imported = figures(report_of(tmp_path))
    assert not imported.pop("dry_run")
    assert imported.pop("members") == 25
    assert rehearsed == imported
    folder = folder_of(tmp_path)
    assert (folder / "dry-run-rejects.csv").read_bytes() == (folder / "rejects.csv").read_bytes()


def test_the_same_file_again_doubles_nothing(gateway: FakeGateway, file: Path, tmp_path: Path) -> None:
    assert run(gateway, file, tmp_path) == 0
    before, first = gateway.state(), report_of(tmp_path)
    decided = dict(gateway.decided)
    assert run(gateway, file, tmp_path) == 0
    second = report_of(tmp_path)
    assert gateway.decided == decided
    assert gateway.state() == before
    assert second["commands_replayed"] == second["commands"] == first["commands"]
    assert second["members_known_before"] == 25
    assert figures(second) == figures(first)


def test_a_longer_file_of_the_same_history_adds_only_what_is_new(gateway: FakeGateway, file: Path, tmp_path: Path) -> None:
    assert run(gateway, file, tmp_path / "first") == 0
    sales = len(gateway.sales)
    longer = write_csv(tmp_path / "longer.csv", [*history(), line("950", at=LATER, customer="1"), line("951", at=LATER, customer="99")])
    assert run(gateway, longer, tmp_path / "second") == 0
    report = report_of(tmp_path / "second")
    assert len(gateway.sales) == sales + 2
    assert (report["commands_refused"], report["commands"] - report["commands_replayed"]) == (0, 2)
    assert (report["members"], report["members_known_before"]) == (26, 25)


def test_lost_connections_and_a_gateway_that_is_away_lose_and_double_nothing(
    gateway: FakeGateway, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gateway, file, tmp_path / "calm") == 0
    calm, state = figures(report_of(tmp_path / "calm")), gateway.state()
    pauses: list[float] = []
    monkeypatch.setattr(command, "Patience", partial(client.Patience, pause=pauses.append))
    fates: list[Fate] = ["answer", "drop_before", "drop_after", "away", "answer", "drop_after"]
    with serving(FakeGateway(fate=lambda call: fates[call % len(fates)])) as troubled:
        assert run(troubled, file, tmp_path / "troubled") == 0
        assert troubled.state() == state
    report = report_of(tmp_path / "troubled")
    assert figures(report) == calm
    assert report["commands_replayed"] > 0
    assert pauses
    assert "; trying again." in capsys.readouterr().err


def test_refused_commands_are_mapped_back_to_their_rows(gateway: FakeGateway, tmp_path: Path) -> None:
    lines = [line("500"), line("501"), line("501", "B"), line("C9", quantity=-1, at=LATER)]
    gateway.refuse = lambda act: ("store_closed", "This store is closed.") if act.get("receipt_no") == "501" else None
    assert run(gateway, write_csv(tmp_path / "f.csv", lines), tmp_path) == 0
    assert [row[:3] for row in rejects_of(tmp_path)[1:]] == [
        ["3", "store_closed", "online-retail:501: This store is closed."],
        ["4", "store_closed", "online-retail:501: This store is closed."],
        ["5", "sale_not_found", "online-retail:C9:1: There is no such sale."],
    ]
    report = report_of(tmp_path)
    assert (report["commands_refused"], report["identified_sales"]["invoices"]) == (2, 1)
    assert [(each["operation_id"], each["amount_minor"]) for each in report["refused"]] == [
        ("online-retail:501", 200),
        ("online-retail:C9:1", -100),
    ]


def test_a_refused_sign_up_rejects_the_customers_lines(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.refuse = lambda act: ("card_invalid", "Not a card.") if act.get("card") == "8" else None
    lines = [line("500"), line("501", customer="8"), line("502", customer="")]
    assert run(gateway, write_csv(tmp_path / "f.csv", lines), tmp_path) == 0
    assert [row[:2] for row in rejects_of(tmp_path)[1:]] == [["3", "member_refused"]]
    assert (report_of(tmp_path)["members"], report_of(tmp_path)["members_refused"]) == (1, 1)


def test_a_card_that_a_shop_gave_out_is_the_same_member(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.members["7"] = "signed-up-in-a-shop"
    assert run(gateway, write_csv(tmp_path / "f.csv", [line("500")]), tmp_path) == 0
    assert gateway.sales["online-retail:500"]["member_id"] == "signed-up-in-a-shop"
    assert report_of(tmp_path)["members_known_before"] == 1


CHILD = f"""
import sys
from regulars_cli.imports import client, command, sending
from regulars_cli.main import main
sending.MAX_COMMANDS = {SMALL_GROUPS}
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("checkpoint", ["kept", "lost"])
def test_an_import_killed_at_any_call_goes_on_without_loss_or_doubling(file: Path, tmp_path: Path, checkpoint: str) -> None:
    with serving(FakeGateway()) as calm:
        assert run(calm, file, tmp_path / "calm") == 0
        expected, state, decided, calls = figures(report_of(tmp_path / "calm")), calm.state(), dict(calm.decided), calm.calls
    drawn = random.Random(11)
    var = tmp_path / "killed"
    with serving(FakeGateway()) as gateway:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        arguments = ["import", "sales", str(file), "--mapping", "online-retail", "--var", str(var), "--url", gateway.url, "--key", KEY]
        fates: list[Fate] = ["drop_before", "drop_after", "answer", "drop_after", "drop_before"]
        for fate in fates:
            child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], env=environment, stderr=subprocess.DEVNULL)
            gateway.calls = 0
            gateway.fate = _killer(child, drawn.randint(1, calls // 6), fate)
            assert child.wait() == -signal.SIGKILL
            if checkpoint == "lost":
                for path in var.glob("imports/*/checkpoint.jsonl"):
                    path.unlink()
        gateway.fate = lambda _call: "answer"
        assert run(gateway, file, var) == 0
        assert gateway.state() == state
        assert {key: outcome for key, (_, outcome) in gateway.decided.items()} == {key: outcome for key, (_, outcome) in decided.items()}
    report = report_of(var)
    assert figures(report) == expected
    assert (report["commands_resumed"] > 0) == (checkpoint == "kept")
    assert rejects_of(var) == rejects_of(tmp_path / "calm")


def _killer(child: "subprocess.Popen[bytes]", at: int, fate: Fate) -> Callable[[int], Fate]:
    def decide(call: int) -> Fate:
        if call < at:
            return "answer"
        child.kill()
        return fate if call == at else "drop_before"

    return decide


@pytest.mark.parametrize("change", [{"zone": "Europe/Paris"}, {"currency": "EUR"}, {"programme_id": "demo"}])
def test_a_store_that_is_not_the_mappings_is_one_sentence(
    gateway: FakeGateway, tmp_path: Path, change: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    store = {"id": "s", "code": "ONLINE-UK", "zone": "Europe/London", "currency": "GBP", "programme_id": "online-retail"}
    gateway.stores.append(store | change)
    assert run(gateway, write_csv(tmp_path / "f.csv", [line("500")]), tmp_path) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"The store ONLINE-UK has the {next(iter(change)).removesuffix('_id')} {next(iter(change.values()))}, but")
    assert not gateway.decided


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["missing.csv", "--mapping", "online-retail"], "missing.csv cannot be read: No such file or directory."),
        (["f.csv", "--mapping", "nowhere"], "There is no mapping nowhere: give one of online-retail"),
        (
            ["f.csv", "--mapping", "online-retail", "--var", "var"],
            "up.json cannot be read: start the system with `make up`, or give --url and --key.",
        ),
        (["f.csv", "--mapping", "online-retail", "--url", "nonsense", "--key", "k"], "nonsense is not an address of a gateway."),
    ],
)
def test_what_stops_an_import_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "f.csv", [line("500")])
    assert main(["import", "sales", *arguments]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_key_is_one_sentence(gateway: FakeGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_csv(tmp_path / "f.csv", [line("500")])
    arguments = ["--mapping", "online-retail", "--var", str(tmp_path), "--url", gateway.url, "--key", "wrong"]
    assert main(["import", "sales", str(file), *arguments]) == 1
    assert "Give a valid key. (401 unauthorized)" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(
    gateway: FakeGateway, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gateway, file, tmp_path) == 0
    expected, state = figures(report_of(tmp_path)), gateway.state()
    full = folder_of(tmp_path) / "rejects.csv.judged"
    full.symlink_to("/dev/full")
    assert run(gateway, file, tmp_path) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written" in said
    assert "make room and start the same command again." in said
    full.unlink(missing_ok=True)
    assert run(gateway, file, tmp_path) == 0
    assert figures(report_of(tmp_path)) == expected
    assert gateway.state() == state


def test_a_second_import_of_the_same_file_at_once_is_told_so(
    gateway: FakeGateway, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    once = threading.Lock()

    def start_another(_call: int) -> Fate:
        if once.acquire(blocking=False):
            gateway.fate = lambda _call: "answer"
            thread = threading.Thread(target=lambda: codes.append(run(gateway, file, tmp_path)))
            thread.start()
            threads.append(thread)
        return "answer"

    threads: list[threading.Thread] = []
    gateway.fate = start_another
    assert run(gateway, file, tmp_path) == 0
    for thread in threads:
        thread.join()
    assert codes in ([0], [1])
    assert (codes == [1]) == ("Another process is importing this file" in capsys.readouterr().err)
