"""The log of decided writes: an operation id is answered once, and with the same bytes ever after (api.md, Writes)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from kit.db import RawConnection
from kit.problems import FieldError, Refusal, render

# The columns of an Answer, in its order.
ANSWER = "operation_id, fingerprint, method, path, status, body, sealed, subject_id::text, member_id::text, decided_at"

_FIND = f"SELECT {ANSWER} FROM operations WHERE operation_id = ANY($1::text[])"

_COLUMNS = (
    "operation_id", "fingerprint", "method", "path", "status", "body", "sealed", "subject_id", "member_id", "decided_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """One decided write. `body` is sealed under the data key of `member_id` where `sealed` is set."""

    operation_id: str
    fingerprint: bytes
    method: str
    path: str
    status: int
    body: bytes
    sealed: bool
    subject_id: str | None
    member_id: str | None
    decided_at: datetime

    def id_of(self) -> str:
        """The operation's id, to sort by."""
        return self.operation_id

    def row(self) -> tuple[object, ...]:
        """Its columns, in the table's order."""
        return (
            self.operation_id, self.fingerprint, self.method, self.path, self.status, self.body, self.sealed, self.subject_id,
            self.member_id, self.decided_at,
        )  # fmt: skip


class OperationTaken(Exception):
    """Another transaction decided one of the operations at the same time: begin anew, and its answer is there."""


async def find_answers(connection: RawConnection, operation_ids: Sequence[str]) -> dict[str, Answer]:
    """The stored answers among these operations."""
    return {row[0]: Answer(*row) for row in await connection.fetch(_FIND, operation_ids)}


async def store_answers(connection: RawConnection, answers: Sequence[Answer]) -> None:
    """Stores answers in the transaction of their effects, in the order of their ids, so that two groups never wait for each other.

    Raises OperationTaken when one of them is stored already; the transaction is over then.
    """
    if not answers:
        return
    records = [answer.row() for answer in sorted(answers, key=Answer.id_of)]
    try:
        await connection.copy_records_to_table("operations", columns=_COLUMNS, records=records)
    except asyncpg.UniqueViolationError as error:
        raise OperationTaken from error


OPERATION_ID_REUSED = "operation_id_reused"


def reused(operation_id: str) -> tuple[int, bytes]:
    """The answer to an operation id that was used for another request. It is not stored."""
    refusal = Refusal(
        code=OPERATION_ID_REUSED,
        status=409,
        title="Operation id reused",
        detail="This operation id was used for another request. Send a corrected or new command under a new id.",
        errors=(FieldError("/operation_id", OPERATION_ID_REUSED, f"{operation_id} is taken."),),
    )
    return refusal.status, render(refusal)
