"""Bodies of stores and tills."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.bodies import NO_NUL, TIME_OF_DAY, Code, Currency, ProgrammeId, Writing

Name = Annotated[str, Meta(min_length=1, max_length=200, extra_json_schema=NO_NUL)]


class NewStore(Writing):
    """A store to be opened."""

    code: Code
    name: Name
    zone: Annotated[
        str, Meta(min_length=1, max_length=64, description="IANA time zone", examples=["Asia/Shanghai"], extra_json_schema=NO_NUL)
    ]
    currency: Currency
    programme_id: ProgrammeId
    day_cut_over: Annotated[str, Meta(pattern=TIME_OF_DAY, description="When a business day starts, in the store's zone")] = "00:00"


class Store(msgspec.Struct):
    """A store (门店)."""

    id: str
    code: str
    name: str
    zone: str
    currency: str
    programme_id: str
    day_cut_over: str
    created_at: datetime


class NewTill(Writing):
    """A till to be set up."""

    code: Code
    name: Name


class Till(msgspec.Struct):
    """A till (收银机)."""

    id: str
    store_id: str
    code: str
    name: str
    created_at: datetime
