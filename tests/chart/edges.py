"""Who may reach whom, by the NetworkPolicies of a render, as Kubernetes reads them: a connection needs a policy of both ends."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.check_chart import Resource, pod_of

COMPONENT = "app.kubernetes.io/component"
OUTSIDE = "outside"
# The operators' port.
OPS = 9600
SERVERS = ("postgresql", "kafka", "clickhouse")


@dataclass(frozen=True, order=True)
class Edge:
    """A connection that is let through, between components; `OUTSIDE` is whatever is no pod of the release."""

    source: str
    target: str
    port: int


def edges(resources: Sequence[Resource], port: int | None = None) -> set[Edge]:
    """Every edge between pods of the release, and those from and to outside: at this port, or at all but those of DNS and metrics."""
    pods = {labels[COMPONENT]: labels for labels in _pod_labels(resources)}
    policies = [each["spec"] for each in resources if each["kind"] == "NetworkPolicy"]
    return {
        Edge(source, target, each)
        for source in (*pods, OUTSIDE)
        for target in (*pods, OUTSIDE)
        for each in (_ports(policies) if port is None else {port})
        if source != target
        and _lets(policies, "Egress", pods.get(source), pods.get(target), each)
        and _lets(policies, "Ingress", pods.get(target), pods.get(source), each)
    }


def is_denied_by_default(resources: Sequence[Resource]) -> bool:
    """Whether every pod of the release is under a policy that lets nothing in or out by itself."""
    denying = [
        each["spec"]
        for each in resources
        if each["kind"] == "NetworkPolicy" and not each["spec"].get("ingress") and not each["spec"].get("egress")
    ]
    return all(
        any(_selects(spec["podSelector"], labels) and {"Ingress", "Egress"} <= set(spec["policyTypes"]) for spec in denying)
        for labels in _pod_labels(resources)
    )


def _pod_labels(resources: Sequence[Resource]) -> Iterator[Mapping[str, str]]:
    for each in resources:
        if each["kind"] == "Pod":
            yield each["metadata"]["labels"]
        elif pod_of(each) is not None:
            spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
            yield spec["template"]["metadata"]["labels"]


def _ports(policies: Sequence[Mapping[str, Any]]) -> set[int]:
    rules = [rule for spec in policies for rule in (*spec.get("ingress", ()), *spec.get("egress", ()))]
    return {port["port"] for rule in rules for port in rule.get("ports", ())} - {53, OPS}


def _lets(
    policies: Sequence[Mapping[str, Any]], direction: str, one: Mapping[str, str] | None, other: Mapping[str, str] | None, port: int
) -> bool:
    """Whether the pod `one` (None: outside, where no policy of ours holds) may have the connection in this direction."""
    if one is None:
        return True
    holding = [spec for spec in policies if direction in spec["policyTypes"] and _selects(spec["podSelector"], one)]
    if not holding:
        return True
    rules = [rule for spec in holding for rule in spec.get(direction.lower(), ())]
    return any(_names_port(rule, port) and _names_peer(rule, "to" if direction == "Egress" else "from", other) for rule in rules)


def _names_port(rule: Mapping[str, Any], port: int) -> bool:
    return not rule.get("ports") or any(each["port"] == port and each["protocol"] == "TCP" for each in rule["ports"])


def _names_peer(rule: Mapping[str, Any], field: str, pod: Mapping[str, str] | None) -> bool:
    peers = rule.get(field)
    if not peers:
        return True
    if pod is None:
        return any("ipBlock" in peer or "namespaceSelector" in peer or not _is_own(peer) for peer in peers)
    return any(set(peer) == {"podSelector"} and _selects(peer["podSelector"], pod) for peer in peers)


def _is_own(peer: Mapping[str, Any]) -> bool:
    return COMPONENT in peer.get("podSelector", {}).get("matchLabels", {})


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if selector.get("matchExpressions"):
        return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
