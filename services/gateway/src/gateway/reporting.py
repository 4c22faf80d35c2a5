"""The reporting service as the gateway sees it: reads on behalf of a caller, and the live figures for everybody who watches."""

from collections.abc import Iterable
from typing import TypeVar

import grpc

from gateway.callers import Caller
from gateway.http import Answer
from gateway.member import AWAY_CODES, READ_SECONDS, HasBody
from gateway.problems import reporting_away
from kit.rpc import call_metadata, is_serving, refusal_of
from kit.tokens import TokenMinter
from regulars.reporting.v1 import report_service_pb2 as pb
from regulars.reporting.v1.rebuild_service_pb2_grpc import RebuildServiceStub
from regulars.reporting.v1.reconcile_service_pb2_grpc import ReconcileServiceStub
from regulars.reporting.v1.report_service_pb2_grpc import ReportServiceStub

# A little longer than the service works on a report.
REPORT_SECONDS = 65.0
KPI_SECONDS = 5.0

Request = TypeVar("Request")
Response = TypeVar("Response")
Read = TypeVar("Read", bound=HasBody)


class ReportingService:
    """Calls of the reporting service."""

    def __init__(self, channel: grpc.aio.Channel, minter: TokenMinter) -> None:
        self.reports = ReportServiceStub(channel)
        self.rebuilds = RebuildServiceStub(channel)
        self.reconciliation = ReconcileServiceStub(channel)
        self._channel = channel
        self._minter = minter

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
            Refusal: what the reporting service refused with, or 503 when it is away.
        """
        client = caller.client
        return await self._call(self._minter.mint(client.client_id, client.roles, client.stores), method, request, seconds)

    async def get_kpis(self, store_days: Iterable[pb.StoreDay]) -> pb.GetKpisResponse:
        """The figures of any stores, on behalf of the gateway, which shows to each client its own. Raises as `call`."""
        token = self._minter.mint("gateway", ("admin",), None)
        return await self._call(token, self.reports.GetKpis, pb.GetKpisRequest(store_days=store_days), KPI_SECONDS)

    async def _call(
        self, token: str, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]", request: Request, seconds: float
    ) -> Response:
        try:
            return await method(request, timeout=seconds, metadata=call_metadata(token))
        except grpc.aio.AioRpcError as error:
            if refusal := refusal_of(error):
                raise refusal from error
            if error.code() in AWAY_CODES:
                raise reporting_away() from error
            raise

    async def is_serving(self) -> bool:
        """Whether the reporting service answers its health check."""
        return await is_serving(self._channel)
