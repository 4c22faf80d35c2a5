"""The dashboards as Grafana reads them: their panels and the queries in them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.observability.queries import OBSERVABILITY

Json = dict[str, Any]

PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
TEMPO = {"type": "tempo", "uid": "${traces}"}

# What Grafana puts in for its variables: here, as it does where all is chosen.
_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?::\w+)?\}")
_GIVEN = {"namespace": ".*", "service": ".*", "part": ".*", "instance": ".*"}


@dataclass(frozen=True)
class PanelQuery:
    """A query of a panel, and where it is."""

    board: str
    panel: str
    text: str
    legend: str

    def filled(self, *, rate_interval: str, shown: str) -> str:
        """As Prometheus is asked it."""

        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            return {"__rate_interval": rate_interval, "__interval": "15s", "__range": shown, **_GIVEN}[name]

        return _VARIABLE.sub(value, self.text)

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}: {self.text}"


@cache
def boards() -> Mapping[str, Json]:
    """Every dashboard, by the name of its file."""
    return {path.name: json.loads(path.read_text()) for path in sorted((OBSERVABILITY / "dashboards").glob("*.json"))}


def panels(board: Json) -> Iterator[Json]:
    """Every panel but the rows, also those in a row that is folded."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries() -> Iterator[PanelQuery]:
    """Every query for Prometheus, of panels and of annotations."""
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                if target["datasource"] == PROMETHEUS:
                    yield PanelQuery(name, panel["title"], target["expr"], target["legendFormat"])
        for annotation in board["annotations"]["list"]:
            texts = f"{annotation['titleFormat']} {annotation['textFormat']}"
            yield PanelQuery(name, f"annotation {annotation['name']}", annotation["expr"], texts)
