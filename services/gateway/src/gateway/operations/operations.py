"""The gateway's own writes: decided once, and answered with the same bytes ever after (api.md, Writes)."""

from collections.abc import Awaitable, Callable

import msgspec
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.audit.operations import note
from gateway.directory import DATABASE_FAULTS
from gateway.http import RETRIED_STATUSES, Answer
from gateway.member import Write
from gateway.operations.schemas import Operation
from gateway.operations.tables import operations
from gateway.problems import database_away
from gateway.services import Services
from kit.db import reading, transaction
from kit.problems import FieldError, Refusal
from regulars.member.v1 import wallet_service_pb2 as pb

Act = Callable[[AsyncConnection], Awaitable[msgspec.Struct]]


class _TakenMeanwhile(Exception):
    """Another transaction decided the operation at the same time."""


async def decide_once(services: Services, write: Write, act: Act) -> Answer:
    """The stored answer to a write, or that of `act`, which is done, stored and noted in the audit log in one transaction.

    `act` makes what was asked for, or raises a Refusal before it changes anything; both are answers, and stored, unless the Refusal
    says that nothing was decided (503).
    """
    try:
        while True:
            try:
                async with transaction(services.engine) as connection:
                    return (
                        await _stored(connection, write)
                        or await _taken_by_the_member_service(services, write)
                        or await _decide(connection, services, write, act)
                    )
            except _TakenMeanwhile:
                continue
    except DATABASE_FAULTS as error:
        raise database_away() from error


async def _stored(connection: AsyncConnection, write: Write) -> Answer | None:
    row = (await connection.execute(select(operations).where(operations.c.operation_id == write.operation_id))).one_or_none()
    if row is None:
        return None
    if row.fingerprint != write.fingerprint:
        return _reused(write)
    return Answer(row.status, row.body, replayed=True)


async def _taken_by_the_member_service(services: Services, write: Write) -> Answer | None:
    """An operation id is unique in the chain, whichever service decided it."""
    member = services.member
    try:
        await member.read(write.caller, member.wallet.GetOperation, pb.GetOperationRequest(operation_id=write.operation_id))
    except Refusal as refusal:
        if refusal.code == "operation_not_found":
            return None
        raise
    return _reused(write)


def _reused(write: Write) -> Answer:
    return Answer.problem(
        Refusal(
            "operation_id_reused",
            409,
            "Operation id reused",
            "This operation id was used for another request. Send a corrected or new command under a new id.",
            [FieldError("/operation_id", "operation_id_reused", f"{write.operation_id} is taken.")],
        )
    )


async def _decide(connection: AsyncConnection, services: Services, write: Write, act: Act) -> Answer:
    try:
        answer = Answer(201, msgspec.json.encode(await act(connection)))
    except Refusal as refusal:
        if refusal.status in RETRIED_STATUSES:
            raise
        answer = Answer.problem(refusal)
    stored = await connection.scalar(
        insert(operations)
        .values(
            operation_id=write.operation_id,
            fingerprint=write.fingerprint,
            method=write.method,
            path=write.path,
            status=answer.status,
            body=answer.body,
            decided_at=services.clock.now(),
        )
        .on_conflict_do_nothing()
        .returning(operations.c.operation_id)
    )
    if stored is None:
        raise _TakenMeanwhile
    await note(connection, services.clock, write.caller, write.method, write.path, write.operation_id)
    return answer


async def find_operation(services: Services, operation_id: str) -> Answer | None:
    """What became of a write that the gateway itself decided; None when it decided none under this id."""
    try:
        async with reading(services.engine) as connection:
            row = (await connection.execute(select(operations).where(operations.c.operation_id == operation_id))).one_or_none()
    except DATABASE_FAULTS as error:
        raise database_away() from error
    if row is None:
        return None
    found = Operation(operation_id, row.method, row.path, row.decided_at, row.status, msgspec.Raw(row.body))
    return Answer(200, msgspec.json.encode(found))
