"""`regulars backup run|wal|facts|list|verify|prune|keygen`.

Exit codes: 0 done; 1 could not be done, or what is kept is not as it should be; 2 wrong arguments.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from math import inf, nan
from pathlib import Path
from typing import Any

from kit.clock import SystemClock
from regulars_cli import access
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import VERIFIED, Backup, Contents, Verified, read_contents, write_json
from regulars_cli.backup.arguments import (
    PLACE,
    add_identity,
    guarded,
    instant,
    note_place,
    noted_settings,
    opener_of,
    refuse_keys_beside,
    store_of,
)
from regulars_cli.backup.bases import take_base_backup
from regulars_cli.backup.checking import Fault, Unproven, prunable, verify
from regulars_cli.backup.facts import DATA, NOTES, FactsBackup, FactsContents, prunable_facts, read_facts, verify_facts
from regulars_cli.backup.facts_taking import facts_and_bus, take_facts_backup
from regulars_cli.backup.sealing import Sealer, new_identity
from regulars_cli.backup.servers import Server, find_server
from regulars_cli.backup.stores import Store
from regulars_cli.backup.wal import FetchedElsewhere, fetch_once, has_slot
from regulars_cli.definitions import export

DEFAULT_KEEP = 7


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `backup` to the command."""
    parser = subparsers.add_parser("backup", help="back up the database, see what there is, prove it, remove what is old")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    run = _add(actions, "run", _run, "take a base backup now, with programmes, stores and tills as files", writes=True)
    run.add_argument("--max-rate", default="", help="how much to read a second at most, as 20M (default: as fast as it goes)")
    run.add_argument("--no-definitions", action="store_true", help="leave programmes, stores and tills out")
    access.add_arguments(run)

    wal = _add(actions, "wal", _wal, "fetch what is written to the database, for ever, so that any moment can be restored", writes=True)
    wal.add_argument("--every", metavar="SECONDS", type=_seconds, default=10.0, help="how much may be lost at most (default %(default)s)")
    wal.add_argument("--once", action="store_true", help="fetch what there is now, and end")
    wal.add_argument("--var", metavar="DIR", type=Path, default=access.VAR, help="the installation's folder (default: %(default)s)")

    facts = _add(
        actions,
        "facts",
        _facts,
        "have a ClickHouse server back up the facts of reports",
        writes=True,
    )
    facts.add_argument("--disk", metavar="NAME", default="", help="the disk of the server to write to, where PLACE is no bucket")
    facts.add_argument("--although-fewer", action="store_true", help="also where a table has less than half the rows of the newest backup")
    facts.add_argument("--var", metavar="DIR", type=Path, default=access.VAR, help="the installation's folder (default: %(default)s)")

    listed = _add(actions, "list", _list, "what can be restored")
    listed.add_argument("--json", action="store_true", help="for programs")
    listed.add_argument("--var", metavar="DIR", type=Path, default=access.VAR, help="the installation's folder (default: %(default)s)")

    check = _add(actions, "verify", _verify, "read everything that is kept, and prove it whole")
    check.add_argument("backup", metavar="BACKUP", nargs="?", help="this one alone (default: all)")
    add_identity(check)
    check.add_argument("--var", metavar="DIR", type=Path, default=access.VAR, help="the installation's folder (default: %(default)s)")

    prune = _add(actions, "prune", _prune, "remove old backups, and the WAL that only they need")
    prune.add_argument("--keep", type=_at_least_one, default=DEFAULT_KEEP, help="how many of the newest stay (default %(default)s)")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    prune.add_argument("--var", metavar="DIR", type=Path, default=access.VAR, help="the installation's folder (default: %(default)s)")

    keygen = actions.add_parser("keygen", help="make the identity that opens encrypted backups, and print its recipient")
    keygen.add_argument("file", type=Path, help="where to write it: not where backups are, nor only on this machine")
    keygen.set_defaults(func=guarded, action=_keygen)


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    action: Callable[[argparse.Namespace], int],
    help_text: str,
    *,
    writes: bool = False,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help_text)
    flag = "--to" if writes else "--from"
    parser.add_argument(flag, dest="place", metavar="PLACE", default="", help=PLACE)
    parser.set_defaults(func=guarded, action=action)
    return parser


