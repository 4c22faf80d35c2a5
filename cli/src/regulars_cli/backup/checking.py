"""Proving that what is kept can be read, and removing what no backup needs any more."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import (
    BACKUP,
    Backup,
    Contents,
    Segment,
    is_needed,
    needed_from,
    read_checksum,
    segment_name,
    spare_checksums,
)
from regulars_cli.backup.sealing import Opener
from regulars_cli.backup.stores import ObjectMissing, Store, Stored

# A base backup that is not whole by then never will be.
UNFINISHED_AFTER = timedelta(days=2)
# The first page of a segment says where it belongs: its magic number, flags and timeline, then its place.
_PLACE = slice(8, 16)
_PAGE_BYTES = 16
_ID = re.compile(r"^\d{8}T\d{6}Z$")


@dataclass(frozen=True)
class Fault:
    """What is wrong with an object."""

    name: str
    sentence: str


@dataclass(frozen=True)
class Unproven:
    """An object of which nothing could be proven. `is_passing`: it is not here, or being written, and the next look may be of another."""

    name: str
    sentence: str
    is_passing: bool


def verify(store: Store, contents: Contents, backups: list[Backup], opener: Opener) -> Iterator[Fault | Unproven | str]:
    """Reads every object of the backups, and the WAL that follows them; each is named once it is found good, or what is wrong with it."""
    for backup in backups:
        for part in backup.parts:
            try:
                read = _read_part(store, part.name, part.sha256, opener)
                yield f"{part.name}: {read}"
            except (CannotBackUp, ObjectMissing) as error:
                yield Fault(part.name, f"{part.name} is missing." if isinstance(error, ObjectMissing) else str(error))
        gap = contents.gap_after(backup)
        if gap is not None:
            name = segment_name(backup.timeline, gap, backup.segment_bytes)
            yield Fault(name, f"WAL is missing from {name} on: {backup.id} can be restored up to there and no further.")
    first = needed_from(backups)
    size = contents.server.segment_bytes if contents.server is not None else 0
    for segment in contents.segments:
        if is_needed(segment, first):
            yield _read_segment(store, contents, segment, size, opener)
    for name, history in sorted(contents.histories.items()):
        if int(name[:8], 16) >= min(first, default=0):
            yield _read_history(store, contents, history, opener)


def _read_part(store: Store, name: str, sha256: str, opener: Opener) -> str:
    """Reads all of it. What is encrypted is opened where there is an identity, else compared with what was stored."""
    if opener.can_open(name):
        size = sum(map(len, opener.get(store, name, sha256)))
        return f"good, {size:,} bytes"
    for _ in Opener.compared(store, name, sha256):
        pass
    return "as it was stored"


def _read_segment(store: Store, contents: Contents, segment: Segment, size: int, opener: Opener) -> Fault | Unproven | str:
    name = segment.object.name
    if segment.is_partial and not opener.can_open(name):
        return Unproven(name, f"{name} is being written, and encrypted: only --identity can prove it.", is_passing=True)
    try:
        sha256 = read_checksum(store, contents, name)
        if not opener.can_open(name):
            return _compare(store, name, sha256)
        first, length = b"", 0
        for piece in opener.get(store, name, sha256):
            first = first or piece[:_PAGE_BYTES]
            length += len(piece)
    except ObjectMissing:
        if segment.is_partial:
            return Unproven(name, f"{name} was being written, and is whole by now.", is_passing=True)
        return Fault(name, f"{name} is missing.")
    except CannotBackUp as error:
        return Fault(name, str(error))
    if length != size:
        return Fault(name, f"{name} has {length:,} bytes instead of {size:,}.")
    if int.from_bytes(first[_PLACE], "little") != segment.number * size:
        return Fault(name, f"{name} holds WAL of another place.")
    return f"{name}: good"


def _read_history(store: Store, contents: Contents, history: Stored, opener: Opener) -> Fault | Unproven | str:
    try:
        sha256 = read_checksum(store, contents, history.name)
        if not opener.can_open(history.name):
            return _compare(store, history.name, sha256)
        for _ in opener.get(store, history.name, sha256):
            pass
    except ObjectMissing:
        return Fault(history.name, f"{history.name} is missing.")
    except CannotBackUp as error:
        return Fault(history.name, str(error))
    return f"{history.name}: good"


def _compare(store: Store, name: str, sha256: str | None) -> Unproven | str:
    """What cannot be opened is compared with what was stored."""
    if sha256 is None:
        return Unproven(name, f"{name} is encrypted, and has no checksum: only --identity can prove it.", is_passing=False)
    for _ in Opener.compared(store, name, sha256):
        pass
    return f"{name}: as it was stored"


def prunable(contents: Contents, keep: int, now: datetime) -> tuple[list[Backup], list[Stored]]:
    """The base backups that are older than the newest `keep`, and all objects that only they need, in the order to delete them in.

    What says that a backup is whole goes first, so that a half-deleted one is none.
    """
    kept, old = list(contents.backups[-keep:]), list(contents.backups[:-keep])
    if not kept:
        return [], []
    objects: list[Stored] = []
    for backup in old:
        objects.append(Stored(f"base/{backup.id}/{BACKUP}", 0, backup.ended_at))
        objects += [Stored(part.name, part.size, backup.ended_at) for part in backup.parts]
    for identity, held in contents.unfinished.items():
        if is_abandoned(identity, now):
            objects += held
    first = needed_from(kept)
    objects += [segment.object for segment in contents.segments if not is_needed(segment, first)]
    objects += spare_checksums(contents, first)
    return old, objects


def is_abandoned(identity: str, now: datetime) -> bool:
    """Whether a backup of that name, which is not whole, never will be."""
    return bool(_ID.match(identity)) and now - datetime.strptime(identity + "+0000", "%Y%m%dT%H%M%SZ%z") > UNFINISHED_AFTER
