"""Every query of every dashboard and every rule, asked of a real Prometheus that watches a real system in which things happen."""

import math
from collections.abc import Iterator

import pytest

from kit.ids import uuid7
from regulars_cli.up.kafka import free_ports
from tests.integration.shop import Till, lines_of
from tests.integration.system import System, running_system, wait_until
from tests.observability.boards import PanelQuery, queries
from tests.observability.queries import rules
from tests.observability.watching import Prometheus, watching

pytestmark = pytest.mark.timeout(300)

# What is empty where all is well, and why: by board and panel.
EMPTY = {
    ("regulars-fleet.json", "Firing alerts · 告警"): "no alert fires",
    ("regulars-fleet.json", "Last backup · 备份"): "the part that backs up is not started here",
    ("regulars-fleet.json", "Lost if a disk failed now (RPO)"): "likewise",
    ("regulars-fleet.json", "Free space of volumes · 磁盘"): "a kubelet's figures",
    **{(board, "annotation Firing alerts"): "no alert fires" for board in {query.board for query in queries()}},
}
# What there may or may not be: a call that found the other side not yet started; the sales of a week ago.
EITHER = ("Calls between services that fail",)
NOT_YET = "offset 1w"
# What fires also because the machine that runs tests has much else to do.
SLOWNESS = {"RegularsSaleLatencyBudgetBurn", "RegularsFreshnessBudgetBurn", "RegularsEventLoopLag", "RegularsPoolExhausted"}


class Shopping:
    """A morning in a shop, again and again: sales, retries, refusals, returns, points, reports."""

    def __init__(self, system: System) -> None:
        self._admin = system.api(system.key("admin"))
        self._till = Till(system.api(system.key("till")), system.store_id, system.till_id)

    def go_on(self) -> None:
        """One of everything."""
        till, admin = self._till, self._admin
        member_id = till.sign_up()
        admin.post(f"/v1/members/{member_id}/points:adjust", {"operation_id": uuid7(), "points": 500, "reason": "welcome"})
        sale = till.sell(member_id, points=100)
        again = till.sale(member_id)
        till.api.post("/v1/sales", again)
        assert till.api.post("/v1/sales", again)["operation_id"] == again["operation_id"]
        till.api.refused("/v1/sales", till.sale(member_id, lines_of("900.00"), points=80_000))
        till.reverse(sale, (1, "1"))
        till.api.refused(f"/v1/members/{uuid7()}", None, "GET")
        admin.post("/v1/reports/query", {"metrics": ["receipts"], "dimensions": ["store"], "from": "2026-01-01", "to": "2027-01-01"}, 200)
        admin.post("/v1/reports:reconcile", {}, 200)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shopping, Prometheus]]:
    ops_port = free_ports(1)[0]
    with running_system(ops_port=ops_port) as system, watching(tmp_path_factory.mktemp("watched") / "prometheus", system.ops) as prometheus:
        yield Shopping(system), prometheus


def test_every_panel_and_every_recorded_series_shows_something(watched: tuple[Shopping, Prometheus]) -> None:
    shopping, prometheus = watched
    wanted = {str(query): _filled(query) for query in queries() if _is_always_there(query)}
    wanted |= {rule["record"]: rule["record"] for rule in rules() if "record" in rule}

    def all_are_there() -> bool:
        shopping.go_on()
        for name in [name for name, text in wanted.items() if _shows(prometheus, text)]:
            del wanted[name]
        return not wanted

    try:
        wait_until(all_are_there, "every query shows something", seconds=150)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), "These show nothing:", *wanted])) from error


def test_what_is_empty_where_all_is_well_is_named_for_a_panel_that_there_is_and_is_empty(watched: tuple[Shopping, Prometheus]) -> None:
    _, prometheus = watched
    named = {(query.board, query.panel): query for query in queries() if (query.board, query.panel) in EMPTY}
    assert set(named) == set(EMPTY)
    assert [str(query) for query in named.values() if _shows(prometheus, _filled(query))] == []


def test_rules_are_evaluated_and_no_alert_fires_where_all_is_well(watched: tuple[Shopping, Prometheus]) -> None:
    _, prometheus = watched
    wait_until(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()), "every rule is evaluated", seconds=20)
    assert {rule["name"] for rule in prometheus.rules() if rule.get("state") == "firing"} <= SLOWNESS
    assert {target["health"] for target in prometheus.targets()} == {"up"}


def _is_always_there(query: PanelQuery) -> bool:
    return (query.board, query.panel) not in EMPTY and query.panel not in EITHER and NOT_YET not in query.text


def _filled(query: PanelQuery) -> str:
    return query.filled(rate_interval="30s", shown="5m")


def _shows(prometheus: Prometheus, text: str) -> bool:
    return any(not math.isnan(value) for value in prometheus.values(text))
