"""Keys, stores and tills in memory, as every request needs them; the database is the truth and is polled.

Every change in the database moves `directory_state.version` (by triggers, so a hand-written UPDATE counts too). A poll every two
seconds, and at once when something asked for is not there, reads the version and, when it moved, the tables. So a revoked key works
for two seconds at most, and what was created a moment ago is found.
"""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

import asyncpg
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.api_clients.tables import api_clients
from gateway.callers import ApiClient, Role
from gateway.problems import database_away
from gateway.stores.tables import directory_state, stores, tills
from kit.db import ConnectionLost, reading, transaction
from regulars.member.v1 import wallet_service_pb2 as pb

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
# What a database that is away raises.
DATABASE_FAULTS = (
    SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError, ConnectionLost,
)  # fmt: skip


@dataclass(slots=True)
class _State:
    """One reading of the tables."""

    version: int = 0
    clients: dict[bytes, ApiClient] = field(default_factory=dict)
    holders: set[ApiClient] = field(default_factory=set)
    stores: dict[str, pb.StoreContext] = field(default_factory=dict)
    # With the till known, by store and till.
    tills: dict[tuple[str, str], pb.StoreContext] = field(default_factory=dict)


class Directory:
    """Finds API clients by the hash of their key, and stores by id."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._state = _State()
        self._lock = asyncio.Lock()
        self._readings = 0
        self._away = False

    def known_client(self, key_sha256: bytes) -> ApiClient | None:
        """The client whose key has this SHA-256, if it is in memory."""
        return self._state.clients.get(key_sha256)

    async def find_client(self, key_sha256: bytes) -> ApiClient | None:
        """The same, looked for in the database; None when there is none or it was revoked. Raises Refusal (503) when it is away."""
        await self.catch_up()
        return self._state.clients.get(key_sha256)

    def known_store(self, store_id: str, till_id: str) -> pb.StoreContext | None:
        """What a command carries of its store and till, if both are in memory."""
        return self._state.tills.get((store_id, till_id))

    async def find_store(self, store_id: str, till_id: str) -> pb.StoreContext | None:
        """The same, looked for in the database, for the refusal of an unknown one is stored; None for an unknown store.

        Raises Refusal (503) when the database is away.
        """
        await self.catch_up()
        return self._state.tills.get((store_id, till_id)) or self._state.stores.get(store_id)

    def stores(self) -> Collection[pb.StoreContext]:
        """Every store in memory."""
        return self._state.stores.values()

    def holds(self, client: ApiClient) -> bool:
        """Whether the client's key is good, with the same rights, as far as is known: for what lasts longer than a request."""
        return client in self._state.holders

    async def catch_up(self) -> None:
        """Returns when the state is as of this call or later. Any number of callers share one reading of the database."""
        wanted = self._readings + 1
        async with self._lock:
            if self._readings < wanted:
                self._readings = wanted
                await self._read_if_moved()
        if self._away:
            raise database_away()

    async def poll(self) -> None:
        """Keeps the state fresh until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            async with self._lock:
                self._readings += 1
                await self._read_if_moved()

    async def _read_if_moved(self) -> None:
        try:
            async with reading(self._engine) as connection:
                version = await connection.scalar(select(directory_state.c.version))
            if version != self._state.version:
                self._state = await self._read()
        except DATABASE_FAULTS as error:
            if not self._away:
                log.warning("the database is away; serving what is known", extra={"reason": type(error).__name__})
            self._away = True
        else:
            if self._away:
                log.info("the database is back")
            self._away = False

    async def _read(self) -> _State:
        # One snapshot: a version newer than the rows would hide the next change.
        async with transaction(self._engine, snapshot=True) as connection:
            state = _State(version=await connection.scalar(select(directory_state.c.version)) or 0)
            for client in await connection.execute(select(api_clients).where(api_clients.c.revoked_at.is_(None))):
                scope = None if client.store_ids is None else frozenset(client.store_ids)
                state.clients[client.key_sha256] = ApiClient(client.client_id, client.name, cast("Role", client.role), scope)
            state.holders.update(state.clients.values())
            for store in await connection.execute(select(stores)):
                state.stores[store.store_id] = pb.StoreContext(
                    store_id=store.store_id,
                    store_code=store.code,
                    zone=store.zone,
                    currency=store.currency,
                    programme_id=store.programme_id,
                    day_cut_over_minutes=store.day_cut_over_minutes,
                )
            for till in await connection.execute(select(tills.c.till_id, tills.c.store_id)):
                context = pb.StoreContext(till_known=True)
                context.MergeFrom(state.stores[till.store_id])
                state.tills[till.store_id, till.till_id] = context
        return state