def _run(parsed: argparse.Namespace) -> int:
    store, noted = store_of(parsed), noted_settings(parsed.var)
    refuse_keys_beside(store)
    server, sealer = find_server(os.environ, noted), Sealer.given(os.environ)
    extras = {} if parsed.no_definitions else _definitions(parsed)
    began = SystemClock().now()
    backup = asyncio.run(_back_up(server, store, sealer, extras, parsed.max_rate))
    seconds = (SystemClock().now() - began).total_seconds()
    note_place(parsed.var, store)
    print(
        f"{backup.id} is whole in {store.place}: {backup.size / 1e6:,.1f} MB in {seconds:.1f} s{', encrypted' if sealer.encrypts else ''}."
    )
    if not extras and not parsed.no_definitions:
        print("Programmes, stores and tills are in the database's backup only: no gateway was found to ask for them as files.")
    print("The keys are not in it: keep them apart, as docs/backup.md says. Without personal_data.json no name or phone can be read.")
    return 0


async def _back_up(server: Server, store: Store, sealer: Sealer, extras: dict[str, bytes], max_rate: str) -> Backup:
    """A base backup; and where WAL is kept for us and nobody fetches it now, that too, so that there is no gap before it."""
    backup = await take_base_backup(server, store, sealer, extras, max_rate)
    async with server.connected() as connection:
        is_kept = await has_slot(connection)
    if is_kept:
        # Where `regulars backup wal` runs, it does it.
        with suppress(FetchedElsewhere):
            await fetch_once(server, store, sealer)
    return backup


def _wal(parsed: argparse.Namespace) -> int:
    store = store_of(parsed)
    refuse_keys_beside(store)
    server, sealer = find_server(os.environ, noted_settings(parsed.var)), Sealer.given(os.environ)
    if parsed.once:
        progress = asyncio.run(fetch_once(server, store, sealer))
        note_place(parsed.var, store)
        print(f"Everything that was committed by {instant(progress.covered.until)} is in {store.place}.")
        newest = (contents := read_contents(store)).newest()
        if newest is None or newest.timeline != progress.covered.timeline or not contents.is_followed(newest):
            print("But no base backup leads to it, so none of it can be restored yet: take one with `regulars backup run`.")
        return 0
    # Loaded by those who go on for ever.
    from regulars_cli.backup.following import follow  # noqa: PLC0415

    note_place(parsed.var, store)
    return asyncio.run(follow(server, store, sealer, parsed.every))


def _facts(parsed: argparse.Namespace) -> int:
    store, noted, clock = store_of(parsed), noted_settings(parsed.var), SystemClock()
    refuse_keys_beside(store)

    async def act() -> FactsBackup:
        async with facts_and_bus(noted, parsed.var) as (clickhouse, bus):
            return await take_facts_backup(clickhouse, bus, store, parsed.disk, clock, although_fewer=parsed.although_fewer)

    backup = asyncio.run(act())
    note_place(parsed.var, store)
    seconds = (backup.ended_at - backup.started_at).total_seconds()
    print(f"{backup.id} is whole {_where(backup, store)}: the facts, {backup.size / 1e6:,.1f} MB in {seconds:.1f} s.")
    return 0


def _where(backup: FactsBackup, store: Store) -> str:
    return f"on the disk {backup.disk} of ClickHouse" if backup.disk else f"in {store.place}"


def _list(parsed: argparse.Namespace) -> int:
    store = store_of(parsed)
    contents, facts = read_contents(store), read_facts(store)
    if parsed.json:
        print(json.dumps([*map(_facts_document, facts.backups), *(_document(contents, backup) for backup in contents.backups)], indent=2))
    else:
        for each in facts.backups:
            print(f"{each.id}  {each.size / 1e6:,.1f} MB, facts of reports, {_where(each, store)}")
        for backup in contents.backups:
            reaches = contents.restorable_until(backup)
            gap = "; WAL is missing after that" if contents.gap_after(backup) is not None else ""
            encrypted = ", encrypted" if any(part.name.endswith(".age") for part in backup.parts) else ""
            print(f"{backup.id}  {backup.size / 1e6:,.1f} MB{encrypted}, restores {instant(backup.ended_at)} to {instant(reaches)}{gap}")
        for identity in contents.unfinished:
            print(f"{identity}  is not whole: it is being taken now, or was cut off")
    _tell(facts)
    if not contents.backups:
        print(f"There is no base backup in {store.place}: take one with `regulars backup run`.", file=sys.stderr)
        return 1
    return 1 if facts.damaged else 0


def _tell(facts: FactsContents) -> None:
    for fault in facts.damaged:
        print(f"A backup of the facts: {fault.sentence}", file=sys.stderr)


