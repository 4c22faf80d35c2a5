"""Bodies of operations."""

from datetime import datetime
from typing import Any

import msgspec


class Operation(msgspec.Struct):
    """What became of a write: `status` and `body` are those of its answer.

    The body of a member file's answer is null, since it holds personal data: `member_id` tells where to read it.
    """

    operation_id: str
    method: str
    path: str
    decided_at: datetime
    status: int
    body: Any
    member_id: str | None = None
