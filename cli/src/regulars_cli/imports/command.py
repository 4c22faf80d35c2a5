"""`regulars import sales FILE --mapping NAME`."""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec

from regulars_cli import access
from regulars_cli.imports.checkpoint import Checkpoint, Scope
from regulars_cli.imports.client import Gateway, Patience, said
from regulars_cli.imports.faults import ImportStopped
from regulars_cli.imports.mapping import Mapping as FileMapping
from regulars_cli.imports.mapping import load_mapping, shipped_mappings
from regulars_cli.imports.progress import Progress, make_progress
from regulars_cli.imports.reader import Row, Source
from regulars_cli.imports.rejects import RejectsFile
from regulars_cli.imports.report import Report, Tally, describe, write_report
from regulars_cli.imports.rules import Command, CreditNote, Judge, Place, Reject, Survey, plan, survey
from regulars_cli.imports.sending import FORMATION, Group, Sender, form_groups
from regulars_cli.imports.wire import Outcome

INTERRUPTED: Final = 130
NOWHERE: Final = Place("", "")
ROWS_PER_TICK: Final = 20_000


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `import sales` to the command."""
    parser = subparsers.add_parser("import", help="import a shop's history from a file")
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    sales = kinds.add_parser(
        "sales",
        help="sales, credit notes and the members on them, from a CSV file",
        description="Imports invoice lines from a CSV file, plain or gzipped. It may be stopped or killed at any time and started again:"
        " nothing is recorded twice. See docs/import.md.",
    )
    sales.add_argument("file", metavar="FILE", type=Path)
    sales.add_argument("--mapping", required=True, metavar="NAME", help=f"{', '.join(shipped_mappings())}, or the path of a .yaml file")
    sales.add_argument("--dry-run", action="store_true", help="read, match and count; write nothing to the system")
    sales.add_argument("--report", metavar="FILE.json", type=Path, help="where to put the report (default: beside the rejects)")
    sales.add_argument("--afresh", action="store_true", help="ignore the checkpoint and send everything again")
    access.add_arguments(sales)
    sales.set_defaults(func=run)


def run(parsed: argparse.Namespace) -> int:
    """0: every line was imported or is in the rejects file. 1: the import stopped, and one sentence says why."""
    try:
        report = import_sales(parsed)
    except (ImportStopped, access.AccessUnknown) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on from here.", file=sys.stderr)
        return INTERRUPTED
    print(describe(report))
    return 0


def import_sales(parsed: argparse.Namespace) -> Report:
    """Reads the file twice: to learn what is in it, before anything is written anywhere, and to send it."""
    began = time.monotonic()
    mapping = load_mapping(parsed.mapping)
    source = Source(parsed.file, mapping)
    judge = Judge(mapping, source.heading)
    with make_progress() as progress, ExitStack() as held:
        progress.begin("Reading", None)
        found = survey(_ticking(source.rows(), progress), judge, mapping)
        digest = source.digest()
        folder = parsed.var / "imports" / f"{mapping.name}-{digest[:12]}"
        prefix = "dry-run-" if parsed.dry_run else ""

        def open_job() -> _Job:
            rejects = held.enter_context(RejectsFile(folder / f"{prefix}rejects.csv", source.heading))
            report = Report(parsed.file.name, mapping.name, mapping.store.currency, parsed.dry_run, found.rows, str(rejects.path))
            progress.begin("Checking" if parsed.dry_run else "Importing", found.rows)
            return _Job(found, Tally(report, mapping), rejects, progress)

        if parsed.dry_run:
            job = open_job()
            job.rehearse(plan(source.rows(), judge, found, mapping, NOWHERE, dict.fromkeys(found.sign_ups, "")))
            job.rejects.finish()
        else:
            allowed = access.find_access(parsed)
            gateway = held.enter_context(closing(Gateway(allowed.url, allowed.admin_key, Patience(notice=progress.say))))
            place = gateway.place_for(mapping)
            scope = Scope(digest, _digest(mapping), place.store_id, FORMATION)
            checkpoint = held.enter_context(closing(Checkpoint(folder / "checkpoint.jsonl", scope, afresh=parsed.afresh)))
            # The checkpoint is locked: from here on this is the only import of the file.
            job = open_job()
            members = job.sign_up(gateway)
            job.send(plan(source.rows(), judge, found, mapping, place, members), gateway, checkpoint)
            job.rejects.finish()
            checkpoint.remove()
    report = job.tally.report
    job.tally.finish(time.monotonic() - began)
    write_report(report, parsed.report or folder / f"{prefix}report.json")
    return report


@dataclass(frozen=True)
class _Job:
    """The second reading, and everything that is counted and written on the way."""

    found: Survey
    tally: Tally
    rejects: RejectsFile
    progress: Progress

    def sign_up(self, gateway: Gateway) -> Mapping[str, str]:
        """The member id of every customer number whose sign-up was not refused."""
        members: dict[str, str] = {}
        report = self.tally.report
        customers, sign_ups = list(self.found.sign_ups), list(self.found.sign_ups.values())
        for customer, outcome in zip(customers, gateway.import_members(sign_ups), strict=True):
            if outcome.member_id:
                members[customer] = outcome.member_id
                report.members_known_before += outcome.replayed or outcome.status != HTTPStatus.CREATED
            else:
                report.members_refused += 1
        report.members = len(members)
        return members

    def rehearse(self, planned: Iterable[Command | CreditNote | Reject]) -> None:
        """Counts as if the gateway decided everything as planned."""
        for command in self._commands(planned):
            outcome = Outcome(command.body.operation_id, HTTPStatus.CREATED, amount_minor=command.amount_minor)
            self._count(command, outcome, resumed=False)

    def send(self, planned: Iterable[Command | CreditNote | Reject], gateway: Gateway, checkpoint: Checkpoint) -> None:
        """Sends every group that no earlier run had acknowledged."""

        def settle(group: Group, outcomes: list[Outcome]) -> None:
            checkpoint.record(group, outcomes)
            self._settle(group, outcomes, resumed=False)

        sender = Sender(gateway.import_sales, settle)
        try:
            for group in form_groups(self._commands(planned)):
                known = checkpoint.recall(group)
                if known is None:
                    sender.submit(group)
                else:
                    self._settle(group, known, resumed=True)
            sender.finish()
        finally:
            sender.stop()

    def _commands(self, planned: Iterable[Command | CreditNote | Reject]) -> Iterator[Command]:
        for each in planned:
            match each:
                case Command():
                    yield each
                case CreditNote():
                    self.tally.noted(each)
                    self.progress.advance(each.line_count)
                case Reject():
                    self.rejects.add(each)
                    self.tally.rejected(each)
                    self.progress.advance(1)

    def _settle(self, group: Group, outcomes: list[Outcome], *, resumed: bool) -> None:
        for command, outcome in zip(group.commands, outcomes, strict=True):
            self._count(command, outcome, resumed=resumed)

    def _count(self, command: Command, outcome: Outcome, *, resumed: bool) -> None:
        self.tally.settled(command, outcome, resumed=resumed)
        if command.kind == "sale":
            self.progress.advance(command.line_count)
        if outcome.is_refusal:
            because = f"{outcome.operation_id}: {said(outcome.problem) if outcome.problem else f'refused with {outcome.status}'}"
            for row in command.rows:
                self.rejects.add_late(Reject(row, outcome.problem.code if outcome.problem else "refused", because))


def _ticking(rows: Iterable[Row], progress: Progress) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        if number % ROWS_PER_TICK == 0:
            progress.advance(ROWS_PER_TICK)
        yield row


def _digest(mapping: FileMapping) -> str:
    return blake2b(msgspec.json.encode(mapping), digest_size=16).hexdigest()
