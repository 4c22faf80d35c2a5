"""Bodies of programmes. What a definition must be is judged by the member service, which names every fault."""

from datetime import date, datetime
from typing import Any, ClassVar

import msgspec


class Definition(msgspec.Struct):
    """A programme and its rules: the YAML file as JSON."""

    SCHEMA: ClassVar[dict[str, Any]] = {"additionalProperties": True}


class ProgrammeVersion(msgspec.Struct):
    """One dated version."""

    version: int
    effective_from: date
    applied_at: datetime
    applied_by: str
    definition: dict[str, Any]


class Programme(msgspec.Struct):
    """A programme (会员计划). `current_version` is the one that judges a sale of today; versions are newest first."""

    id: str
    name: str
    currency: str
    zone: str
    current_version: int
    versions: list[ProgrammeVersion]


class ProgrammeDifference(msgspec.Struct):
    """One setting that differs from the newest version; null on a side where it is not there."""

    pointer: str
    from_: Any = msgspec.field(name="from")
    to: Any


class ProgrammeProposal(msgspec.Struct):
    """What applying a definition would do, or did. `is_new` false: the newest version says the same already."""

    programme_id: str
    version: int
    effective_from: date
    is_new: bool
    changes: list[ProgrammeDifference]
    warnings: list[str]
