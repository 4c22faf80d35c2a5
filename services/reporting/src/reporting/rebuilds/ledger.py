"""The owning services' ledgers, told as events."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias

import grpc

from kit.rpc import call_metadata, refusal_of
from regulars.member.v1 import export_service_pb2 as pb
from regulars.member.v1.export_service_pb2_grpc import ExportServiceStub
from reporting.facts.rules import Fact

PAGE_SIZE = 5_000
PAGE_SECONDS = 60.0
PAUSE_SECONDS = 0.5
# How long the member service may be away, as when it is restarted.
PATIENCE_SECONDS = 120.0
ExportPage: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[pb.ExportEventsRequest, pb.ExportEventsResponse]"

_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


class LedgerUnavailable(Exception):
    """The service whose ledger it is does not answer."""


class Rights:
    """The token of whoever asked last. A token lives for minutes and an export may take longer: each who asks brings a new one."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.are_awaited = False
        self._renewed = asyncio.Event()

    def renew(self, token: str) -> None:
        """Gives a newer token."""
        self.token = token
        self._renewed.set()

    async def after(self, token: str) -> None:
        """Returns when there is another than `token`, which has expired."""
        self.are_awaited = True
        try:
            while self.token == token:
                self._renewed.clear()
                await self._renewed.wait()
        finally:
            self.are_awaited = False


async def export_member(channel: grpc.aio.Channel, rights: Rights) -> AsyncIterator[Sequence[Fact]]:
    """Every fact of the member service's ledgers, page by page.

    Raises:
        LedgerUnavailable: it was away for too long.
        Refusal: whoever asks may not.
    """
    export = ExportServiceStub(channel).ExportEvents
    page_token = ""
    while True:
        page = await _page(export, rights, pb.ExportEventsRequest(page_size=PAGE_SIZE, page_token=page_token))
        yield [Fact(event.event_id, event.topic, event.key, event.type, event.payload, event.recorded_at_unix_us) for event in page.events]
        page_token = page.next_page_token
        if not page_token:
            return


async def _page(export: ExportPage, rights: Rights, request: pb.ExportEventsRequest) -> pb.ExportEventsResponse:
    clock = asyncio.get_running_loop().time
    until = clock() + PATIENCE_SECONDS
    while True:
        token = rights.token
        try:
            return await export(request, timeout=PAGE_SECONDS, metadata=call_metadata(token))
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if refusal is not None and refusal.status == 401:
                await rights.after(token)
                until = clock() + PATIENCE_SECONDS
                continue
            if refusal is not None:
                raise refusal from error
            if error.code() not in _AWAY or clock() > until:
                raise LedgerUnavailable(error.code().name) from error
        await asyncio.sleep(PAUSE_SECONDS)
