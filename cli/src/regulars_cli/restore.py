"""`regulars restore`: the database made anew from a backup, as of any moment."""

import argparse
import os
from pathlib import Path

from kit.clock import SystemClock
from regulars_cli import access
from regulars_cli.backup.archive import read_contents
from regulars_cli.backup.arguments import PLACE, add_identity, guarded, instant, moment, opener_of, store_of
from regulars_cli.backup.restoring import plan, restore
from regulars_cli.backup.servers import Server


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `restore` to the command."""
    parser = subparsers.add_parser(
        "restore",
        help="make the database anew from a backup, as of any moment",
        description="Makes the embedded database of an installation anew, or with --to any data folder of PostgreSQL. The system must be "
        "stopped. What was there is set aside, not removed.",
    )
    parser.add_argument("--from", dest="place", metavar="PLACE", default="", help=PLACE)
    parser.add_argument("--at", metavar="TIME", type=moment, help="the moment, as 2026-11-22T14:15:00+08:00 (default: everything there is)")
    parser.add_argument("--backup", metavar="BACKUP", help="from this base backup (default: the newest that serves the moment)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--var", metavar="DIR", type=Path, default=access.VAR, help="the installation's folder (default: %(default)s)")
    where.add_argument("--to", metavar="DIR", type=Path, help="a data folder of PostgreSQL to make instead, for a server of yours")
    parser.add_argument("--leave-recovery", action="store_true", help="do not recover here: the server that is started on it does")
    add_identity(parser)
    parser.set_defaults(func=guarded, action=_restore)


def _restore(parsed: argparse.Namespace) -> int:
    store, clock = store_of(parsed), SystemClock()
    chosen = plan(read_contents(store), parsed.at, parsed.backup)
    opener = opener_of(parsed)
    programs = os.environ.get("PG_BIN")
    server = Server("", Path(programs) if programs else None)
    began = clock.now()
    if parsed.to is not None:
        aside = restore(store, chosen, opener, parsed.to.absolute(), server, clock, print, recovers=not parsed.leave_recovery)
        folder = parsed.to
    else:
        # Loaded where there is an embedded server.
        from regulars_cli.backup.embedded import restore_installation  # noqa: PLC0415

        folder, aside = restore_installation(parsed.var, store, chosen, opener, clock, print, recovers=not parsed.leave_recovery)
    seconds = (clock.now() - began).total_seconds()
    print(f"{folder} is as of {instant(chosen.at or chosen.reaches)}{'' if chosen.at else ' or later'}, after {seconds:.1f} s.")
    if aside is not None:
        print(f"What was there before is in {aside}: remove it when all is well.")
    print(
        "Next: start the system; when `regulars bus lag` says 0, `regulars reporting rebuild --from-ledger`; then `regulars reconcile` and"
    )
    print("`regulars reconcile --reports`; and `regulars backup run`, for a restored server begins a new line of WAL.")
    return 0
