"""Every figure is defined once, and completely (REP-01)."""

import json
import re

import pytest

from reporting.metrics.rules import DIMENSIONS, FIGURES, METRICS, Metric
from reporting.queries.operations import list_metrics

# api.md, "A report query".
KEYS = [
    "gross_sales_minor",
    "net_sales_minor",
    "returns_minor",
    "receipts",
    "items",
    "average_receipt_minor",
    "items_per_receipt",
    "repurchase_rate_bp",
    "buyers",
    "new_members",
    "returning_buyers",
    "active_members",
    "points_issued",
    "points_spent",
    "points_expired",
    "points_outstanding",
]


def test_the_metrics_and_dimensions_are_those_of_the_api() -> None:
    assert sorted(METRICS) == sorted(KEYS)
    # The two more tell apart what must not be added up.
    assert set(DIMENSIONS) == {
        *("store", "day", "week", "month", "category", "sku", "tier", "channel", "staff"),
        *("currency", "programme"),
    }


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.key)
def test_a_definition_says_everything_in_both_languages(metric: Metric) -> None:
    for words in (metric.name, metric.meaning, metric.refunds, metric.day):
        assert re.search("[\u4e00-\u9fff]", words.zh)
        assert re.fullmatch("[ -~÷]+", words.en)
    assert metric.source
    assert metric.unit in {"minor", "count", "decimal", "basis_points", "points"}
    assert metric.key.endswith("_minor") is (metric.unit == "minor")


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.key)
def test_a_metric_uses_the_figures_it_names(metric: Metric) -> None:
    assert set(re.findall(r"\{(\w+)\}", metric.sql)) == set(metric.figures)
    assert set(metric.figures) <= FIGURES.keys()


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.key)
def test_what_a_metric_is_not_defined_for_has_a_reason(metric: Metric) -> None:
    assert metric.not_by.keys() <= DIMENSIONS.keys()
    assert all(len(reason) > 20 for reason in metric.not_by.values())
    assert {*metric.dimensions, *metric.not_by} == set(DIMENSIONS)
    assert {"week", "month", "tier"} <= set(metric.dimensions)


def test_the_page_lists_all_of_it() -> None:
    page = json.loads(list_metrics())
    assert [each["key"] for each in page["items"]] == list(METRICS)
    assert [each["key"] for each in page["dimensions"]] == list(DIMENSIONS)
    rate = next(each for each in page["items"] if each["key"] == "repurchase_rate_bp")
    assert rate["name"] == {"zh": "复购率", "en": "Repurchase rate"}
    assert rate["not_by"][-1] == {"dimension": "day", "reason": METRICS["repurchase_rate_bp"].not_by["day"]}
