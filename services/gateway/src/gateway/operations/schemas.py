"""Bodies of operations."""

from datetime import datetime
from typing import Any

import msgspec


class Operation(msgspec.Struct):
    """What became of a write: `status` and `body` are those of its answer."""

    operation_id: str
    method: str
    path: str
    decided_at: datetime
    status: int
    body: Any
