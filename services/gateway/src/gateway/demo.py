"""A demo chain: three stores with tills in two countries, and two keys."""

from typing import TypedDict

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.api_clients.operations import create_client
from gateway.api_clients.tables import api_clients
from gateway.callers import Role
from gateway.stores.tables import stores, tills
from kit.clock import Clock
from kit.db import transaction
from kit.ids import uuid7

STORES = (
    {"code": "S001", "name": "Wangjing", "zone": "Asia/Shanghai", "currency": "CNY", "programme_id": "demo"},
    {"code": "S002", "name": "Zhongguancun", "zone": "Asia/Shanghai", "currency": "CNY", "programme_id": "demo"},
    {"code": "ONLINE-UK", "name": "Online UK", "zone": "Europe/London", "currency": "GBP", "programme_id": "online-retail"},
)
TILLS = ("T01", "T02")
ROLES: tuple[Role, Role] = ("till", "admin")


class Demo(TypedDict):
    """What `seed-demo` prints. A key is there only when it was made just now: it cannot be shown again."""

    till_key: str | None
    admin_key: str | None
    store_id: str
    till_id: str


async def seed_demo(engine: AsyncEngine, clock: Clock, *, new_keys: bool) -> Demo:
    """Makes what is missing of the demo chain; with `new_keys`, ends the demo's keys and makes new ones."""
    async with transaction(engine) as connection:
        for store in STORES:
            await connection.execute(
                insert(stores)
                .values(store_id=uuid7(), day_cut_over_minutes=0, created_at=clock.now(), **store)
                .on_conflict_do_nothing(index_elements=[stores.c.code])
            )
            store_id = await connection.scalar(select(stores.c.store_id).where(stores.c.code == store["code"]))
            for code in TILLS:
                await connection.execute(
                    insert(tills)
                    .values(till_id=uuid7(), store_id=store_id, code=code, name=f"Till {code}", created_at=clock.now())
                    .on_conflict_do_nothing(index_elements=[tills.c.store_id, tills.c.code])
                )
        till_key, admin_key = [await _key(connection, clock, role, new_keys) for role in ROLES]
        first = (
            await connection.execute(
                select(tills.c.store_id, tills.c.till_id).join(stores).where(stores.c.code == STORES[0]["code"], tills.c.code == TILLS[0])
            )
        ).one()
    return {"till_key": till_key, "admin_key": admin_key, "store_id": first.store_id, "till_id": first.till_id}


async def _key(connection: AsyncConnection, clock: Clock, role: Role, new_keys: bool) -> str | None:  # noqa: FBT001
    name = f"demo-{role}"
    held = (api_clients.c.name == name) & api_clients.c.revoked_at.is_(None)
    if new_keys:
        await connection.execute(update(api_clients).where(held).values(revoked_at=clock.now()))
    elif await connection.scalar(select(api_clients.c.client_id).where(held)) is not None:
        return None
    return (await create_client(connection, clock, name, role, None))["key"]
