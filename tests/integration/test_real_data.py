"""A year of a real shop, imported into a running system: every figure as counted from the file, in the report, the API and the reports."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import httpx
import msgspec
import pytest

from tests.integration.api import Api, Json
from tests.integration.retail_figures import monthly_figures
from tests.integration.system import System, running_system, wait_until

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "online_retail" / "online_retail.csv.gz"
LINES = 541_909
# Of some 130; by then sales, reversals and returns have been sent.
GROUPS_BEFORE_THE_KILL = 40

pytestmark = pytest.mark.external_data


class Line(msgspec.Struct):
    line_no: int


class Amounts(msgspec.Struct):
    earned: int


class Reversal(msgspec.Struct):
    operation_id: str
    refund_minor: int


class Return(Reversal):
    pass


class Sale(msgspec.Struct):
    operation_id: str
    member_id: str | None
    net_minor: int
    payable_minor: int
    points: Amounts | None
    lines: list[Line]
    reversals: list[Reversal]


Item = TypeVar("Item", Sale, Return)


class Page(msgspec.Struct, Generic[Item]):
    items: list[Item]
    next_cursor: str | None


def items(system: System, path: str, kind: type[Item]) -> Iterator[Item]:
    """A list of the shop's. Decoded into no more than is counted: half a million lines are many."""
    headers = {"Authorization": f"Bearer {system.key('admin')}"}
    with httpx.Client(base_url=system.url, headers=headers, timeout=60, trust_env=False) as http:
        store_id = next(store["id"] for store in http.get("/v1/stores").json()["items"] if store["code"] == "ONLINE-UK")
        asked: dict[str, str | int] = {"store_id": store_id, "limit": 200}
        while True:
            page: Page[Item] = msgspec.json.decode(http.get(path, params=asked).raise_for_status().content, type=Page[kind])  # type: ignore[valid-type]
            yield from page.items
            if page.next_cursor is None:
                return
            asked["cursor"] = page.next_cursor


def told_by_the_api(system: System) -> Counter[str]:
    """The figures that the lists of sales and returns add up to, each operation counted once."""
    found: Counter[str] = Counter()
    members: set[str] = set()
    operations: Counter[str] = Counter()
    for sale in items(system, "/v1/sales", Sale):
        whose = "identified" if sale.member_id else "guest"
        found[f"{whose} sales"] += 1
        found[f"{whose} lines"] += len(sale.lines)
        found[f"{whose} minor"] += sale.net_minor
        found["reversals"] += len(sale.reversals)
        found["reversed minor"] += sum(each.refund_minor for each in sale.reversals)
        operations.update([sale.operation_id, *(each.operation_id for each in sale.reversals)])
        if sale.member_id and sale.points:
            members.add(sale.member_id)
            assert sale.points.earned == sale.payable_minor // 100
    for each in items(system, "/v1/returns", Return):
        found["returns"] += 1
        found["returned minor"] += each.refund_minor
        operations[each.operation_id] += 1
    assert set(operations.values()) == {1}
    return found + Counter(customers=len(members))


