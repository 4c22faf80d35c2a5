"""What queries of dashboards, rules and alerts ask for, read by a parser of PromQL and held against the metrics that there are."""

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from kit.metrics import all_metrics

OBSERVABILITY = Path(__file__).resolve().parents[2] / "deploy" / "observability"
RULES = sorted((OBSERVABILITY / "rules").glob("*.yaml"))

# What a scrape adds. `namespace` and `pod` are a cluster's.
TARGET = frozenset({"job", "instance", "service", "part", "namespace", "pod"})

# Of other programs: Prometheus itself, the client library's metrics of the process, the kubelet.
FOREIGN: Mapping[str, AbstractSet[str]] = {
    "up": frozenset(),
    "ALERTS": frozenset({"alertname", "alertstate", "severity", "group", "check", "kind", "rpc", "route", "method"}),
    "process_cpu_seconds_total": frozenset(),
    "process_resident_memory_bytes": frozenset(),
    "process_start_time_seconds": frozenset(),
    "process_open_fds": frozenset(),
    "process_max_fds": frozenset(),
    "kubelet_volume_stats_available_bytes": frozenset({"persistentvolumeclaim"}),
    "kubelet_volume_stats_capacity_bytes": frozenset({"persistentvolumeclaim"}),
}

# Functions whose result has other labels than the series that they are given, or needs some of them.
_WITHOUT_LABELS = {"time", "vector", "scalar", "pi"}


@dataclass(frozen=True)
class Series:
    """The labels of a series; `values` of those that have only some."""

    labels: AbstractSet[str]
    values: Mapping[str, AbstractSet[str]] = field(default_factory=dict)


@cache
def known_series() -> Mapping[str, Series]:
    """Every series that a query may name, by name: of the registry of metrics, of other programs, and recorded by our own rules."""
    known = {name: Series(labels | TARGET) for name, labels in FOREIGN.items()}
    for metric in all_metrics():
        labels = {label.name for label in metric.labels} | TARGET
        values = {label.name: frozenset({*label.listed, "other"}) for label in metric.labels if label.listed}
        if metric.kind == "histogram":
            bounds = {"+Inf", *(str(float(bound)) for bound in metric.buckets)}
            known[f"{metric.name}_bucket"] = Series(labels | {"le"}, values | {"le": frozenset(bounds)})
            known[f"{metric.name}_sum"] = known[f"{metric.name}_count"] = Series(labels, values)
        else:
            known[metric.name] = Series(labels, values)
    # In their order: one may build on another.
    for rule in rules():
        if "record" in rule:
            query = Query(rule["expr"], known)
            known[rule["record"]] = Series(query.labels | known.get(rule["record"], Series(frozenset())).labels)
    return known


def rules() -> Iterator[Mapping[str, Any]]:
    """Every recording rule and every alert."""
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


class Query:
    """A query: `labels` that its result may have, `metrics` that it names, and `faults`, in sentences."""

    def __init__(self, text: str, known: Mapping[str, Series] | None = None) -> None:
        self.faults: list[str] = []
        self.metrics: set[str] = set()
        self._known = known if known is not None else known_series()
        self.labels = self._labels(promql.parse(text))

    def _labels(self, node: promql.Expr) -> AbstractSet[str]:
        """The labels that the result of `node` may have; what is wrong in it is noted."""
        match node:
            case promql.VectorSelector():
                return self._select(node)
            case promql.MatrixSelector():
                return self._select(node.vector_selector)
            case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
                return self._labels(node.expr)
            case promql.AggregateExpr():
                return self._aggregate(node)
            case promql.BinaryExpr():
                return self._combine(node)
            case promql.Call():
                return self._call(node)
            case _:
                return frozenset()

    def _select(self, node: promql.VectorSelector) -> AbstractSet[str]:
        name = node.name or ""
        self.metrics.add(name)
        series = self._known.get(name)
        if series is None:
            self.faults.append(f"There is no metric {name}.")
            return TARGET
        for matcher in node.matchers.matchers:
            if matcher.name not in series.labels:
                self.faults.append(f"{name} has no label {matcher.name}.")
            elif matcher.name in series.values:
                self._check_value(name, matcher, series.values[matcher.name])
        return series.labels

    def _check_value(self, name: str, matcher: promql.Matcher, there_are: AbstractSet[str]) -> None:
        is_plain = matcher.op in (promql.MatchOp.Equal, promql.MatchOp.NotEqual)
        for value in [matcher.value] if is_plain else matcher.value.split("|"):
            if not any(value == each if is_plain else re.fullmatch(value, each) for each in there_are):
                self.faults.append(f"{matcher.name} of {name} is never {value}.")

    def _aggregate(self, node: promql.AggregateExpr) -> AbstractSet[str]:
        inner = self._labels(node.expr)
        if str(node.op) in ("topk", "bottomk"):
            return inner
        if node.modifier is None:
            return frozenset()
        self._need(node.modifier.labels, inner, str(node.op))
        named = frozenset(node.modifier.labels)
        return named if node.modifier.type == promql.AggModifierType.By else inner - named

    def _combine(self, node: promql.BinaryExpr) -> AbstractSet[str]:
        left, right = self._labels(node.lhs), self._labels(node.rhs)
        operator, modifier = str(node.op), node.modifier
        matching = modifier.matching if modifier is not None else None
        if matching is not None:
            self._need(matching.labels, left, operator)
            self._need(matching.labels, right, operator)
        if operator in ("and", "unless"):
            return left
        if operator == "or":
            return left | right
        if isinstance(node.lhs, promql.NumberLiteral) or not left:
            return right
        if isinstance(node.rhs, promql.NumberLiteral) or not right:
            return left
        if matching is None:
            return left & right
        many = modifier is not None and modifier.card in (promql.VectorMatchCardinality.ManyToOne, promql.VectorMatchCardinality.OneToMany)
        if many and modifier is not None:
            kept = left if modifier.card == promql.VectorMatchCardinality.ManyToOne else right
            return kept | frozenset(modifier.group_labels or ())
        named = frozenset(matching.labels)
        return named if matching.type == promql.LabelModifierType.Include else left - named

    def _call(self, node: promql.Call) -> AbstractSet[str]:
        name = node.func.name
        if name in _WITHOUT_LABELS:
            return frozenset()
        inner: AbstractSet[str] = frozenset().union(*(self._labels(argument) for argument in node.args))
        if name == "histogram_quantile":
            self._need(["le"], inner, name)
            return inner - {"le"}
        if name == "label_replace":
            texts = [argument.val for argument in node.args if isinstance(argument, promql.StringLiteral)]
            return inner | {texts[0]}
        return inner

    def _need(self, wanted: Iterable[str], there_are: AbstractSet[str], by: str) -> None:
        self.faults += [f"`{by}` names the label {label}, which nothing in it has." for label in wanted if label not in there_are]
