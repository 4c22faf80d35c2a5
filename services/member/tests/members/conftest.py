"""A chain with the demo programme, driven through the operations as the service drives them."""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import HeldClock
from kit.crypto import PersonalDataKeys, generate
from kit.db import raw, reading, transaction
from member.members import operations
from member.members.operations import Operation, Outcome, SignUp
from member.members.rules import GivenFields
from member.programmes.files import read_definition
from member.programmes.operations import Books, apply_programme

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
DEMO = Path(__file__).parents[4] / "programmes" / "demo.yaml"


@dataclass
class Desk:
    """Where members sign up."""

    engine: AsyncEngine
    clock: HeldClock
    key_file: bytes
    keys: PersonalDataKeys
    books: Books = field(default_factory=Books)
    numbers: int = 0

    def operation(self, operation_id: str | None = None, content: object = "") -> Operation:
        """A new write, or the one with an id; its fingerprint is of the content."""
        self.numbers += 1
        fingerprint = hashlib.sha256(repr(content).encode()).digest()
        return Operation(operation_id or f"op-{self.numbers}", fingerprint, "POST", "/v1/members", "")

    def sign_up(self, operation_id: str | None = None, *, programme_id: str = "demo", **given: Any) -> SignUp:
        """A sign-up with these fields."""
        return SignUp(self.operation(operation_id, given), programme_id, GivenFields(**given))

    async def run(self, *sign_ups: SignUp) -> list[Outcome]:
        """Sends one group."""
        return await operations.sign_up_members(self.engine, self.clock, self.keys, self.books, sign_ups)

    async def member(self, **given: Any) -> dict[str, Any]:
        """A member with these fields, signed up."""
        (outcome,) = await self.run(self.sign_up(**given))
        assert outcome.status == 201, outcome.body
        return decoded(outcome)

    async def change(self, member_id: str, operation_id: str | None = None, **given: Any) -> Outcome:
        """Changes a member file."""
        operation = self.operation(operation_id, given)
        return await operations.change_member(self.engine, self.clock, self.keys, operation, member_id, GivenFields(**given))

    async def read(self, member_id: str) -> dict[str, Any]:
        """A member file as it is read."""
        async with reading(self.engine) as connection:
            body: dict[str, Any] = msgspec.json.decode(await operations.get_member(raw(connection), self.keys, member_id))
        return body

    async def by_phone(self, typed: str, *, region: str = "", size: int = 50, page_token: str = "") -> dict[str, Any]:
        """A page of the members with a phone."""
        async with reading(self.engine) as connection:
            page = await operations.find_by_phone(raw(connection), self.keys, typed, region, size, page_token)
        body: dict[str, Any] = msgspec.json.decode(page)
        return body

    async def by_card(self, typed: str) -> list[str]:
        """The ids of the members with a card."""
        async with reading(self.engine) as connection:
            page = await operations.find_by_card(raw(connection), self.keys, typed)
        return [item["id"] for item in msgspec.json.decode(page)["items"]]

    async def rows(self, query: str, *values: object) -> list[Any]:
        """Rows of the database itself."""
        async with reading(self.engine) as connection:
            return list(await raw(connection).fetch(query, *values))


def decoded(outcome: Outcome) -> dict[str, Any]:
    """The document of an outcome."""
    document: dict[str, Any] = msgspec.json.decode(outcome.body)
    return document


@pytest.fixture
async def desk(engine: AsyncEngine) -> Desk:
    """A desk of a chain with the demo programme."""
    async with transaction(engine) as connection:
        await apply_programme(raw(connection), read_definition(DEMO), applied_by="test", now=NOW)
    key_file = generate()
    return Desk(engine, HeldClock(NOW), key_file, PersonalDataKeys.parse(key_file))
