"""Rules and alerts: valid, proven to fire and to keep still, and each with a page that says what to do."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.programs import program
from tests.observability.queries import OBSERVABILITY, RULES, Query, rules

TESTS = sorted((OBSERVABILITY / "tests").glob("*.yaml"))
RUNBOOKS = OBSERVABILITY.parents[1] / "docs" / "runbooks"
HEALTHY = "healthy.yaml"
SECTIONS = ("What users see", "What it means", "Look first", "Mend", "Prevent", "Tried")


def _alerts() -> list[Mapping[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def _expectations(path: Path) -> Iterator[Mapping[str, Any]]:
    for case in yaml.safe_load(path.read_text())["tests"]:
        yield from case["alert_rule_test"]


def _promtool(*arguments: str | Path) -> None:
    done = subprocess.run((program("promtool"), *arguments), cwd=OBSERVABILITY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    _promtool("check", "config", "prometheus.yml")
    _promtool("check", "rules", *RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    _promtool("test", "rules", path)


def test_every_alert_is_seen_to_fire_with_each_severity() -> None:
    fired = {
        (expected["alertname"], alert["exp_labels"]["severity"])
        for path in TESTS
        for expected in _expectations(path)
        for alert in expected["exp_alerts"]
    }
    assert fired == {(alert["alert"], alert["labels"]["severity"]) for alert in _alerts()}


def test_every_alert_keeps_still_where_all_is_well() -> None:
    silent = {each["alertname"] for each in _expectations(OBSERVABILITY / "tests" / HEALTHY) if not each["exp_alerts"]}
    assert silent == {alert["alert"] for alert in _alerts()}


def test_every_alert_says_what_users_see_and_where_to_read_on() -> None:
    for alert in _alerts():
        name, annotations = alert["alert"], alert["annotations"]
        assert re.fullmatch(r"Regulars[A-Z]\w+", name)
        assert alert["labels"]["severity"] in ("page", "ticket"), name
        assert set(annotations) == {"summary", "description", "runbook_url"}, name
        assert annotations["runbook_url"] == f"docs/runbooks/{name}.md"
        assert "$" not in annotations["summary"], f"{name}: figures are for the description"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    names = {alert["alert"] for alert in _alerts()}
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == names | {"README"}
    overview = (RUNBOOKS / "README.md").read_text()
    for name in names:
        text = (RUNBOOKS / f"{name}.md").read_text()
        assert text.startswith(f"# {name}\n"), name
        assert tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) == SECTIONS, name
        assert f"({name}.md)" in overview, name


def test_rules_ask_only_for_metrics_and_labels_that_there_are() -> None:
    for rule in rules():
        query = Query(rule["expr"])
        name = rule.get("alert") or rule["record"]
        assert not query.faults, f"{name}: {query.faults}"
        # What an alert says of its labels is there to be said.
        said = set(re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", ""))))
        assert said <= query.labels | set(rule.get("labels", {})), name


def test_queries_of_the_pages_ask_only_for_metrics_and_labels_that_there_are() -> None:
    pages = [*RUNBOOKS.glob("*.md"), RUNBOOKS.parent / "slo.md"]
    asked = [
        (page.name, text) for page in pages for text in re.findall(r"^ *```promql\n(.*?)```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert len(asked) > 10
    for page, text in asked:
        assert not Query(text).faults, f"{page}: {text}"
