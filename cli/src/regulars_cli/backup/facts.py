"""Backups of the facts of reports, as they are kept.

facts/20261122T141500Z.json       what it is, and where on the bus it stands: written last, without it there is no backup
facts-data/20261122T141500Z/…      what the ClickHouse server wrote: here if this is a bucket, else on a disk of its own
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec import Struct

from regulars_cli.backup.archive import Damaged, read_json
from regulars_cli.backup.checking import Fault, Unproven, is_abandoned
from regulars_cli.backup.stores import Store, Stored

FORMAT = 1
NOTES, DATA = "facts/", "facts-data/"


class Position(Struct, frozen=True):
    """A partition that the group reads: everything before `offset` is in the backup, nothing from `end` on.

    `last_event_id` is of the event before `end`; empty: it was not there any more. `first` is of the first event that was retained; where
    that is before it, it is another bus. -1: an older release did not note it.
    """

    topic: str
    partition: int
    offset: int
    end: int
    last_event_id: str
    first: int = -1


class FactsBackup(Struct, frozen=True, kw_only=True):
    """A backup of the facts that is whole. `disk` is the server's that it is on; empty: it is in the bucket of this note."""

    format: int
    id: str
    started_at: datetime
    ended_at: datetime
    release: str
    server_version: str
    database: str
    migration: str
    disk: str
    files: int
    size: int
    positions: Sequence[Position]
    # By table, as they were counted before; none: an older release did not.
    rows: Mapping[str, int] = {}


@dataclass(frozen=True)
class FactsContents:
    """Those that are whole, the oldest first, and what is wrong with the notes that cannot be read."""

    backups: Sequence[FactsBackup]
    damaged: Sequence[Fault]


def facts_are_wanted(environ: Mapping[str, str]) -> bool:
    """Whether there should be some, as the settings say."""
    return environ.get("BACKUP_FACTS", "") == "1"


def read_facts(store: Store) -> FactsContents:
    """All that there is. Raises CannotBackUp when the place cannot be read."""
    backups, damaged = [], []
    for each in store.list(NOTES):
        try:
            found = read_json(store, each.name, FactsBackup)
        except Damaged as reason:
            damaged.append(Fault(each.name, str(reason)))
        else:
            backups += [] if found is None else [found]
    return FactsContents(backups, damaged)


def newest_facts(store: Store) -> FactsBackup | None:
    """The newest that is whole. Raises CannotBackUp when it cannot be read; `Damaged`, where its note is."""
    listed = store.list(NOTES)
    return read_json(store, listed[-1].name, FactsBackup) if listed else None


def data_of(store: Store) -> dict[str, list[Stored]]:
    """What the server wrote here, by the id of the backup."""
    held: dict[str, list[Stored]] = {}
    for each in store.list(DATA):
        held.setdefault(each.name.split("/")[1], []).append(each)
    return held


def verify_facts(store: Store, backups: Sequence[FactsBackup]) -> Iterator[Fault | Unproven | str]:
    """Compares what is kept with what was written, by number and size. More is proven by a restore alone."""
    held = data_of(store) if backups else {}
    for backup in backups:
        if backup.disk:
            said = f"{DATA}{backup.id} is on the disk {backup.disk} of ClickHouse: only a restore proves it."
            yield Unproven(f"{DATA}{backup.id}", said, is_passing=True)
            continue
        there = held.get(backup.id, [])
        count, size = len(there), sum(each.size for each in there)
        if (count, size) == (backup.files, backup.size):
            yield f"{DATA}{backup.id}: as large as when it was written"
        else:
            said = f"{DATA}{backup.id} has {count:,} objects of {size:,} bytes instead of {backup.files:,} of {backup.size:,}."
            yield Fault(f"{DATA}{backup.id}", said)


def prunable_facts(store: Store, contents: FactsContents, keep: int, now: datetime) -> tuple[list[FactsBackup], list[Stored]]:
    """The backups that are older than the newest `keep`, and the objects of these and of none, in the order to delete them in.

    What belongs to a note that cannot be read stays, with the note.
    """
    backups, held = contents.backups, data_of(store)
    old = list(backups[:-keep])
    objects: list[Stored] = []
    for backup in old:
        objects += [Stored(f"{NOTES}{backup.id}.json", 0, backup.ended_at), *held.pop(backup.id, ())]
    noted = {backup.id for backup in backups} | {each.name.removeprefix(NOTES).removesuffix(".json") for each in contents.damaged}
    for identity, left in held.items():
        if identity not in noted and is_abandoned(identity, now):
            objects += left
    return old, objects
