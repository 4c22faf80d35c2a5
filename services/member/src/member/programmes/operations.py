"""Checking, applying and reading programmes."""

from dataclasses import dataclass, replace
from datetime import datetime

import msgspec

from kit.db import RawConnection, advisory_key
from kit.problems import FieldError, Refusal
from member.programmes.rules import (
    Change,
    Fault,
    ProgrammeBook,
    ProgrammeInvalid,
    ProgrammeVersion,
    changes_between,
    definition_of,
    is_same_definition,
    parse_programme,
    refusals_to_follow,
    warnings_about,
)

APPLY_LOCK = advisory_key("member.programmes.apply")

# An expression for other statements that want to know, on the way, whether the book changed.
BOOK_SEQ = "(SELECT coalesce(max(seq), 0) FROM programme_versions)"


class Books:
    """The book as a process holds it: read anew when a version was added, by whichever process."""

    def __init__(self) -> None:
        self._book = ProgrammeBook()

    async def current(self, connection: RawConnection, seq: int | None = None) -> ProgrammeBook:
        """The book as `connection` sees it: one short statement, unless it changed; none where the caller has read its `seq`."""
        if seq is None or seq != self._book.seq:
            self._book = await load_book(connection, self._book)
        return self._book


async def load_book(connection: RawConnection, known: ProgrammeBook | None = None) -> ProgrammeBook:
    """All versions of all programmes; `known` itself when nothing was added since."""
    known = known or ProgrammeBook()
    seq = await connection.fetchval(f"SELECT {BOOK_SEQ}")
    if seq == known.seq:
        return known
    rows = await connection.fetch(
        "SELECT seq, programme_id, version, definition FROM programme_versions ORDER BY programme_id, version",
    )
    versions: dict[str, tuple[ProgrammeVersion, ...]] = {}
    for row in rows:
        version = parse_programme(msgspec.json.decode(row["definition"]), version=row["version"])
        versions[version.programme_id] = (*versions.get(version.programme_id, ()), version)
    # From the same read as the versions: another may have been added since the first statement.
    return ProgrammeBook(max((row["seq"] for row in rows), default=0), versions)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What applying a definition does: the version that it makes, or `is_new` false and the newest version, which says the same."""

    version: ProgrammeVersion
    is_new: bool
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


async def check_programme(connection: RawConnection, definition: object, now: datetime) -> Proposal:
    """What applying `definition` would do now. Raises Refusal `programme_invalid` with every fault."""
    try:
        draft = parse_programme(definition)
    except ProgrammeInvalid as invalid:
        raise _refusal(invalid.faults) from None
    versions = (await load_book(connection)).versions.get(draft.programme_id, ())
    latest = versions[-1] if versions else None
    if latest is not None and is_same_definition(latest, draft):
        return Proposal(latest, is_new=False, changes=(), warnings=())
    faults = refusals_to_follow(latest, draft, now.astimezone(draft.zone).date())
    if faults:
        raise _refusal(faults)
    return Proposal(
        replace(draft, version=latest.version + 1 if latest else 1),
        is_new=True,
        changes=tuple(changes_between(latest, draft)),
        warnings=tuple(warnings_about(versions, draft)),
    )


async def apply_programme(connection: RawConnection, definition: object, *, applied_by: str, now: datetime) -> Proposal:
    """Adds a version, unless the newest says the same already. Raises Refusal as `check_programme`.

    One at a time: of two at once, the second is checked against the first.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", APPLY_LOCK)
    proposal = await check_programme(connection, definition, now)
    if proposal.is_new:
        version = proposal.version
        await connection.execute(
            """
            INSERT INTO programme_versions (programme_id, version, effective_from, definition, applied_at, applied_by)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            version.programme_id,
            version.version,
            version.effective_from,
            msgspec.json.encode(definition_of(version)).decode(),
            now,
            applied_by,
        )
    return proposal


def _refusal(faults: tuple[Fault, ...] | list[Fault]) -> Refusal:
    return Refusal(
        "programme_invalid",
        422,
        "Programme not valid",
        "Correct the definition as each error says, and apply it again.",
        [FieldError(fault.pointer, fault.code, fault.detail) for fault in faults],
    )


class VersionDocument(msgspec.Struct, frozen=True):
    """One version as callers see it."""

    version: int
    effective_from: str
    applied_at: str
    applied_by: str
    definition: msgspec.Raw


class ProgrammeDocument(msgspec.Struct, frozen=True):
    """A programme as callers see it. `current_version` is the one that judges a sale of today; versions are newest first."""

    id: str
    name: str
    currency: str
    zone: str
    current_version: int
    versions: list[VersionDocument]


async def get_programme(connection: RawConnection, programme_id: str, now: datetime) -> ProgrammeDocument:
    """A programme with all its versions. Raises Refusal `programme_not_found`."""
    book = await load_book(connection)
    latest = book.latest(programme_id)
    current = book.at(programme_id, now.astimezone(latest.zone).date()) if latest else None
    if current is None:
        raise Refusal("programme_not_found", 404, "No such programme", "Check the programme's id.")
    rows = await connection.fetch(
        """
        SELECT version, effective_from, applied_at, applied_by, definition
        FROM programme_versions WHERE programme_id = $1 ORDER BY version DESC
        """,
        programme_id,
    )
    versions = [
        VersionDocument(
            version=row["version"],
            effective_from=row["effective_from"].isoformat(),
            applied_at=row["applied_at"].isoformat().replace("+00:00", "Z"),
            applied_by=row["applied_by"],
            # The canonical order of its settings, which JSONB does not keep.
            definition=msgspec.Raw(msgspec.json.encode(definition_of(parse_programme(msgspec.json.decode(row["definition"]))))),
        )
        for row in rows
    ]
    return ProgrammeDocument(programme_id, current.name, current.currency, current.zone.key, current.version, versions)
