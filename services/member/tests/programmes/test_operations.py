import asyncio
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.db import raw, transaction
from kit.problems import Refusal
from member.programmes import operations
from member.programmes.files import read_definition
from member.programmes.operations import Books, Proposal

DEMO: Any = read_definition(Path(__file__).parents[4] / "programmes" / "demo.yaml")
# 23:30 in Shanghai: already the 22nd there would be wrong, still the 21st is right.
NOW = datetime(2026, 11, 21, 15, 30, tzinfo=UTC)


async def apply(engine: AsyncEngine, definition: object) -> Proposal:
    async with transaction(engine) as connection:
        return await operations.apply_programme(raw(connection), definition, applied_by="tester", now=NOW)


async def test_the_same_definition_adds_no_version(engine: AsyncEngine) -> None:
    first = await apply(engine, DEMO)
    assert (first.version.version, first.is_new) == (1, True)
    again = await apply(engine, {**DEMO, "refund_tender_order": None})
    assert (again.version.version, again.is_new, again.changes) == (1, False, ())


async def test_a_change_is_a_version_of_its_own_and_the_old_one_stays(engine: AsyncEngine) -> None:
    await apply(engine, DEMO)
    changed = await apply(engine, {**DEMO, "effective_from": "2026-11-22", "pending_days": 7})
    assert changed.version.version == 2
    assert {change.pointer for change in changed.changes} == {"/effective_from", "/pending_days"}
    async with transaction(engine, snapshot=True) as connection:
        document = await operations.get_programme(raw(connection), "demo", NOW)
        book = await operations.load_book(raw(connection))
    assert [version.version for version in document.versions] == [2, 1]
    assert document.current_version == 1
    assert [version.applied_by for version in document.versions] == ["tester"] * 2
    before, after = book.at("demo", date(2026, 11, 21)), book.at("demo", date(2026, 11, 22))
    assert before is not None
    assert after is not None
    assert (before.pending_days, after.pending_days) == (0, 7)


async def test_tomorrow_is_tomorrow_in_the_programmes_zone(engine: AsyncEngine) -> None:
    await apply(engine, DEMO)
    with pytest.raises(Refusal) as caught:
        await apply(engine, {**DEMO, "effective_from": "2026-11-21", "pending_days": 7})
    assert [(error.pointer, error.code) for error in caught.value.errors] == [("/effective_from", "too_early")]
    assert (await apply(engine, {**DEMO, "effective_from": "2026-11-22", "pending_days": 7})).is_new


async def test_checking_writes_nothing(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        proposal = await operations.check_programme(raw(connection), DEMO, NOW)
        assert (proposal.version.version, proposal.is_new) == (1, True)
        with pytest.raises(Refusal) as caught:
            await operations.get_programme(raw(connection), "demo", NOW)
        assert caught.value.code == "programme_not_found"


async def test_an_invalid_definition_is_refused_with_every_fault(engine: AsyncEngine) -> None:
    with pytest.raises(Refusal) as caught:
        await apply(engine, {"programme_id": "demo", "earn": {}})
    assert (caught.value.code, caught.value.status) == ("programme_invalid", 422)
    assert {"/name", "/earn/points", "/earn/per_minor"} <= {error.pointer for error in caught.value.errors}


async def test_versions_applied_at_once_are_numbered_one_after_another(engine: AsyncEngine) -> None:
    await apply(engine, DEMO)
    drafts = [{**DEMO, "effective_from": "2027-01-01", "pending_days": days} for days in range(1, 7)]
    applied = await asyncio.gather(
        *(apply(engine, draft) for draft in drafts), *(apply(engine, {**DEMO, "programme_id": "b"}) for _ in range(3))
    )
    assert sorted(each.version.version for each in applied[:6]) == [2, 3, 4, 5, 6, 7]
    assert [each.is_new for each in applied[6:]].count(True) == 1


async def test_a_held_book_is_read_anew_only_when_a_version_was_added(engine: AsyncEngine) -> None:
    books = Books()
    async with transaction(engine) as connection:
        empty = await books.current(raw(connection))
        assert empty.latest("demo") is None
        assert await books.current(raw(connection)) is empty
    await apply(engine, DEMO)
    async with transaction(engine) as connection:
        one = await books.current(raw(connection))
        assert one.latest("demo") is not None
        assert await books.current(raw(connection)) is one