def run_import(system: System, report: Path, *more: str) -> "subprocess.Popen[str]":
    """The command as a shop runs it."""
    command = [sys.executable, "-m", "regulars_cli.main", "import", "sales", str(FILE), "--mapping", "online-retail", *more]
    command += ["--var", str(system.var), "--report", str(report)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def acknowledged_groups(system: System) -> int:
    """How many groups the import's checkpoint holds."""
    checkpoints = list(system.var.glob("imports/*/checkpoint.jsonl"))
    return checkpoints[0].read_bytes().count(b"\n") - 1 if checkpoints else 0


@pytest.mark.timeout(600)
def test_a_year_of_sales_comes_in_whole_though_the_import_is_killed_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not FILE.exists():
        pytest.skip(f"the data set is not there: {FILE}")
    report = tmp_path / "report.json"
    with running_system() as system:
        with run_import(system, report) as first:
            wait_until(lambda: first.poll() is not None or acknowledged_groups(system) >= GROUPS_BEFORE_THE_KILL, "a third is in", 300)
            os.kill(first.pid, signal.SIGKILL)
            assert first.wait() == -signal.SIGKILL, first.stdout and first.stdout.read()
        # Its services may die with it; it goes on from its notes, and what was decided but not noted is answered again.
        system.kill("member")
        with run_import(system, report) as second:
            said, _ = second.communicate()
        assert second.returncode == 0, said
        told: Json = json.loads(report.read_bytes())
        api = told_by_the_api(system)
        admin = system.api(system.key("admin"))
        assert admin.differences() == []
        check_reports(admin)
    with capsys.disabled():
        sys.stdout.write(
            f"\nimport: {told['lines_per_second']} lines/s after the kill, {told['commands_resumed']} commands from its notes\n"
        )

    check_report(told)
    expected = {
        "identified sales": 18_532, "identified lines": 397_884, "identified minor": 891_140_790, "customers": 4_338,
        "guest lines": 132_219, "guest minor": 174_421_458, "guest sales": told["guest_sales"]["invoices"],
        "reversals": told["credit_notes"]["reversals"], "reversed minor": told["credit_notes"]["refund_minor"],
        "returns": told["credit_notes"]["returns"], "returned minor": -told["credit_notes"]["unlinked_minor"],
    }  # fmt: skip
    assert dict(api) == expected


def check_reports(admin: Api) -> None:
    """REP-01: every month's figures are those that a reckoning from the file alone comes to; and every day's are the ledger's."""

    def is_in() -> bool:
        found = admin.post("/v1/reports:reconcile", {}, 200)
        return bool(found["compared"]["store_days"]) and found["differences_total"] == 0

    wait_until(is_in, "the reports agree with the ledger", 120)
    metrics = ["gross_sales_minor", "returns_minor", "net_sales_minor", "receipts", "buyers", "items"]
    query = {
        "metrics": metrics,
        "dimensions": ["month"],
        "from": "2010-12-01",
        "to": "2011-12-10",
        "filters": [{"field": "currency", "op": "eq", "values": ["GBP"]}],
        "sort": [{"field": "month", "order": "asc"}],
    }
    rows = admin.post("/v1/reports/query", query, 200)["rows"]
    assert {month: figures for month, *figures in rows} == {
        month: [own.gross_minor, own.returned_minor, own.net_minor, own.receipts, own.buyers, str(own.items)]
        for month, own in monthly_figures(FILE).items()
    }


def check_report(told: Json) -> None:
    """Every line of the file has become something, and every sum is the file's."""
    assert told["lines"] == LINES
    assert told["identified_sales"] == {"invoices": 18_532, "lines": 397_884, "amount_minor": 891_140_790, "customers": 4_338}
    assert (told["guest_sales"]["lines"], told["guest_sales"]["amount_minor"]) == (132_219, 174_421_458)
    assert told["rejected_lines"] == {"adjustment": 3, "write_off": 1_336, "zero_priced": 1_179}
    notes = told["credit_notes"]
    assert (notes["lines"], notes["amount_minor"]) == (9_288, -89_681_249)
    assert notes["linked_lines"] + notes["partly_linked_lines"] + notes["unlinked_lines"] == notes["lines"]
    assert notes["linked_note_minor"] + notes["unlinked_minor"] == notes["amount_minor"]
    assert notes["linked_note_minor"] + notes["refund_minor"] == notes["difference_minor"]
    assert sum(each["difference_minor"] for each in told["differences"]) == notes["difference_minor"]
    assert len(told["unlinked_returns"]) == notes["returns"]
    # Those who only ever brought something back are members too.
    assert (told["members"], told["members_refused"], told["commands_refused"]) == (4_371, 0, 0)
    assert told["commands_resumed"] > 0
    assert (
        told["commands"]
        == sum(told[kind]["invoices"] for kind in ("identified_sales", "guest_sales")) + notes["reversals"] + notes["returns"]
    )