def _document(contents: Contents, backup: Backup) -> dict[str, Any]:
    return {
        "kind": "postgres",
        "id": backup.id,
        "bytes": backup.size,
        "restores_from": backup.ended_at.isoformat(),
        "restores_until": contents.restorable_until(backup).isoformat(),
        "has_gap": contents.gap_after(backup) is not None,
        "server_version": backup.server_version,
        "release": backup.release,
        "revisions": dict(backup.revisions),
    }


def _facts_document(backup: FactsBackup) -> dict[str, Any]:
    return {
        "kind": "clickhouse",
        "id": backup.id,
        "bytes": backup.size,
        "taken_at": backup.started_at.isoformat(),
        "disk": backup.disk or None,
        "server_version": backup.server_version,
        "release": backup.release,
        "revisions": {backup.database: backup.migration},
    }


def _verify(parsed: argparse.Namespace) -> int:
    store, opener = store_of(parsed), opener_of(parsed)
    contents = read_contents(store)
    backups = [each for each in contents.backups if parsed.backup in (None, each.id)]
    noted = read_facts(store)
    facts = [each for each in noted.backups if parsed.backup in (None, each.id)]
    damaged = [each for each in noted.damaged if parsed.backup is None or each.name == f"{NOTES}{parsed.backup}.json"]
    if not backups and not facts and not damaged:
        raise CannotBackUp(f"There is no {'base backup' if parsed.backup is None else parsed.backup} in {store.place}.")
    began = SystemClock().now()
    good = faults = passing = unproven = 0
    for found in chain(verify(store, contents, backups, opener), damaged, verify_facts(store, facts)):
        match found:
            case Fault():
                faults += 1
                print(found.sentence)
            case Unproven():
                passing, unproven = passing + found.is_passing, unproven + (not found.is_passing)
                print(found.sentence)
            case _:
                good += 1
    of_facts = f" and {len(facts)} backups of facts" if facts else ""
    print(
        f"{good:,} objects of {len(backups)} base backups and their WAL{of_facts} are good, {faults:,} are not,"
        f" {passing + unproven:,} were not verified."
    )
    if backups and not opener.can_open(backups[-1].parts[0].name):
        print("They are encrypted: they were compared with what was stored, and not opened. Give --identity to have them opened.")
    if backups and parsed.backup is None and not faults and not unproven:
        _note_verified(store, Verified(began, len(backups), good))
    return 1 if faults or unproven else 0


def _note_verified(store: Store, verified: Verified) -> None:
    """Says in the archive that it is whole, which `backup wal` exports."""
    try:
        write_json(store, VERIFIED, verified)
    except CannotBackUp as reason:
        print(f"That it was verified could not be noted: {reason}", file=sys.stderr)


def _prune(parsed: argparse.Namespace) -> int:
    store, now = store_of(parsed), SystemClock().now()
    old, objects = prunable(read_contents(store), parsed.keep, now)
    facts = read_facts(store)
    old_facts, of_facts = prunable_facts(store, facts, parsed.keep, now)
    objects += of_facts
    if not parsed.dry_run:
        for each in objects:
            store.delete(each.name)
    done = "would be removed" if parsed.dry_run else "removed"
    print(
        f"{len(old)} base backups, {len(old_facts)} backups of facts and all in all {len(objects):,} objects,"
        f" {sum(each.size for each in objects) / 1e6:,.1f} MB, {done}."
    )
    for backup in old_facts:
        if backup.disk:
            print(f"On the disk {backup.disk} of ClickHouse only you can remove {DATA}{backup.id}.")
    _tell(facts)
    return 1 if facts.damaged else 0


def _keygen(parsed: argparse.Namespace) -> int:
    print(new_identity(parsed.file))
    print(f"{parsed.file} opens what is encrypted for it. Keep it off this machine, and apart from the backups.", file=sys.stderr)
    return 0


def _definitions(parsed: argparse.Namespace) -> dict[str, bytes]:
    """The files of the definitions, for a base backup; none where there is no gateway to ask."""
    try:
        files = export(access.find_access(parsed))
    except (access.AccessUnknown, CannotBackUp):
        return {}
    return {f"definitions/{name}": content for name, content in files.items()}


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = nan
    if not 1 <= seconds < inf:
        raise argparse.ArgumentTypeError("a number of seconds, at least 1")
    return seconds


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("at least one base backup stays")
    return int(text)
