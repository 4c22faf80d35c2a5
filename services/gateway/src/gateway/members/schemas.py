"""Bodies of member files (会员档案). What a value must be is judged by the member service."""

from datetime import date, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.bodies import COUNTRY, DAY, REGION, Text64, Text200, Writing
from kit.problems import Problem

Phone = Annotated[str, Meta(min_length=1, max_length=64, extra_json_schema={"pattern": "^[^\\u0000]*$"}, examples=["138 0013 8000"])]
Region = Annotated[str, Meta(pattern=REGION, description="ISO 3166-1 alpha-2, for a phone without a country code")]
Country = Annotated[str, Meta(pattern=COUNTRY, description="ISO 3166-1 alpha-2", examples=["CN"])]
Day = Annotated[str, Meta(max_length=10, pattern=DAY, examples=["2024-05-01"])]
Birthday = Annotated[str, Meta(max_length=10, description="YYYY-MM-DD, or MM-DD where the year is not known", examples=["05-17"])]


class MemberFields(Writing):
    """What a member file holds. A field left out is not touched; null removes."""

    name: Text200 | UnsetType | None = UNSET
    phone: Phone | UnsetType | None = UNSET
    phone_verified: bool | UnsetType = UNSET
    phone_region: Region | UnsetType = UNSET
    card: Text64 | UnsetType | None = UNSET
    birthday: Birthday | UnsetType | None = UNSET
    gender: Annotated[str, Meta(max_length=32)] | UnsetType | None = UNSET
    city: Text200 | UnsetType | None = UNSET
    country: Country | UnsetType | None = UNSET
    joined_on: Day | UnsetType = UNSET


class SignUp(MemberFields):
    """A member to sign up."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "operation_id": "till-7-000122",
        "name": "Li Lei",
        "phone": "138 0013 8000",
        "phone_region": "CN",
        "birthday": "05-17",
        "country": "CN",
    }


class MemberChange(MemberFields):
    """What to change of a member file."""


class Member(msgspec.Struct):
    """A member file (会员档案)."""

    id: str
    name: str | None
    phone: str | None
    phone_verified: bool
    card: str | None
    birthday: str | None
    gender: str | None
    city: str | None
    country: str | None
    joined_on: date
    created_at: datetime


class MemberSearch(msgspec.Struct, forbid_unknown_fields=True):
    """One of a phone or a card, exactly."""

    SCHEMA: ClassVar[dict[str, Any]] = {"oneOf": [{"required": ["phone"]}, {"required": ["card"]}]}

    phone: Phone | UnsetType = UNSET
    phone_region: Region | UnsetType = UNSET
    card: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET


class ImportMembers(msgspec.Struct, forbid_unknown_fields=True):
    """Members to sign up, each for itself."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "properties": {"members": {"type": "array", "minItems": 1, "maxItems": 1000, "items": {"$ref": "#/components/schemas/SignUp"}}}
    }

    # Read one by one, so that each has its own fingerprint.
    members: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=1000)]


class ImportedMember(msgspec.Struct):
    """What became of one of them."""

    operation_id: str
    status: int
    replayed: bool
    member_id: str | None
    problem: Problem | None


class ImportedMembers(msgspec.Struct):
    """What became of each, in order."""

    outcomes: list[ImportedMember]
