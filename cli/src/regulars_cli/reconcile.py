"""`regulars reconcile [--rebuild]`: proves every wallet's cached sums from its entries."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing

from regulars_cli import access
from regulars_cli.imports.client import Gateway, Patience
from regulars_cli.imports.faults import ImportStopped
from regulars_cli.imports.wire import ReconcilePage, WalletDifference


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `reconcile` to the command."""
    parser = subparsers.add_parser(
        "reconcile",
        help="prove every balance from its entries",
        description="Adds up the entries of every wallet and names each cached figure that differs. Exit code 1 if any did.",
    )
    parser.add_argument("--rebuild", action="store_true", help="set the figures that differ to what the entries prove")
    access.add_arguments(parser)
    parser.set_defaults(func=run)


def run(parsed: argparse.Namespace) -> int:
    """0: the entries prove every figure. 1: some differed (also when they were rebuilt), or the gateway could not be asked."""
    wallets = differences = rebuilt = 0
    try:
        allowed = access.find_access(parsed)
        with closing(Gateway(allowed.url, allowed.admin_key, Patience(seconds=30))) as gateway:
            for page in _pages(gateway, rebuild=parsed.rebuild):
                wallets += page.wallets
                differences += len(page.differences)
                rebuilt += sum(each.rebuilt for each in page.differences)
                for each in page.differences:
                    print(describe(each))
    except (ImportStopped, access.AccessUnknown) as error:
        print(error, file=sys.stderr)
        return 1
    left = _left(differences, rebuilt) if parsed.rebuild else ""
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
