"""Opening stores and setting up tills, and reading them page by page."""

import base64
import binascii
from collections.abc import Sequence
from zoneinfo import available_timezones

from sqlalchemy import Row, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.callers import Caller
from gateway.problems import store_not_allowed
from gateway.programmes.operations import require_programme
from gateway.services import Services
from gateway.stores.schemas import NewStore, NewTill, Store, Till
from gateway.stores.tables import stores, tills
from kit.clock import Clock
from kit.ids import uuid7
from kit.money import is_currency
from kit.problems import FieldError, Refusal

MINUTES_PER_HOUR = 60


async def open_store(connection: AsyncConnection, services: Services, caller: Caller, new: NewStore) -> Store:
    """Opens a store.

    Raises:
        Refusal: 422 zone_unknown, currency_unknown, programme_not_found, programme_currency_mismatch; 409 store_code_taken.
    """
    if new.zone not in available_timezones():
        raise Refusal(
            "zone_unknown",
            422,
            "The time zone is not known",
            "Give the IANA name of the store's time zone, such as Asia/Shanghai.",
            [FieldError("/zone", "zone_unknown", "Not a name of the IANA time zone database.")],
        )
    if not is_currency(new.currency):
        raise Refusal(
            "currency_unknown",
            422,
            "The currency is not known",
            "Give the ISO 4217 code of the currency that the store sells in, such as CNY.",
            [FieldError("/currency", "currency_unknown", "Not a currency of ISO 4217 that is in use.")],
        )
    await require_programme(services, caller, new.programme_id, new.currency)
    hours, minutes = new.day_cut_over.split(":")
    row = (
        await connection.execute(
            insert(stores)
            .values(
                store_id=uuid7(),
                code=new.code,
                name=new.name,
                zone=new.zone,
                currency=new.currency,
                programme_id=new.programme_id,
                day_cut_over_minutes=int(hours) * MINUTES_PER_HOUR + int(minutes),
                created_at=services.clock.now(),
            )
            .on_conflict_do_nothing(index_elements=[stores.c.code])
            .returning(stores)
        )
    ).one_or_none()
    if row is None:
        raise _code_taken("store", "Another store has this code.")
    return _store(row)


async def set_up_till(connection: AsyncConnection, clock: Clock, store_id: str, new: NewTill) -> Till:
    """Sets up a till in a store.

    Raises:
        Refusal: 404 store_not_found, 409 till_code_taken.
    """
    await _require_store(connection, store_id)
    row = (
        await connection.execute(
            insert(tills)
            .values(till_id=uuid7(), store_id=store_id, code=new.code, name=new.name, created_at=clock.now())
            .on_conflict_do_nothing(index_elements=[tills.c.store_id, tills.c.code])
            .returning(tills)
        )
    ).one_or_none()
    if row is None:
        raise _code_taken("till", "Another till of this store has this code.")
    return _till(row)


async def list_stores(connection: AsyncConnection, caller: Caller, limit: int, cursor: str | None) -> tuple[list[Store], str | None]:
    """A page of the stores within the caller's scope by code, and the cursor of the next page."""
    query = select(stores).order_by(stores.c.code).limit(limit + 1)
    if cursor is not None:
        query = query.where(stores.c.code > _code_in(cursor))
    if caller.client.stores is not None:
        query = query.where(stores.c.store_id.in_(caller.client.stores))
    page, following = _page((await connection.execute(query)).all(), limit)
    return [_store(row) for row in page], following


async def list_tills(
    connection: AsyncConnection, caller: Caller, store_id: str, limit: int, cursor: str | None
) -> tuple[list[Till], str | None]:
    """A page of a store's tills by code, and the cursor of the next page.

    Raises:
        Refusal: 404 store_not_found, 403 store_not_allowed.
    """
    if caller.client.stores is not None and store_id not in caller.client.stores:
        raise store_not_allowed()
    await _require_store(connection, store_id)
    query = select(tills).where(tills.c.store_id == store_id).order_by(tills.c.code).limit(limit + 1)
    if cursor is not None:
        query = query.where(tills.c.code > _code_in(cursor))
    page, following = _page((await connection.execute(query)).all(), limit)
    return [_till(row) for row in page], following


async def _require_store(connection: AsyncConnection, store_id: str) -> None:
    if await connection.scalar(select(stores.c.store_id).where(stores.c.store_id == store_id)) is None:
        raise Refusal("store_not_found", 404, "No such store", "Check the store's id: GET /v1/stores lists them.")


def _code_taken(what: str, detail: str) -> Refusal:
    return Refusal(f"{what}_code_taken", 409, "The code is taken", detail, [FieldError("/code", f"{what}_code_taken", detail)])


def _page(rows: Sequence[Row[tuple[object, ...]]], limit: int) -> tuple[Sequence[Row[tuple[object, ...]]], str | None]:
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], base64.urlsafe_b64encode(str(rows[limit - 1].code).encode()).decode()


def _code_in(cursor: str) -> str:
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise cursor_invalid() from None


def cursor_invalid() -> Refusal:
    """400: not a cursor that a list of ours gave."""
    detail = "Take `next_cursor` of the page before as it is, or leave it out to begin."
    return Refusal("cursor_invalid", 400, "The cursor is not valid", detail, [FieldError("/query/cursor", "cursor_invalid", detail)])


def _store(row: Row[tuple[object, ...]]) -> Store:
    hours, minutes = divmod(row.day_cut_over_minutes, MINUTES_PER_HOUR)
    return Store(row.store_id, row.code, row.name, row.zone, row.currency, row.programme_id, f"{hours:02}:{minutes:02}", row.created_at)


def _till(row: Row[tuple[object, ...]]) -> Till:
    return Till(row.till_id, row.store_id, row.code, row.name, row.created_at)
