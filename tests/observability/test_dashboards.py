"""Dashboards: whole for Grafana, portable, explained, and asking only for what there is."""

import re
from itertools import combinations

import pytest

from tests.observability.boards import PROMETHEUS, TEMPO, PanelQuery, boards, panels, queries
from tests.observability.queries import OBSERVABILITY, Query

RUNBOOKS = OBSERVABILITY.parents[1] / "docs" / "runbooks"
NAMES = sorted(boards())


def test_the_boards_that_operators_are_promised_are_there() -> None:
    assert [f"regulars-{name}.json" for name in ("business", "events", "fleet", "sale-path", "service")] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_board_is_found_by_a_fixed_uid_and_by_the_others(name: str) -> None:
    board = boards()[name]
    assert f"{board['uid']}.json" == name
    assert board["title"].startswith("Regulars / ")
    assert board["description"]
    assert board["tags"] == ["regulars"]
    assert [link["type"] for link in board["links"]] == ["dashboards"]
    assert "id" not in board, "the number of one installation of Grafana"


@pytest.mark.parametrize("name", NAMES)
def test_panels_say_what_they_show_in_which_unit(name: str) -> None:
    for panel in panels(boards()[name]):
        title = panel["title"]
        assert title
        assert len(panel["description"]) > 5, title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None, title
        assert panel["targets"], title
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), title


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_ids_of_their_own_and_do_not_lie_on_one_another(name: str) -> None:
    board = boards()[name]
    ids = [panel["id"] for panel in (*board["panels"], *panels(board))]
    assert len(set(ids)) == len({id(panel) for panel in (*board["panels"], *panels(board))})
    for one, other in combinations([panel["gridPos"] for panel in board["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
        assert one["x"] + one["w"] <= 24


@pytest.mark.parametrize("name", NAMES)
def test_data_comes_from_whatever_source_is_chosen(name: str) -> None:
    board = boards()[name]
    chosen = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert chosen["datasource"]["query"] == "prometheus"
    for panel in panels(board):
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == sources[0] for source in sources), panel["title"]
        assert sources[0] in (PROMETHEUS, TEMPO), panel["title"]
        assert sources[0] == PROMETHEUS or chosen["traces"]["query"] == "tempo"
    assert all(annotation["datasource"] == PROMETHEUS for annotation in board["annotations"]["list"])
    assert all(variable["datasource"] == PROMETHEUS for variable in chosen.values() if variable["type"] == "query")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_boards_and_runbooks_that_there_are(name: str) -> None:
    uids = {board["uid"] for board in boards().values()}
    urls = list(_urls(boards()[name]))
    assert urls
    for url in urls:
        if board := re.match(r"/d/([a-z-]+)\?", url):
            assert board[1] in uids, url
        elif url != "${runbooks}/${__value.raw}.md":
            page = re.fullmatch(r"\$\{runbooks\}/(\w+\.md)", url)
            assert page, url
            assert (RUNBOOKS / page[1]).exists(), url


@pytest.mark.parametrize("query", list(queries()), ids=str)
def test_a_query_asks_only_for_metrics_and_labels_that_there_are(query: PanelQuery) -> None:
    read = Query(query.filled(rate_interval="5m", shown="6h"))
    assert not read.faults
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= read.labels


def test_a_query_for_what_there_is_not_is_found_out() -> None:
    assert Query("regulars_nothing_total").faults
    assert Query("sum by (till) (rate(regulars_sales_total[5m]))").faults
    assert Query('regulars_sales_total{outcome="lost"}').faults
    assert Query('rate(regulars_http_request_duration_seconds_bucket{le="0.3"}[5m])').faults
    assert Query("histogram_quantile(0.9, sum(rate(regulars_writer_duration_seconds_bucket[5m])))").faults
    assert not Query(
        'histogram_quantile(0.9, sum by (le) (rate(regulars_http_request_duration_seconds_bucket{route="/v1/sales"}[5m])))'
    ).faults


def _urls(of: object) -> list[str]:
    """Every address in a part of a board."""
    match of:
        case dict():
            own = [of["url"]] if isinstance(of.get("url"), str) and of["url"] else []
            return own + [url for value in of.values() for url in _urls(value)]
        case list():
            return [url for value in of for url in _urls(value)]
        case _:
            return []
