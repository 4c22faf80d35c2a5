"""What is where in a store, what of it is whole, and how far each base backup can be restored.

    archive.json                          which server this is the archive of: one archive, one server
    base/20261122T141500Z/base.tar…       a base backup: the data folder with the WAL of the time that it took
    base/20261122T141500Z/definitions.tar…
    base/20261122T141500Z/backup.json     written last, when all of it is durable: without it there is no backup
    wal/00000001/000000010000000000000007…  a segment of WAL; `.partial` is one that is still being written
    wal/00000001/000000010000000000000007….sha256  the SHA-256 of that object as it is stored, once it is whole
    wal/00000001/covered.json             up to when everything that was committed is here
    verified.json                         when everything was last read and found good

`…` is `.zst`, or `.zst.age` where it is encrypted. A segment is named after its timeline and its place, as PostgreSQL does.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec import Struct

from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.stores import ObjectMissing, Store, Stored

FORMAT = 1
SERVER, BACKUP, COVERED, VERIFIED = "archive.json", "backup.json", "covered.json", "verified.json"
PARTIAL, CHECKSUM = ".partial", ".sha256"
SEGMENT_BYTES = 16 * 1024 * 1024
_SEGMENT = re.compile(r"^wal/(?P<folder>[0-9A-F]{8})/(?P<name>(?P=folder)[0-9A-F]{16})(?P<partial>\.partial)?\.zst(\.age)?$")
_CHECKSUM = re.compile(r"^(?P<of>wal/[0-9A-F]{8}/(?P<name>[0-9A-F]{24}|[0-9A-F]{8}\.history)\.zst(\.age)?)\.sha256$")
_HISTORY = re.compile(r"^wal/[0-9A-F]{8}/(?P<name>[0-9A-F]{8}\.history)\.zst(\.age)?$")

T = TypeVar("T", bound=Struct)


class Damaged(CannotBackUp):
    """An object is not what this release writes."""


class Server(Struct, frozen=True):
    """Whose archive it is."""

    format: int
    system_identifier: str
    segment_bytes: int


class Part(Struct, frozen=True):
    """One object of a base backup. `sha256` is of what is stored."""

    name: str
    size: int
    sha256: str


class Backup(Struct, frozen=True, kw_only=True):
    """A base backup that is whole. Times are the server's. `start_lsn` to `end_lsn` is the WAL that it needs, and holds."""

    format: int
    id: str
    system_identifier: str
    started_at: datetime
    ended_at: datetime
    timeline: int
    start_lsn: str
    end_lsn: str
    segment_bytes: int
    server_version: str
    release: str
    revisions: Mapping[str, str] = {}
    parts: Sequence[Part]

    @property
    def first_segment(self) -> int:
        """The number of the first segment of WAL that it needs."""
        return lsn_number(self.start_lsn) // self.segment_bytes

    @property
    def last_segment(self) -> int:
        """The last that it needs, and that it holds itself."""
        return lsn_number(self.end_lsn) // self.segment_bytes

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


class Covered(Struct, frozen=True):
    """Everything that was committed until then, by the server's clock, is in the archive up to `lsn`."""

    until: datetime
    lsn: str
    timeline: int


class Verified(Struct, frozen=True):
    """When everything that was there was read and found to be what was stored."""

    at: datetime
    backups: int
    objects: int


@dataclass(frozen=True, order=True)
class Segment:
    """An archived segment of WAL; a partial one ends where the server had not written further."""

    timeline: int
    number: int
    is_partial: bool
    object: Stored = field(compare=False)


@dataclass(frozen=True)
class Contents:
    """What a store holds, as it was listed."""

    server: Server | None
    backups: Sequence[Backup]
    # Folders of base backups without their backup.json: under way, or cut off.
    unfinished: Mapping[str, Sequence[Stored]]
    segments: Sequence[Segment]
    histories: Mapping[str, Stored]
    covered: Mapping[int, Covered]
    # By the name of the object that each is of.
    checksums: Mapping[str, Stored] = field(default_factory=dict)

    def newest(self) -> Backup | None:
        return self.backups[-1] if self.backups else None

    def on(self, timeline: int) -> dict[int, Segment]:
        """The segments of a timeline by number: the whole one where there is one, else the partial."""
        found = {each.number: each for each in self.segments if each.timeline == timeline and each.is_partial}
        return found | {each.number: each for each in self.segments if each.timeline == timeline and not each.is_partial}

    def wal_after(self, backup: Backup) -> list[Segment]:
        """The segments of its timeline that follow one another from the first that the backup needs, up to the first gap.

        Where the archive begins later than the backup, its own WAL bridges what is missing.
        """
        there = self.on(backup.timeline)
        number = backup.first_segment
        while number not in there and number <= backup.last_segment:
            number += 1
        found = []
        while number in there:
            found.append(there[number])
            if there[number].is_partial:
                break
            number += 1
        return found

    def is_followed(self, backup: Backup) -> bool:
        """Whether WAL leads from the backup, without a gap, to everything that the archive covers of its timeline."""
        wal, covered = self.wal_after(backup), self.covered.get(backup.timeline)
        return covered is not None and bool(wal) and lsn_number(covered.lsn) <= (wal[-1].number + 1) * backup.segment_bytes

    def restorable_until(self, backup: Backup) -> datetime:
        """Until when the backup can be restored: its own end, or further by the WAL that follows."""
        return max(backup.ended_at, self.covered[backup.timeline].until) if self.is_followed(backup) else backup.ended_at

    def gap_after(self, backup: Backup) -> int | None:
        """The number of the segment that is missing though later ones of the timeline are there; None: there is no gap."""
        wal, there = self.wal_after(backup), self.on(backup.timeline)
        following = wal[-1].number + 1 if wal else backup.last_segment + 1
        return following if any(number > following for number in there) else None


