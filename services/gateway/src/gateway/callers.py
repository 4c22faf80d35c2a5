"""Who calls: the API client behind a key, and the request it makes."""

from typing import Literal

import msgspec

Role = Literal["till", "admin"]


class ApiClient(msgspec.Struct, frozen=True, gc=False):
    """The holder of a key. `stores`: ids of the stores it may act in; None: all of them."""

    client_id: str
    name: str
    role: Role
    stores: frozenset[str] | None

    @property
    def roles(self) -> tuple[str, ...]:
        """Its roles as internal tokens name them."""
        return (self.role,)


class Caller(msgspec.Struct, frozen=True, gc=False):
    """One request of a client."""

    client: ApiClient
    request_id: str
    # Its place in the caller's trace (W3C).
    traceparent: str
    # The Idempotency-Key header, where there is one.
    idempotency_key: str | None
