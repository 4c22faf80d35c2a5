"""Small histories of a shop, as CSV text of Online Retail's columns."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from regulars_cli.imports.mapping import Mapping, load_mapping
from regulars_cli.imports.reader import Row
from regulars_cli.imports.rules import Command, CreditNote, Judge, Place, Reject, Survey, plan, survey
from regulars_cli.imports.wire import Return, Reversal, Sale

HEADING = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
PLACE = Place("store-1", "till-1")


def line(
    invoice: str,
    sku: str = "A",
    quantity: int | str = 1,
    price: str = "1.00",
    *,
    at: str = "2011-02-01 10:00:00",
    customer: str = "7",
    country: str = "United Kingdom",
    description: str = "THING",
) -> list[str]:
    """The fields of one line."""
    return [invoice, sku, description, str(quantity), at, price, customer, country]


class Planned(NamedTuple):
    """What came of a history."""

    survey: Survey
    commands: list[Command]
    notes: list[CreditNote]
    rejects: list[Reject]

    @property
    def sales(self) -> dict[str, Sale]:
        return {command.invoice: command.body for command in self.commands if isinstance(command.body, Sale)}

    @property
    def reversals(self) -> dict[str, Reversal]:
        return {command.body.operation_id: command.body for command in self.commands if isinstance(command.body, Reversal)}

    @property
    def returns(self) -> dict[str, Return]:
        return {command.invoice: command.body for command in self.commands if isinstance(command.body, Return)}

    def reasons(self) -> list[tuple[int, str]]:
        return [(reject.row[0], reject.code) for reject in self.rejects]


def planned(lines: Iterable[list[str]], mapping: Mapping | None = None, heading: Sequence[str] = HEADING) -> Planned:
    """The lines through both readings; the first is row 2."""
    mapping = mapping or load_mapping("online-retail")
    rows: list[Row] = list(enumerate(lines, 2))
    judge = Judge(mapping, list(heading))
    found = survey(rows, judge, mapping)
    members = {customer: f"member-{customer}" for customer in found.sign_ups}
    given = list(plan(rows, judge, found, mapping, PLACE, members))
    return Planned(
        found,
        [each for each in given if isinstance(each, Command)],
        [each for each in given if isinstance(each, CreditNote)],
        [each for each in given if isinstance(each, Reject)],
    )


def csv_text(lines: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADING, *lines])
    return text.getvalue()


def write_csv(path: Path, lines: Iterable[Sequence[str]]) -> Path:
    path.write_text(csv_text(lines), encoding="utf-8")
    return path
