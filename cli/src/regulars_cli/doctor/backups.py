"""The newest backup: that there is one, how much could be lost now, and that keys are not beside it."""

import asyncio
from datetime import timedelta

from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import Contents, read_contents
from regulars_cli.backup.arguments import instant, refuse_keys_beside
from regulars_cli.backup.facts import facts_are_wanted, newest_facts
from regulars_cli.backup.stores import Store, open_store
from regulars_cli.doctor.findings import Finding, failed, ok, warning
from regulars_cli.doctor.surroundings import Surroundings

# One a day, and what it takes.
WARNS, FAILS = timedelta(hours=26), timedelta(days=7)
LOSS_WARNS = timedelta(minutes=15)


async def check_backups(around: Surroundings) -> list[Finding]:
    """All about the place of the backups."""
    if not around.backup_to:
        said = "Nothing says where backups are: there may be none."
        advice = (
            "`regulars backup run --to PLACE`, daily; or set BACKUP_TO to where your own tool's archive is watched. Keys are kept apart."
        )
        return [warning("backup", "postgres", said, advice)]
    try:
        store = open_store(around.backup_to, around.environ)
        contents = await asyncio.to_thread(read_contents, store)
    except CannotBackUp as reason:
        return [
            failed("backup", "postgres", f"The backups cannot be read: {reason}", "Correct BACKUP_TO and its keys, or mount the folder.")
        ]
    found = [_newest(contents, around, store.place)]
    if contents.backups:
        found.append(_loss(contents, around))
    found += await _facts(store, around)
    try:
        refuse_keys_beside(store)
    except CannotBackUp as reason:
        found.append(failed("backup", "keys", str(reason), "Move the backups; what was taken may have been read."))
    else:
        found.append(ok("backup", "keys", "No keys lie beside the backups; that they are kept somewhere else only you can know."))
    return found


def _newest(contents: Contents, around: Surroundings, place: str) -> Finding:
    newest = contents.newest()
    advice = "Run `regulars backup run`, and see why the daily one did not."
    if newest is None:
        return failed("backup", "postgres", f"There is no whole base backup in {place}.", advice)
    age = around.clock.now() - newest.ended_at
    said = f"The newest base backup is of {instant(newest.ended_at)}, {int(age.total_seconds() // 3600):,} hours ago"
    if age > FAILS:
        return failed("backup", "postgres", f"{said}.", advice)
    if age > WARNS:
        return warning("backup", "postgres", f"{said}.", advice)
    return ok("backup", "postgres", f"{said}.")


async def _facts(store: Store, around: Surroundings) -> list[Finding]:
    """They need not be, so an old one is no fault; but somebody wanted them."""
    advice = "Run `regulars backup facts`, and see why the daily one did not; or remove them, for facts can be made anew."
    try:
        newest = await asyncio.to_thread(newest_facts, store)
    except CannotBackUp as reason:
        return [warning("backup", "clickhouse", f"The newest backup of the facts cannot be read: {reason}", advice)]
    if newest is None:
        said = f"There is no backup of the facts in {store.place}, and BACKUP_FACTS=1 wants some."
        return [warning("backup", "clickhouse", said, advice)] if facts_are_wanted(around.environ) else []
    age = around.clock.now() - newest.ended_at
    said = f"The newest backup of the facts is of {instant(newest.ended_at)}, {int(age.total_seconds() // 3600):,} hours ago."
    return [warning("backup", "clickhouse", said, advice) if age > WARNS else ok("backup", "clickhouse", said)]


def _loss(contents: Contents, around: Surroundings) -> Finding:
    newest = contents.backups[-1]
    reaches = contents.restorable_until(newest)
    loss = around.clock.now() - reaches
    said = f"What was committed after {instant(reaches)} would be lost with the server"
    covered = max(contents.covered.values(), key=lambda each: each.until, default=None)
    if covered is not None and covered.timeline != newest.timeline and covered.until > newest.ended_at:
        said = "The newest base backup is of before a failover or a restore, and the WAL since does not lead on from it."
        return failed("backup", "wal", said, "Take a base backup now: `regulars backup run`.")
    if contents.gap_after(newest) is not None:
        advice = "Take a base backup now: `regulars backup run`. Before the gap everything can be restored."
        return failed("backup", "wal", "WAL is missing after the newest base backup.", advice)
    if not contents.wal_after(newest):
        return warning("backup", "wal", f"{said}: no WAL is archived.", "Run `regulars backup wal` beside the system, for ever.")
    if loss > LOSS_WARNS:
        return warning("backup", "wal", f"{said}.", "See whether `regulars backup wal` runs, and its log.")
    return ok("backup", "wal", f"{said}.")
