"""Counts what an import did, and says it in words and as JSON."""

from collections import Counter
from pathlib import Path

import msgspec

from kit.money import minor_exponent
from regulars_cli.imports.faults import DiskFault
from regulars_cli.imports.mapping import Mapping
from regulars_cli.imports.rules import Command, CreditNote, Reject
from regulars_cli.imports.wire import Outcome, Reversal


class SaleFigures(msgspec.Struct):
    invoices: int = 0
    lines: int = 0
    amount_minor: int = 0


class IdentifiedSaleFigures(SaleFigures):
    customers: int = 0


class CreditNoteFigures(msgspec.Struct):
    """`amount_minor` and `note_minor` are what the notes say, below zero as in the file; the rest are magnitudes and differences.

    note_minor + refund_minor = difference_minor on what is linked, and linked + unlinked + refused notes make the whole amount.
    """

    notes: int = 0
    lines: int = 0
    amount_minor: int = 0
    linked_lines: int = 0
    partly_linked_lines: int = 0
    unlinked_lines: int = 0
    guest_lines: int = 0
    reversals: int = 0
    linked_note_minor: int = 0
    refund_minor: int = 0
    difference_minor: int = 0
    returns: int = 0
    unlinked_minor: int = 0


class Difference(msgspec.Struct):
    """A reversal that refunds something else than its credit note gave. `difference_minor` is refund less note."""

    credit_note: str
    sale: str
    note_minor: int
    refund_minor: int
    difference_minor: int


class UnlinkedReturn(msgspec.Struct):
    """What a credit note gave for goods that no earlier sale in the file had."""

    credit_note: str
    is_guest: bool
    amount_minor: int
    rows: list[int]


class RefusedCommand(msgspec.Struct):
    operation_id: str
    status: int
    code: str
    reason: str
    rows: int
    amount_minor: int


class Report(msgspec.Struct):
    """Everything that is counted. Amounts are minor units of `currency`."""

    file: str
    mapping: str
    currency: str
    dry_run: bool
    lines: int
    rejects_file: str
    identified_sales: IdentifiedSaleFigures = msgspec.field(default_factory=IdentifiedSaleFigures)
    guest_sales: SaleFigures = msgspec.field(default_factory=SaleFigures)
    credit_notes: CreditNoteFigures = msgspec.field(default_factory=CreditNoteFigures)
    rejected_lines: dict[str, int] = msgspec.field(default_factory=dict)
    members: int = 0
    members_known_before: int = 0
    members_refused: int = 0
    commands: int = 0
    commands_replayed: int = 0
    commands_resumed: int = 0
    commands_refused: int = 0
    seconds: float = 0.0
    lines_per_second: int = 0
    refused: list[RefusedCommand] = msgspec.field(default_factory=list)
    differences: list[Difference] = msgspec.field(default_factory=list)
    unlinked_returns: list[UnlinkedReturn] = msgspec.field(default_factory=list)


class Tally:
    """Fills a report while the import goes on."""

    def __init__(self, report: Report, mapping: Mapping) -> None:
        self.report = report
        self._prefix = mapping.operation_id("")
        self._customers: set[str] = set()
        self._rejected: Counter[str] = Counter()

    def rejected(self, reject: Reject) -> None:
        self._rejected[reject.code] += 1

    def noted(self, note: CreditNote) -> None:
        figures = self.report.credit_notes
        figures.notes += 1
        figures.lines += note.line_count
        figures.amount_minor -= note.amount_minor
        figures.linked_lines += note.linked_lines
        figures.partly_linked_lines += note.partly_linked_lines
        figures.unlinked_lines += note.unlinked_lines
        figures.guest_lines += note.line_count if note.is_guest else 0

    def settled(self, command: Command, outcome: Outcome, *, resumed: bool) -> None:
        """Counts a decided command: what the gateway says of its amount, not what was planned."""
        self.report.commands += 1
        self.report.commands_resumed += resumed
        self.report.commands_replayed += outcome.replayed and not resumed
        if outcome.is_refusal:
            self._refused(command, outcome)
        elif command.kind == "sale":
            figures = self.report.guest_sales if command.is_guest else self.report.identified_sales
            figures.invoices += 1
            figures.lines += command.line_count
            figures.amount_minor += outcome.amount_minor
            if not command.is_guest:
                self._customers.add(command.lane)
        elif isinstance(command.body, Reversal):
            self._reversed(command, command.body, outcome)
        else:
            self.report.credit_notes.returns += 1
            self.report.credit_notes.unlinked_minor -= outcome.amount_minor
            rows = [row[0] for row in command.rows]
            self.report.unlinked_returns.append(UnlinkedReturn(command.invoice, command.is_guest, outcome.amount_minor, rows))

    def finish(self, seconds: float) -> None:
        """Puts the lists in an order that does not depend on which lane was quicker."""
        report = self.report
        report.identified_sales.customers = len(self._customers)
        report.rejected_lines = dict(sorted(self._rejected.items()))
        report.refused.sort(key=lambda each: each.operation_id)
        report.differences.sort(key=lambda each: (-abs(each.difference_minor), each.credit_note, each.sale))
        report.unlinked_returns.sort(key=lambda each: each.credit_note)
        report.seconds = round(seconds, 1)
        report.lines_per_second = round(report.lines / seconds) if seconds else 0

    def _refused(self, command: Command, outcome: Outcome) -> None:
        problem = outcome.problem
        self.report.commands_refused += 1
        self.report.refused.append(
            RefusedCommand(
                outcome.operation_id,
                outcome.status,
                problem.code if problem else "unknown",
                problem.detail if problem else "",
                len(command.rows),
                command.amount_minor if command.kind == "sale" else -command.note_minor,
            )
        )

    def _reversed(self, command: Command, reversal: Reversal, outcome: Outcome) -> None:
        figures = self.report.credit_notes
        difference = outcome.amount_minor - command.note_minor
        figures.reversals += 1
        figures.linked_note_minor -= command.note_minor
        figures.refund_minor += outcome.amount_minor
        figures.difference_minor += difference
        if difference:
            sale = reversal.sale_operation_id.removeprefix(self._prefix)
            self.report.differences.append(Difference(command.invoice, sale, command.note_minor, outcome.amount_minor, difference))


