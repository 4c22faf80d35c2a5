"""ReportService: protobuf in, operation, JSON documents out."""

from kit.problems import Refusal
from kit.rpc import current_actor
from kit.tokens import Actor
from regulars.reporting.v1 import report_service_pb2 as pb
from regulars.reporting.v1.report_service_pb2_grpc import ReportServiceServicer
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
        _admin()
        return pb.ListMetricsResponse(body=self._metrics)

    async def RunQuery(self, request: pb.RunQueryRequest, context: object) -> pb.RunQueryResponse:
        actor = _admin()
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
        except ClickHouseUnavailable:
            raise _away() from None

    async def GetKpis(self, request: pb.GetKpisRequest, context: object) -> pb.GetKpisResponse:
        actor = _admin()
        asked = [
            StoreDay(each.store_id, each.business_day, each.currency) for each in request.store_days if actor.may_act_in(each.store_id)
        ]
        try:
            as_of = await self._freshness.newest()
            found = await get_kpis(self._clickhouse, asked)
        except ClickHouseUnavailable:
            raise _away() from None
        stores = [pb.StoreKpis(store_id=store_id, body=body) for store_id, body in found]
        return pb.GetKpisResponse(stores=stores, as_of=rfc3339(as_of) if as_of else "")


def _admin() -> Actor:
    actor = current_actor()
    if "admin" not in actor.roles:
        raise Refusal("forbidden", 403, "Not allowed", "This needs a key with the role admin.")
    return actor


def _away() -> Refusal:
    return Refusal("reporting_unavailable", 503, "The reports' database is away", "Send it again shortly.")
