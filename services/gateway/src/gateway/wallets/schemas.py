"""Bodies of reconciliation (对账)."""

from typing import Annotated

import msgspec
from msgspec import Meta


class Reconcile(msgspec.Struct, forbid_unknown_fields=True):
    """Which page of wallets to prove; with `rebuild`, the cached sums are set right."""

    cursor: Annotated[str, Meta(max_length=500, extra_json_schema={"pattern": "^[^\\u0000]*$"})] | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000
    rebuild: bool = False


class WalletDifference(msgspec.Struct):
    """A cached figure that its entries do not prove."""

    member_id: str
    programme_id: str
    figure: str
    subject_id: str | None
    cached: str
    proven: str
    rebuilt: bool


class Reconciled(msgspec.Struct):
    """What proving a page of wallets found."""

    wallets: int
    differences: list[WalletDifference]
    next_cursor: str | None
