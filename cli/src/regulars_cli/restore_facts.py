"""`regulars restore-facts`: the facts of reports made anew from a backup of a ClickHouse server."""

import argparse
import asyncio
from pathlib import Path

from kit.clock import SystemClock
from regulars_cli import access
from regulars_cli.backup.arguments import PLACE, guarded, instant, noted_settings, store_of
from regulars_cli.backup.facts_restoring import Restored, choose, restore_facts
from regulars_cli.backup.facts_taking import facts_and_bus


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `restore-facts` to the command."""
    parser = subparsers.add_parser(
        "restore-facts",
        help="make the facts of reports anew from a backup of ClickHouse, and catch up from the bus",
        description="Restores the database of a ClickHouse server, and has facts be consumed again from where the backup ends. No "
        "`reporting consume` may run. The database that was there is set aside, not removed.",
    )
    parser.add_argument("--from", dest="place", metavar="PLACE", default="", help=PLACE)
    parser.add_argument("--backup", metavar="BACKUP", help="this one (default: the newest)")
    parser.add_argument("--var", metavar="DIR", type=Path, default=access.VAR, help="the installation's folder (default: %(default)s)")
    parser.set_defaults(func=guarded, action=_restore)


def _restore(parsed: argparse.Namespace) -> int:
    store, clock = store_of(parsed), SystemClock()
    backup = choose(store, parsed.backup)
    noted = noted_settings(parsed.var)

    async def act() -> Restored:
        async with facts_and_bus(noted, parsed.var) as (clickhouse, bus):
            return await restore_facts(clickhouse, bus, store, backup, clock)

    began = clock.now()
    restored = asyncio.run(act())
    seconds = (clock.now() - began).total_seconds()
    print(f"The facts are those of {instant(backup.started_at)}, at {backup.migration}, after {seconds:.1f} s.")
    if restored.aside:
        print(f"What was there before is in the database {restored.aside}: drop it when all is well.")
    print(
        f"Next: `python -m reporting migrate`, then start `reporting consume`: {restored.behind:,} events on the bus came since. When"
        " `regulars bus lag` says 0, `regulars reconcile --reports`."
    )
    return 0