def write_report(report: Report, path: Path) -> None:
    """The report as JSON, put in place whole. Raises DiskFault."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        part.replace(path)
    except OSError as error:
        raise DiskFault(f"The report {path} cannot be written: {error.strerror or error}. The import itself is done.") from error


def describe(report: Report) -> str:
    """The report in words."""

    def money(minor: int) -> str:
        return f"{report.currency} {amount(minor, report.currency)}"

    sales, guests, notes = report.identified_sales, report.guest_sales, report.credit_notes
    verb = "Dry run of" if report.dry_run else "Imported"
    speed = f"{report.seconds:,.1f} s ({report.lines_per_second:,} lines/s)"
    text = [f"{verb} {report.file} with the mapping {report.mapping}: {report.lines:,} lines in {speed}.", ""]
    text += [
        f"{what:<17}{figures.lines:>9,} lines {count:>7,} {unit:<9}{money(figures.amount_minor):>18}{more}"
        for what, figures, count, unit, more in (
            ("Sales to members", sales, sales.invoices, "invoices", f"  by {sales.customers:,} customers"),
            ("Sales to guests", guests, guests.invoices, "invoices", ""),
            ("Credit notes", notes, notes.notes, "notes", ""),
        )
    ]
    text += [
        f"  linked          {notes.linked_lines:>9,} lines, and {notes.partly_linked_lines:,} in part: {notes.reversals:,} reversals",
        f"                  the notes gave {money(-notes.linked_note_minor)}, the frozen shares are {money(notes.refund_minor)}",
        f"                  difference {money(notes.difference_minor)}, on {len(report.differences):,} reversals",
        f"  unlinked        {notes.unlinked_lines:>9,} lines, and the rest of {notes.partly_linked_lines:,}: {notes.returns:,} returns",
        f"                  {money(-notes.unlinked_minor)} back, no points touched; {notes.guest_lines:,} of the lines are guests'",
    ]
    text += [f"{'Not imported':<17}{count:>9,} lines {code}" for code, count in report.rejected_lines.items()]
    if not report.dry_run:
        refused = f"; {report.members_refused:,} more were refused" if report.members_refused else ""
        before, resumed = report.commands_replayed, report.commands_resumed
        text += [
            f"{'Members':<17}{report.members:>9,} of which {report.members_known_before:,} were known before{refused}",
            f"{'Commands':<17}{report.commands:>9,} of which {before:,} had been decided before and {resumed:,} were in the checkpoint",
            f"{'  refused':<17}{report.commands_refused:>9,}",
        ]
    text += ["", f"Every line not imported, with its reason: {report.rejects_file}"]
    return "\n".join(text)


def amount(minor: int, currency: str) -> str:
    """Minor units in major units: -89681249 of GBP is -896,812.49."""
    exponent = minor_exponent(currency)
    whole, fraction = divmod(abs(minor), 10**exponent)
    return f"{'-' if minor < 0 else ''}{whole:,}" + (f".{fraction:0{exponent}}" if exponent else "")
