"""`regulars reconcile [--rebuild]` proves every wallet's cached sums from its entries; `--reports` the reports from the ledger."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import date

from regulars_cli import access
from regulars_cli.imports.client import Gateway, Patience
from regulars_cli.imports.faults import ImportStopped
from regulars_cli.imports.wire import Behind, ReconcilePage, ReportsDifference, ReportsReconciled, WalletDifference


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `reconcile` to the command."""
    parser = subparsers.add_parser(
        "reconcile",
        help="prove every balance from its entries, or the reports from the ledger",
        description="Adds up the entries of every wallet and names each cached figure that differs; with --reports, compares every figure "
        "of the reports with the ledger's, by store and day. Exit code 1 if any did.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--rebuild", action="store_true", help="set the figures that differ to what the entries prove")
    what.add_argument("--reports", action="store_true", help="compare the reports with the ledger instead")
    parser.add_argument("--from", dest="from_day", metavar="DAY", type=_day, help="with --reports: the first business day (YYYY-MM-DD)")
    parser.add_argument("--to", dest="to_day", metavar="DAY", type=_day, help="with --reports: the day after the last")
    access.add_arguments(parser)
    parser.set_defaults(func=run)


def run(parsed: argparse.Namespace) -> int:
    """0: every figure is proven. 1: some differed (also when they were rebuilt), or the gateway refused or could not be asked.

    2: the arguments are not as they should be.
    """
    if not parsed.reports and (parsed.from_day or parsed.to_day):
        print("--from and --to go with --reports: wallets are proven whole.", file=sys.stderr)
        return 2
    if parsed.from_day and parsed.to_day and parsed.from_day >= parsed.to_day:
        print("--to must be after --from: it is the day after the last.", file=sys.stderr)
        return 2
    try:
        allowed = access.find_access(parsed)
        with closing(Gateway(allowed.url, allowed.admin_key, Patience(seconds=30))) as gateway:
            if parsed.reports:
                return _reports(gateway, parsed.from_day, parsed.to_day)
            return _wallets(gateway, rebuild=parsed.rebuild)
    except (ImportStopped, access.AccessUnknown) as error:
        print(error, file=sys.stderr)
        return 1


def _wallets(gateway: Gateway, *, rebuild: bool) -> int:
    wallets = differences = rebuilt = 0
    for page in _pages(gateway, rebuild=rebuild):
        wallets += page.wallets
        differences += len(page.differences)
        rebuilt += sum(each.rebuilt for each in page.differences)
        for each in page.differences:
            print(describe(each))
    left = _left(differences, rebuilt) if rebuild else ""
    print(f"{wallets:,} wallets proven from their entries, {differences:,} differences{left}.")
    return 1 if differences else 0


def describe(difference: WalletDifference) -> str:
    """A difference as a sentence: which figure of which wallet, what is cached and what the entries prove."""
    subject = f" of {difference.subject_id}" if difference.subject_id else ""
    return (
        f"Wallet {difference.member_id}/{difference.programme_id}: {difference.figure}{subject} is {difference.cached}; proven is"
        f" {difference.proven}{'; rebuilt' if difference.rebuilt else ''}."
    )


def _left(differences: int, rebuilt: int) -> str:
    """What rebuilding did, and what it could not: entries that are gone or written wrong, sales that do not add up."""
    left = differences - rebuilt
    return f", {rebuilt:,} rebuilt" + (f"; {left:,} need a person: nothing proves which figure is right" if left else "")


def _pages(gateway: Gateway, *, rebuild: bool) -> Iterator[ReconcilePage]:
    cursor: str | None = None
    while True:
        page = gateway.post("/v1/wallets:reconcile", {"rebuild": rebuild} | ({"cursor": cursor} if cursor else {}), ReconcilePage)
        yield page
        cursor = page.next_cursor
        if not cursor:
            return


def _reports(gateway: Gateway, from_day: str | None, to_day: str | None) -> int:
    days = {name: day for name, day in (("from", from_day), ("to", to_day)) if day}
    found = gateway.post("/v1/reports:reconcile", dict[str, object](days), ReportsReconciled)
    for each in found.differences:
        print(describe_report(each))
    if found.differences_total > len(found.differences):
        print(f"… and {found.differences_total - len(found.differences):,} more.")
    compared = found.compared
    print(
        f"{compared.store_days:,} days of stores, {compared.points_days:,} sums of points and {compared.members_days:,} days of joining"
        f" compared as of {found.as_of}, {found.differences_total:,} differences."
    )
    if found.differences_total:
        print(_waiting(found.behind))
    return 1 if found.differences_total else 0


def describe_report(difference: ReportsDifference) -> str:
    """A difference as a sentence: which figure of what, and what either side says."""
    of = [
        *([f"store {difference.store_id}"] if difference.store_id else []),
        *([f"programme {difference.programme_id}"] if difference.programme_id else []),
        *([difference.kind] if difference.kind else []),
        *([difference.day] if difference.day else []),
        *([difference.currency] if difference.currency else []),
    ]
    return f"{', '.join(of)}: {difference.figure} is {difference.ledger} in the ledger and {difference.reports} in the reports."


def _waiting(behind: Behind) -> str:
    """Whether what differs may only be late, and what to do about it."""
    if behind.unread is None:
        return "The bus did not answer, so the reports may only be late: compare again when it does."
    if behind.unpublished or behind.unread:
        return (
            f"The reports were behind: {behind.unpublished:,} events waited to be published and {behind.unread:,} to be taken in; compare"
            " again when `regulars bus lag` says 0."
        )
    # From the ledger: the events on the bus may be what is wrong, or no longer all there.
    return (
        "Nothing is on its way: `regulars reporting rebuild --from-ledger` makes the reports anew. After a restore of PostgreSQL"
        " these lines are what was lost (docs/backup.md); else keep them, for this should never be."
    )


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError("a day is YYYY-MM-DD") from None
