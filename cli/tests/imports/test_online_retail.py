"""Online Retail, the whole file, in a dry run: every figure that was counted from it independently (docs/import.md)."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from cli.tests.imports.fake_gateway import Json
from regulars_cli.main import main

FILE = Path(__file__).resolve().parents[4] / "shared" / "data" / "online_retail" / "online_retail.csv.gz"

pytestmark = pytest.mark.external_data


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, list[list[str]]]:
    if not FILE.exists():
        pytest.skip(f"Online Retail is not there: {FILE}")
    var = tmp_path_factory.mktemp("var")
    assert main(["import", "sales", str(FILE), "--mapping", "online-retail", "--var", str(var), "--dry-run"]) == 0
    (folder,) = (var / "imports").iterdir()
    with (folder / "dry-run-rejects.csv").open(newline="", encoding="utf-8") as file:
        return json.loads((folder / "dry-run-report.json").read_bytes()), list(csv.reader(file))[1:]


def test_sales_come_out_as_counted(imported: tuple[Json, list[list[str]]]) -> None:
    report, _ = imported
    assert report["lines"] == 541_909
    assert report["identified_sales"] == {"lines": 397_884, "invoices": 18_532, "customers": 4_338, "amount_minor": 891_140_790}
    assert report["guest_sales"] == {"lines": 132_219, "invoices": 1_427, "amount_minor": 174_421_458}


def test_credit_notes_come_out_as_counted_and_add_up(imported: tuple[Json, list[list[str]]]) -> None:
    report, _ = imported
    notes = report["credit_notes"]
    assert (notes["notes"], notes["lines"], notes["guest_lines"], notes["amount_minor"]) == (3_836, 9_288, 383, -89_681_249)
    assert (notes["linked_lines"], notes["partly_linked_lines"], notes["unlinked_lines"]) == (7_516, 54, 1_718)
    assert (notes["reversals"], notes["returns"]) == (3_848, 950)
    assert notes["linked_note_minor"] + notes["unlinked_minor"] == notes["amount_minor"]
    assert notes["refund_minor"] + notes["linked_note_minor"] == notes["difference_minor"] == 4_169_469
    assert sum(each["difference_minor"] for each in report["differences"]) == notes["difference_minor"]
    assert -sum(each["amount_minor"] for each in report["unlinked_returns"]) == notes["unlinked_minor"]


def test_every_other_line_is_rejected_with_its_reason_as_it_stood(imported: tuple[Json, list[list[str]]]) -> None:
    report, rejects = imported
    assert report["rejected_lines"] == {"adjustment": 3, "write_off": 1_336, "zero_priced": 1_179}
    assert Counter(reject[1] for reject in rejects) == report["rejected_lines"]
    rows = [int(reject[0]) for reject in rejects]
    assert rows == sorted(set(rows))
    assert {reject[3] for reject in rejects if reject[1] == "adjustment"} == {"A563185", "A563186", "A563187"}
    imported_lines = report["identified_sales"]["lines"] + report["guest_sales"]["lines"] + report["credit_notes"]["lines"]
    assert imported_lines + len(rejects) == report["lines"]
