"""The registry bounds what every label may be, and a process exports the metrics of its own part."""

from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kit import metrics
from kit.metrics import OTHER, Metric, all_metrics, exported, live

# What a Prometheus server need not fear from one process, whatever is sent to it.
MOST_SERIES = 6_000
# What nobody who made the registry had thought of.
STRANGE = ["", "a" * 500, 'x"y', "x\ny", "/v1/sales/01a201a4-a414-7000-8ebe-0feb8a8dcc59", "13800138000@x", "TRACE", "299", "王芳", "-1"]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test begins without series, and leaves those that were there before to whoever holds them."""
    labelled = [metric for metric in all_metrics() if metric.labels]
    labels = {label for metric in labelled for label in metric.labels}
    kept = [(metric, dict(metric._children), set(metric._series), dict(metric._parent._metrics)) for metric in labelled]
    known = [(label, set(label._known)) for label in labels]
    for metric in labelled:
        metric.forget()
    for label in labels:
        label.forget()
    yield
    for metric, children, series, inner in kept:
        metric._children, metric._series, metric._parent._metrics = children, series, inner  # type: ignore[assignment]  # of its own kind
    for label, values in known:
        label._known = values


def exported_series(service: str, part: str) -> dict[str, set[tuple[str, ...]]]:
    """The label values of every metric that a process exports now, by its name, without the bounds of buckets."""
    text = generate_latest(exported(service, part, "0.1.0")).decode()
    labels = {metric.name: [label.name for label in metric.labels] for metric in all_metrics()}
    series: dict[str, set[tuple[str, ...]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            series.setdefault(name, set()).add(tuple(sample.labels[label] for label in labels.get(name, ())))
    return series


def test_every_name_says_its_unit_and_every_label_is_bounded() -> None:
    names = [metric.name for metric in all_metrics()]
    assert len(names) == len(set(names))
    for metric in all_metrics():
        assert metric.name.startswith("regulars_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.meaning.endswith("."), metric.name
        assert set(metric.parts) <= set(metrics.PARTS), metric.name
        for label in metric.labels:
            assert 0 < label.limit <= 200, label.name
            assert label.meaning, label.name


def test_a_process_never_has_more_series_than_the_registry_allows() -> None:
    for service, part in (("gateway", "serve"), ("member", "all"), ("reporting", "all")):
        parts = {name for name in metrics.PARTS if name.startswith(service) and part in ("all", name.split("-")[1])}
        most = 0
        for metric in all_metrics():
            if not parts.isdisjoint(metric.parts):
                # Of a histogram: its buckets, the last one, the sum and the count.
                samples = len(metric.buckets) + 3 if metric.kind == "histogram" else 1
                values = 1
                for label in metric.labels:
                    values *= label.limit + 1
                most += samples * min(values, metric.most if metric.labels else 1)
        assert most <= MOST_SERIES, service


@pytest.mark.parametrize("metric", [each for each in all_metrics() if each.labels], ids=lambda metric: metric.name)
def test_values_that_nobody_declared_are_other(metric: Metric[metrics.Child]) -> None:
    for strange in STRANGE:
        metric.of(*[strange] * len(metric.labels))
    known = [label for label in metric.labels if not label.words]
    for collected in metric.collector.collect():
        for sample in collected.samples:
            assert all(sample.labels[label.name] == OTHER for label in known), sample


def test_the_series_of_a_metric_end_at_its_limit() -> None:
    metric = metrics.HTTP_REQUESTS
    metrics.ROUTE.declare(f"/v1/things/{number}" for number in range(1000))
    for number in range(1000):
        for method in metrics.METHOD.listed:
            for status in metrics.STATUS.listed:
                metric.of(f"/v1/things/{number}", method, status).inc()
    (collected,) = metric.collector.collect()
    assert len(collected.samples) == metric.most
    # None is lost: what has no series of its own is counted in the other.
    assert sum(sample.value for sample in collected.samples) == 1000 * len(metrics.METHOD.listed) * len(metrics.STATUS.listed)


def test_codes_are_words_and_few() -> None:
    for number in range(1000):
        metrics.REFUSALS.of(f"code_{number}").inc()
    (collected,) = metrics.REFUSALS.collector.collect()
    assert len(collected.samples) == metrics.REFUSAL.limit + 1
    assert max(sample.value for sample in collected.samples) == 1000 - metrics.REFUSAL.limit


def test_a_name_that_is_declared_later_has_its_series_then() -> None:
    metrics.CONSUMER_LAG.of("reporting", "member.sale.v1").set(3)
    metrics.GROUP.declare(["reporting"])
    metrics.TOPIC.declare(["member.sale.v1"])
    metrics.CONSUMER_LAG.of("reporting", "member.sale.v1").set(5)
    assert exported_series("reporting", "consume")["regulars_consumer_lag_messages"] == {(OTHER, OTHER), ("reporting", "member.sale.v1")}


def test_a_process_exports_what_is_of_its_part() -> None:
    def own(service: str, part: str) -> set[str]:
        return {name for name in exported_series(service, part) if name.startswith("regulars_")}

    for name in metrics.PARTS:
        service, part = name.split("-")
        named = {metric.name for metric in all_metrics() if name in metric.parts}
        # The others have labels, and no series before they have something to say.
        assert own(service, part) <= named
        unlabelled = {metric.name for metric in all_metrics() if name in metric.parts and not metric.labels}
        assert unlabelled <= own(service, part)
    assert "regulars_relay_leading" not in own("member", "serve")
    assert own("member", "all") == own("member", "serve") | own("member", "relay")
    assert "process_resident_memory_bytes" in exported_series("gateway", "serve")


def test_known_series_begin_at_zero_and_unknown_ones_are_absent() -> None:
    series = exported_series("member", "serve")
    assert series["regulars_sales_total"] == {("recorded",), ("replayed",), ("refused",), ("failed",)}
    assert series["regulars_build_info"] == {("member", "serve", "0.1.0")}
    assert "regulars_sales_net_minor_total" not in series
    assert "regulars_ledger_mismatches" not in exported_series("member", "relay")


def test_many_values_at_once_are_counted_as_one_by_one() -> None:
    values = [0.05, 0.1, 0.11, 5.0, 5.1, 100_000.0]
    metrics.GROUP.declare(["one", "many"])
    metrics.CONSUMER_DELAY.of("many").observe_many(values)
    for value in values:
        metrics.CONSUMER_DELAY.of("one").observe(value)
    (collected,) = metrics.CONSUMER_DELAY.collector.collect()
    by_group = {
        group: [(sample.name, sample.labels.get("le"), sample.value) for sample in collected.samples if sample.labels["group"] == group]
        for group in ("one", "many")
    }
    assert by_group["one"] == by_group["many"]
    assert ("regulars_consumer_delay_seconds_bucket", "5.0", 4.0) in by_group["one"]
    assert ("regulars_consumer_delay_seconds_count", None, 6.0) in by_group["one"]


def test_a_live_gauge_is_the_sum_of_what_is_there_now() -> None:
    sources = live(metrics.KPI_STREAMS)
    remove = sources.add(lambda: 2)
    sources.add(lambda: 3)
    (collected,) = metrics.KPI_STREAMS.collector.collect()
    assert collected.samples[0].value == 5
    remove()
    (collected,) = metrics.KPI_STREAMS.collector.collect()
    assert collected.samples[0].value == 3
