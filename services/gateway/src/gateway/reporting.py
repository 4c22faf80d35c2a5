"""The reporting service as the gateway sees it: reads on behalf of a caller, and the live figures for everybody who watches."""

from collections.abc import Iterable

import grpc

from gateway.calling import Service
from gateway.problems import reporting_away
from kit.tokens import TokenMinter
from regulars.reporting.v1 import report_service_pb2 as pb
from regulars.reporting.v1.rebuild_service_pb2_grpc import RebuildServiceStub
from regulars.reporting.v1.reconcile_service_pb2_grpc import ReconcileServiceStub
from regulars.reporting.v1.report_service_pb2_grpc import ReportServiceStub

# A little longer than the service works on a report.
REPORT_SECONDS = 65.0
KPI_SECONDS = 5.0


class ReportingService(Service):
    """Calls of the reporting service."""

    def __init__(self, channel: grpc.aio.Channel, minter: TokenMinter) -> None:
        super().__init__(channel, minter, reporting_away)
        self.reports = ReportServiceStub(channel)
        self.rebuilds = RebuildServiceStub(channel)
        self.reconciliation = ReconcileServiceStub(channel)

    async def get_kpis(self, store_days: Iterable[pb.StoreDay]) -> pb.GetKpisResponse:
        """The figures of any stores, on behalf of the gateway, which shows to each client its own. Raises as `call`."""
        token = self._minter.mint("gateway", ("admin",), None)
        return await self._call_as(token, self.reports.GetKpis, pb.GetKpisRequest(store_days=store_days), KPI_SECONDS)
