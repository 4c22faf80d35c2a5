"""ReportService: protobuf in, operation, JSON documents out."""

from regulars.reporting.v1 import report_service_pb2 as pb
from regulars.reporting.v1.report_service_pb2_grpc import ReportServiceServicer
from reporting.access import away, require_admin
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable
from reporting.kpis.operations import StoreDay, get_kpis
from reporting.queries.operations import Freshness, list_metrics, rfc3339, run_query
from reporting.queries.rules import Asked, Filter, Sort


class ReportServicer(ReportServiceServicer):
    """Serves ReportService."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._freshness = Freshness(clickhouse)
        self._metrics = list_metrics()

    async def ListMetrics(self, request: pb.ListMetricsRequest, context: object) -> pb.ListMetricsResponse:
        require_admin()
        return pb.ListMetricsResponse(body=self._metrics)

    async def RunQuery(self, request: pb.RunQueryRequest, context: object) -> pb.RunQueryResponse:
        actor = require_admin()
        asked = Asked(
            tuple(request.metrics),
            tuple(request.dimensions),
            request.from_day,
            request.to_day,
            request.compare,
            tuple(Filter(each.field, each.op, tuple(each.values)) for each in request.filters),
            tuple(Sort(each.field, each.order or "asc") for each in request.sort),
            request.page_size,
            request.page_token,
        )
        try:
            return pb.RunQueryResponse(body=await run_query(self._clickhouse, self._freshness, actor, asked))
        except ClickHouseUnavailable as error:
            raise away(error) from None

    async def GetKpis(self, request: pb.GetKpisRequest, context: object) -> pb.GetKpisResponse:
        actor = require_admin()
        asked = [
            StoreDay(each.store_id, each.business_day, each.currency) for each in request.store_days if actor.may_act_in(each.store_id)
        ]
        try:
            as_of = await self._freshness.newest()
            found = await get_kpis(self._clickhouse, asked)
        except ClickHouseUnavailable as error:
            raise away(error) from None
        stores = [pb.StoreKpis(store_id=store_id, body=body) for store_id, body in found]
        return pb.GetKpisResponse(stores=stores, as_of=rfc3339(as_of) if as_of else "")
