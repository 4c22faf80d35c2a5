"""Making and ending keys. A key is shown once, to whoever makes it; the database has its SHA-256."""

import hashlib
import secrets
from collections.abc import Sequence
from typing import TypedDict

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.api_clients.tables import api_clients
from gateway.callers import Role
from gateway.stores.tables import stores
from kit.clock import Clock
from kit.db import transaction
from kit.ids import uuid7

# So that a key that leaks is recognised for what it is.
KEY_PREFIX = "rk_"
KEY_BYTES = 32


class StoreUnknown(Exception):
    """A key was to be limited to a store that is not there."""


class IssuedKey(TypedDict):
    """A new key; it cannot be shown again."""

    client_id: str
    key: str


async def issue_key(engine: AsyncEngine, clock: Clock, name: str, role: Role, store_codes: Sequence[str] | None) -> IssuedKey:
    """Makes a key for a new client, for the given stores or (None) for all. Raises StoreUnknown."""
    async with transaction(engine) as connection:
        store_ids = None if store_codes is None else await _store_ids(connection, store_codes)
        return await create_client(connection, clock, name, role, store_ids)


async def create_client(connection: AsyncConnection, clock: Clock, name: str, role: Role, store_ids: Sequence[str] | None) -> IssuedKey:
    """The same within a transaction of the caller's."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    client_id = uuid7()
    await connection.execute(
        insert(api_clients).values(
            client_id=client_id,
            name=name,
            key_sha256=hashlib.sha256(key.encode()).digest(),
            role=role,
            store_ids=store_ids,
            created_at=clock.now(),
        )
    )
    return {"client_id": client_id, "key": key}


async def revoke_key(engine: AsyncEngine, clock: Clock, client_id: str) -> bool:
    """Ends a client's key; False when there is none to end. Gateways that run refuse it within two seconds."""
    async with transaction(engine) as connection:
        ended = await connection.scalar(
            update(api_clients)
            .where(api_clients.c.client_id == client_id, api_clients.c.revoked_at.is_(None))
            .values(revoked_at=clock.now())
            .returning(api_clients.c.client_id)
        )
    return ended is not None


async def _store_ids(connection: AsyncConnection, codes: Sequence[str]) -> list[str]:
    found = {
        row.code: row.store_id for row in await connection.execute(select(stores.c.code, stores.c.store_id).where(stores.c.code.in_(codes)))
    }
    if unknown := [code for code in codes if code not in found]:
        raise StoreUnknown(f"There is no store with the code {unknown[0]}.")
    return [found[code] for code in codes]