def read_contents(store: Store) -> Contents:
    """What the store holds. Raises CannotBackUp when it cannot be read, or was written by a newer release."""
    objects = store.list("base/")
    folders: dict[str, list[Stored]] = {}
    for each in objects:
        folders.setdefault(each.name.split("/")[1], []).append(each)
    backups, unfinished = [], {}
    for identity, held in folders.items():
        backup = read_json(store, f"base/{identity}/{BACKUP}", Backup) if any(_last(each) == BACKUP for each in held) else None
        if backup is None:
            unfinished[identity] = held
        else:
            backups.append(backup)
    server = read_json(store, SERVER, Server)
    segment_bytes = server.segment_bytes if server is not None else SEGMENT_BYTES
    listed = store.list("wal/")
    notes = [read_json(store, each.name, Covered) for each in listed if _last(each) == COVERED]
    covered = {found.timeline: found for found in notes if found is not None}
    segments = _segments(listed, segment_bytes)
    if any(_reach(segments, each.timeline, segment_bytes) < lsn_number(each.lsn) for each in covered.values()):
        # What the note is of may have come after the list was made.
        listed = store.list("wal/")
        segments = _segments(listed, segment_bytes)
    histories = {match["name"]: each for each in listed if (match := _HISTORY.match(each.name))}
    checksums = {match["of"]: each for each in listed if (match := _CHECKSUM.match(each.name))}
    return Contents(server, sorted(backups, key=lambda each: each.id), unfinished, segments, histories, covered, checksums)


def _segments(listed: Iterable[Stored], segment_bytes: int) -> list[Segment]:
    return sorted(
        Segment(int(match["folder"], 16), segment_number(match["name"], segment_bytes), bool(match["partial"]), each)
        for each in listed
        if (match := _SEGMENT.match(each.name))
    )


def _reach(segments: Iterable[Segment], timeline: int, segment_bytes: int) -> int:
    """Where the newest segment of a timeline ends."""
    return max((each.number + 1 for each in segments if each.timeline == timeline), default=0) * segment_bytes


def read_checksum(store: Store, contents: Contents, name: str) -> str | None:
    """The SHA-256 that an object of WAL had when it was stored; None: none was noted."""
    with suppress(ObjectMissing, UnicodeDecodeError):
        if name in contents.checksums:
            return b"".join(store.get(name + CHECKSUM)).decode("ascii").strip()
    return None


def write_checksum(store: Store, name: str, sha256: str) -> None:
    store.put(name + CHECKSUM, [f"{sha256}\n".encode("ascii")])


def read_json(store: Store, name: str, form: type[T]) -> T | None:
    """A small object; None where there is none. Raises CannotBackUp when it cannot be read: `Damaged`, where that would not mend itself."""
    try:
        return msgspec.json.decode(b"".join(store.get(name)), type=form)
    except ObjectMissing:
        return None
    except msgspec.DecodeError as error:
        raise Damaged(f"{store.place}/{name} is not what this release writes: it is damaged, or of a newer release.") from error


def write_json(store: Store, name: str, content: Struct) -> None:
    """Puts a small object, readable by people."""
    store.put(name, [msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"])


def lsn_number(lsn: str) -> int:
    """`16/B374D848` as bytes from the beginning."""
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def lsn_text(number: int) -> str:
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:08X}"


def segment_name(timeline: int, number: int, segment_bytes: int) -> str:
    """The file's name in PostgreSQL."""
    per_id = 0x1_0000_0000 // segment_bytes
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def segment_number(name: str, segment_bytes: int) -> int:
    """The number in a file's name."""
    return int(name[8:16], 16) * (0x1_0000_0000 // segment_bytes) + int(name[16:24], 16)


def object_of(timeline: int, name: str) -> str:
    """Where a file of WAL is, less the suffix of its sealing."""
    return f"wal/{timeline:08X}/{name}"


def needed_from(backups: Iterable[Backup]) -> Mapping[int, int]:
    """Of each timeline the first segment that one of these backups needs. WAL of later timelines may follow a backup's own."""
    first: dict[int, int] = {}
    for backup in backups:
        first[backup.timeline] = min(backup.first_segment, first.get(backup.timeline, backup.first_segment))
    return first


def is_needed(segment: Segment, first: Mapping[int, int]) -> bool:
    """Whether a backup may be restored through the segment."""
    return any(segment.timeline >= timeline and segment.number >= number for timeline, number in first.items())


def spare_checksums(contents: Contents, first: Mapping[int, int]) -> list[Stored]:
    """The checksums of segments that no backup may be restored through, also of those that are gone."""
    segment_bytes = contents.server.segment_bytes if contents.server is not None else SEGMENT_BYTES
    return [
        each
        for each in contents.checksums.values()
        if (match := _CHECKSUM.match(each.name)) and len(match["name"]) == 24
        if not is_needed(Segment(int(match["name"][:8], 16), segment_number(match["name"], segment_bytes), False, each), first)
    ]


def _last(each: Stored) -> str:
    return each.name.rpartition("/")[2]
