"""The audit log is written before the act: what was asked is known even where its outcome is not."""

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit.tables import audit_log
from gateway.callers import Caller
from gateway.directory import DATABASE_FAULTS
from gateway.problems import database_away
from gateway.services import Services
from kit.clock import Clock
from kit.db import transaction
from kit.ids import uuid7


async def note_request(services: Services, caller: Caller, method: str, path: str, operation_id: str = "") -> None:
    """Notes that an admin asks for this. Raises Refusal (503) when it cannot be noted; then it must not be done."""
    try:
        async with transaction(services.engine) as connection:
            await note(connection, services.clock, caller, method, path, operation_id)
    except DATABASE_FAULTS as error:
        raise database_away() from error


async def note(connection: AsyncConnection, clock: Clock, caller: Caller, method: str, path: str, operation_id: str) -> None:
    """The same within the transaction of the act."""
    await connection.execute(
        insert(audit_log).values(
            entry_id=uuid7(),
            at=clock.now(),
            client_id=caller.client.client_id,
            method=method,
            path=path,
            operation_id=operation_id,
            request_id=caller.request_id,
        )
    )
