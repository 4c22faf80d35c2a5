"""The log of decided writes: an operation id is answered once, and with the same bytes ever after (api.md, Writes)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kit.db import RawConnection
from kit.problems import FieldError, Refusal, render

# The path of a public request holds an id, never a personal value.
_FIND = """
SELECT operation_id, fingerprint, method, path, status, body, sealed, subject_id::text, member_id::text, decided_at
FROM operations WHERE operation_id = ANY($1::text[])
"""

_STORE = """
INSERT INTO operations (operation_id, fingerprint, method, path, status, body, sealed, subject_id, member_id, decided_at)
SELECT * FROM unnest($1::text[], $2::bytea[], $3::text[], $4::text[], $5::smallint[], $6::bytea[], $7::bool[], $8::uuid[], $9::uuid[],
                     $10::timestamptz[])
ON CONFLICT (operation_id) DO NOTHING
"""


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


class OperationTaken(Exception):
    """Another transaction decided one of the operations at the same time: begin anew, and its answer is there."""


async def find_answers(connection: RawConnection, operation_ids: Sequence[str]) -> dict[str, Answer]:
    """The stored answers among these operations."""
    return {row[0]: Answer(*row) for row in await connection.fetch(_FIND, operation_ids)}


async def store_answers(connection: RawConnection, answers: Sequence[Answer]) -> None:
    """Stores answers in the transaction of their effects, in the order of their ids, so that two groups never wait for each other.

    Raises OperationTaken when one of them is stored already: the caller's transaction must not commit.
    """
    if not answers:
        return
    rows = sorted(answers, key=lambda answer: answer.operation_id)
    status = await connection.execute(
        _STORE,
        [a.operation_id for a in rows],
        [a.fingerprint for a in rows],
        [a.method for a in rows],
        [a.path for a in rows],
        [a.status for a in rows],
        [a.body for a in rows],
        [a.sealed for a in rows],
        [a.subject_id for a in rows],
        [a.member_id for a in rows],
        [a.decided_at for a in rows],
    )
    if status != f"INSERT 0 {len(rows)}":
        raise OperationTaken


def reused(operation_id: str) -> tuple[int, bytes]:
    """The answer to an operation id that was used for another request. It is not stored."""
    refusal = Refusal(
        code="operation_id_reused",
        status=409,
        title="Operation id reused",
        detail="This operation id was used for another request. Send a corrected or new command under a new id.",
        errors=(FieldError("/operation_id", "operation_id_reused", f"{operation_id} is taken."),),
    )
    return refusal.status, render(refusal)
