"""How the gateway calls a service on behalf of its callers."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import grpc

from gateway.callers import Caller
from gateway.http import Answer
from gateway.lanes import RETRIED_CODES
from kit.problems import Refusal
from kit.rpc import call_metadata, is_serving, refusal_of
from kit.tokens import TokenMinter

READ_SECONDS = 5.0
_AWAY_CODES = RETRIED_CODES | {grpc.StatusCode.DEADLINE_EXCEEDED}

Request = TypeVar("Request")
Response = TypeVar("Response")


class HasBody(Protocol):
    """The answer of a read: a JSON document, ready to be passed on."""

    @property
    def body(self) -> bytes:
        """The document."""


Read = TypeVar("Read", bound=HasBody)


class Service:
    """Calls of one service. `away` makes the refusal that tells a caller that it does not answer."""

    def __init__(self, channel: grpc.aio.Channel, minter: TokenMinter, away: Callable[[], Refusal]) -> None:
        self._channel = channel
        self._minter = minter
        self._away = away

    def token(self, caller: Caller) -> str:
        """The internal token of the caller."""
        client = caller.client
        return self._minter.mint(client.client_id, client.roles, client.stores)

    async def read(
        self, caller: Caller, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Read]", request: Request, seconds: float = READ_SECONDS
    ) -> Answer:
        """The document that a read answers. Raises as `call`."""
        return Answer(200, (await self.call(caller, method, request, seconds)).body)

    async def call(
        self, caller: Caller, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]", request: Request, seconds: float = READ_SECONDS
    ) -> Response:
        """A call on behalf of the caller.

        Raises:
            Refusal: what the service refused with, or 503 when it is away.
        """
        return await self._call_as(self.token(caller), method, request, seconds)

    async def is_serving(self) -> bool:
        """Whether the service answers its health check."""
        return await is_serving(self._channel)

    async def _call_as(
        self, token: str, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]", request: Request, seconds: float
    ) -> Response:
        try:
            return await method(request, timeout=seconds, metadata=call_metadata(token))
        except grpc.aio.AioRpcError as error:
            if refusal := self._refusal(error):
                raise refusal from error
            raise

    def _refusal(self, error: grpc.aio.AioRpcError) -> Refusal | None:
        """What the caller is told of it; None: it is a fault of ours."""
        return refusal_of(error) or (self._away() if error.code() in _AWAY_CODES else None)
