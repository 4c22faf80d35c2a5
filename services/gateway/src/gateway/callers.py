"""Who calls: the API client behind a key, and the request it makes."""

from dataclasses import dataclass
from typing import Literal

from kit.telemetry import TraceContext

Role = Literal["till", "admin"]


@dataclass(frozen=True, slots=True)
class ApiClient:
    """The holder of a key. `stores`: ids of the stores it may act in; None: all of them."""

    client_id: str
    name: str
    role: Role
    stores: frozenset[str] | None

    @property
    def roles(self) -> tuple[str, ...]:
        """Its roles as internal tokens name them."""
        return (self.role,)


@dataclass(frozen=True, slots=True)
class Caller:
    """One request of a client."""

    client: ApiClient
    request_id: str
    trace: TraceContext
    # The Idempotency-Key header, where there is one.
    idempotency_key: str | None
