"""Real sales through the real command into the running system: a part of Online Retail, killed on the way."""

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from decimal import ROUND_HALF_UP, Decimal
from itertools import islice
from pathlib import Path

import pytest

from tests.integration.api import Api, Json
from tests.integration.system import System, wait_until

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "online_retail" / "online_retail.csv.gz"

pytestmark = pytest.mark.external_data
# December 2010.
LINES = 42_481


@pytest.fixture
def month(tmp_path: Path) -> Path:
    """The first month of the file."""
    if not FILE.exists():
        pytest.skip(f"Online Retail is not there: {FILE}")
    path = tmp_path / "december.csv"
    with gzip.open(FILE, "rt", encoding="utf-8", newline="") as whole:
        path.write_text("".join(islice(whole, LINES + 1)), encoding="utf-8")
    return path


def counted(path: Path) -> Counter[str]:
    """Figures of the file by the plainest reading of it, sharing nothing with the import."""
    found: Counter[str] = Counter()
    invoices, customers = set(), set()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            quantity, price = Decimal(row["Quantity"]), Decimal(row["UnitPrice"])
            amount = int((quantity * price * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))
            if row["InvoiceNo"].startswith("C"):
                found["credited"] -= amount
            elif quantity > 0 and price > 0 and not row["InvoiceNo"].startswith("A"):
                found["lines"] += 1
                found["net"] += amount
                invoices.add(row["InvoiceNo"])
                customers.add(row["CustomerID"])
    return found + Counter(sales=len(invoices), customers=len(customers - {""}))


def recorded(admin: Api) -> tuple[Counter[str], Json]:
    """The same figures as the API tells them, and every operation's resource."""
    store_id = next(store["id"] for store in admin.items("/v1/stores", limit=500) if store["code"] == "ONLINE-UK")
    sales = list(admin.items("/v1/sales", store_id=store_id, limit=500))
    returns = list(admin.items("/v1/returns", store_id=store_id, limit=500))
    reversals = [reversal for sale in sales for reversal in sale["reversals"]]
    found = Counter(
        sales=len(sales),
        lines=sum(len(sale["lines"]) for sale in sales),
        net=sum(sale["net_minor"] for sale in sales),
        customers=len({sale["member_id"] for sale in sales} - {None}),
        reversals=len(reversals),
        returns=len(returns),
        given_back=sum(each["refund_minor"] for each in [*reversals, *returns]),
    )
    return found, {each["operation_id"]: each["id"] for each in [*sales, *reversals, *returns]}


@pytest.mark.timeout(300)
def test_an_import_killed_on_the_way_ends_with_every_figure_right(system: System, admin: Api, month: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "regulars_cli.main", "import", "sales", str(month), "--mapping", "online-retail"]
    command += ["--var", str(system.var), "--report", str(report)]

    def acknowledged() -> int:
        checkpoints = list(system.var.glob("imports/*/checkpoint.jsonl"))
        return checkpoints[0].read_bytes().count(b"\n") - 1 if checkpoints else 0

    for groups, also in ((1, "member"), (5, "gateway")):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: acknowledged() >= groups or process.poll() is not None, f"{groups} groups are acknowledged")  # noqa: B023
        system.kill(also)
        process.kill()
        assert process.wait() < 0, "it was still under way"
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr

    figures, ids = recorded(admin)
    expected = counted(month)
    assert {key: figures[key] for key in ("sales", "lines", "net", "customers")} == {
        key: expected[key] for key in ("sales", "lines", "net", "customers")
    }
    told: Json = json.loads(report.read_bytes())
    notes = told["credit_notes"]
    assert told["commands_refused"] == 0
    assert told["commands_resumed"] > 0
    assert notes["amount_minor"] == -expected["credited"]
    assert (notes["reversals"], notes["returns"]) == (figures["reversals"], figures["returns"])
    assert figures["given_back"] == expected["credited"] + notes["difference_minor"]

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert recorded(admin) == (figures, ids), "the same file again doubles nothing"
    proof = subprocess.run(
        [sys.executable, "-m", "regulars_cli.main", "reconcile", "--var", str(system.var)], capture_output=True, text=True, check=False
    )
    assert proof.returncode == 0, proof.stdout
