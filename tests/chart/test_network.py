"""Who may reach whom in a cluster is what calls.yaml and topics.yaml say, and nothing else."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.check_chart import CHART, cases, render, resources_in
from tests.chart.edges import OPS, OUTSIDE, SERVERS, Edge, edges, is_denied_by_default

ROOT = Path(__file__).parents[2]
PORTS = {"postgresql": 5432, "kafka": 9092, "clickhouse": 8123}


@cache
def resources(case: str) -> list[Any]:
    found = cases()[case]
    return resources_in(render(found["values"], found.get("set"), upgrade=found.get("upgrade", False)))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "protos" / f"{name}.yaml").read_text(encoding="utf-8"))[name]


def parts() -> dict[tuple[str, str], Any]:
    services = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["services"]
    return {(service, part): has for service, of in services.items() for part, has in of["parts"].items()}


def calls_registered() -> Iterator[Edge]:
    """Each caller's parts that call, to the part of its callee that has a port."""
    for caller, callees in read("calls").items():
        for callee in callees:
            port = next((part, has["port"]) for (service, part), has in parts().items() if service == callee and has.get("port"))
            for (service, part), has in parts().items():
                if service == caller and "calls" in has["uses"]:
                    yield Edge(f"{caller}-{part}", f"{callee}-{port[0]}", port[1])


def bus_users_registered() -> set[str]:
    services = {service for topic in read("topics").values() for service in (*topic["producers"], *topic["consumers"])}
    return {f"{service}-{part}" for (service, part), has in parts().items() if service in services and "bus" in has["uses"]}


def between_parts(found: set[Edge]) -> set[Edge]:
    names = {f"{service}-{part}" for service, part in parts()}
    return {edge for edge in found if edge.source in names and edge.target in names}


@pytest.mark.parametrize("case", ["trial", "private", "cloud", "bus-postgresql", "inline-upgrade"])
def test_services_reach_one_another_exactly_as_calls_yaml_says(case: str) -> None:
    assert between_parts(edges(resources(case))) == set(calls_registered())


def test_the_bus_is_reached_exactly_by_those_whom_topics_yaml_names_by_the_migration_and_by_operators() -> None:
    reaching = {edge.source for edge in edges(resources("trial")) if edge.target == "kafka"}
    assert reaching == bus_users_registered() | {"migrate", "operator"}


def test_a_bus_over_postgresql_opens_postgresql_to_the_same() -> None:
    own = {f"{service}-{part}" for service in ("member", "gateway") for part in ("serve", "relay") if (service, part) in parts()}
    reaching = {edge.source for edge in edges(resources("bus-postgresql")) if edge.target == "postgresql"}
    assert reaching == own | bus_users_registered() | {"migrate", "seed", "operator"}


def test_an_operator_reaches_everything_that_the_doctor_looks_at() -> None:
    reached = {(edge.target, edge.port) for edge in edges(resources("trial")) if edge.source == "operator"}
    served = {(f"{service}-{part}", has["port"]) for (service, part), has in parts().items() if has.get("port")}
    assert reached == served | set(PORTS.items())
    metrics = {edge.target for edge in edges(resources("backup"), port=OPS) if edge.source == "operator"}
    assert metrics == {f"{service}-{part}" for service, part in parts()} | {"backup-wal"}


def test_an_operator_knows_where_everything_is() -> None:
    of_case = {each["metadata"]["name"]: each for each in resources("backup") if each["kind"] == "Deployment"}
    container = of_case["regulars-operator"]["spec"]["template"]["spec"]["containers"][0]
    known = {each["name"]: each.get("value") for each in container["env"]}
    urls = {f"{service.upper()}_DATABASE_URL" for service in ("member", "gateway")} | {"CLICKHOUSE_URL", "BUS_URL"}
    assert urls | {"MEMBER_ADDRESS", "REPORTING_ADDRESS", "REGULARS_URL", "BACKUP_TO"} <= known.keys()
    services = {
        f"{each['metadata']['name']}:{each['spec']['ports'][0]['port']}" for each in resources("backup") if each["kind"] == "Service"
    }
    ops = set(known["OPS_ADDRESSES"].split(","))
    assert ops <= services
    assert len(ops) == len(parts()) + 1
    assert known["REGULARS_TOPICS"] == "/etc/regulars/topics.yaml"
    assert {"name": "topics", "mountPath": "/etc/regulars", "readOnly": True} in container["volumeMounts"]


@pytest.mark.parametrize("case", ["trial", "private", "cloud", "backup"])
def test_metrics_are_read_by_those_named_and_by_operators_alone(case: str) -> None:
    named = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["networkPolicy"]["metricsFrom"]
    rules = [rule for rule in policy_rules(case, "ingress") if OPS in {port["port"] for port in rule.get("ports", [{"port": OPS}])}]
    peers = [peer for rule in rules for peer in rule["from"]]
    operators = [peer for peer in peers if peer not in named]
    assert [peer for peer in peers if peer in named]
    assert {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in operators} == {"operator"}
    assert all(set(peer) == {"podSelector"} for peer in operators)
    assert all([port["port"] for port in rule["ports"]] == [OPS] for rule in rules)


@pytest.mark.parametrize("case", ["trial", "private", "cloud", "backup", "jobs", "inline-upgrade"])
def test_dns_is_asked_of_those_named_alone(case: str) -> None:
    named = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["networkPolicy"]["dnsTo"]
    rules = [rule for rule in policy_rules(case, "egress") if 53 in {port["port"] for port in rule.get("ports", [{"port": 53}])}]
    assert rules
    assert all(rule["to"] == named and {port["port"] for port in rule["ports"]} == {53} for rule in rules)


def policy_rules(case: str, direction: str) -> list[Any]:
    return [rule for each in resources(case) if each["kind"] == "NetworkPolicy" for rule in each["spec"].get(direction) or ()]


def test_a_database_is_reached_by_the_parts_of_its_service_alone() -> None:
    found = edges(resources("trial"))
    assert {edge.source for edge in found if edge.target == "clickhouse"} == {"reporting-serve", "reporting-consume", "migrate", "operator"}
    assert {edge.source for edge in found if edge.target == "postgresql"} == {
        "gateway-serve",
        "member-serve",
        "member-relay",
        "migrate",
        "seed",
        "operator",
    }


def test_in_a_trial_nothing_leaves_the_namespace_and_only_the_gateway_is_reached_from_outside() -> None:
    found = edges(resources("trial"))
    assert {edge for edge in found if OUTSIDE in (edge.source, edge.target)} == {Edge(OUTSIDE, "gateway-serve", 8600)}


def test_servers_for_trial_reach_nobody() -> None:
    assert not [edge for edge in edges(resources("trial")) if edge.source in SERVERS]


def test_external_servers_are_reached_at_their_ports_by_those_who_use_them() -> None:
    leaving = {(edge.source, edge.port) for edge in edges(resources("cloud")) if edge.target == OUTSIDE}
    traced = {(f"{service}-{part}", port) for service, part in parts() for port in (4317, 4318)}
    # Kafka at 9096, ClickHouse at 8443.
    assert leaving - traced == {
        ("gateway-serve", 5432),
        ("member-serve", 5432),
        ("member-relay", 5432),
        ("member-relay", 9096),
        ("reporting-serve", 8443),
        ("reporting-serve", 9096),
        ("reporting-consume", 8443),
        ("reporting-consume", 9096),
        ("migrate", 5432),
        ("migrate", 8443),
        ("migrate", 9096),
        ("operator", 5432),
        ("operator", 8443),
        ("operator", 9096),
    }


@pytest.mark.parametrize("service", ["member", "gateway"])
def test_the_example_of_a_database_lets_in_those_who_use_it_and_no_others(service: str) -> None:
    text = (CHART.parent / "examples" / "cloudnative-pg.yaml").read_text(encoding="utf-8")
    policy = next(
        each["spec"] for each in resources_in(text) if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == f"regulars-{service}"
    )
    rule = next(rule for rule in policy["ingress"] if rule["ports"] == [{"protocol": "TCP", "port": 5432}])
    components, own = (peer["podSelector"] for peer in rule["from"])
    assert own == policy["podSelector"] == {"matchLabels": {"cnpg.io/cluster": f"regulars-{service}"}}
    assert components["matchLabels"]["app.kubernetes.io/name"] == "regulars"
    users = {f"{name}-{part}" for (name, part), has in parts().items() if name == service and "database" in has["uses"]}
    assert set(components["matchExpressions"][0]["values"]) == users | {"migrate", "operator"}


def test_a_command_at_set_times_reaches_what_it_names_and_nothing_else() -> None:
    found = edges(resources("jobs"))
    assert {(edge.target, edge.port) for edge in found if edge.source == "job-reconcile"} == {("gateway-serve", 8600)}
    assert {(edge.target, edge.port) for edge in found if edge.source == "job-dump"} == {
        (OUTSIDE, 5432),
        (OUTSIDE, 8123),
        (OUTSIDE, 9093),
        (OUTSIDE, 9000),
    }


def test_backups_reach_the_server_and_their_store_and_only_base_backups_the_gateway() -> None:
    found = edges(resources("backup"))

    def reached_by(component: str) -> set[tuple[str, int]]:
        return {(edge.target, edge.port) for edge in found if edge.source == component}

    assert reached_by("backup-wal") == {("postgresql", 5432), (OUTSIDE, 9000)}
    assert reached_by("backup-base") == {("postgresql", 5432), (OUTSIDE, 9000), ("gateway-serve", 8600)}
    assert reached_by("backup-verify") == reached_by("backup-prune") == {(OUTSIDE, 9000)}
    assert reached_by("backup-facts") == {("clickhouse", 8123), ("kafka", 9092), (OUTSIDE, 9000)}


def test_a_server_for_trial_that_backs_itself_up_reaches_the_store_and_nobody_else() -> None:
    assert {edge for edge in edges(resources("backup")) if edge.source in SERVERS} == {Edge("clickhouse", OUTSIDE, 9000)}
    found = cases()["backup"]
    with_disk = {**found["set"], "backup": {**found["set"]["backup"], "facts": {"enabled": True, "disk": "backups"}}}
    assert not [edge for edge in edges(resources_in(render(found["values"], with_disk))) if edge.source in SERVERS]


@pytest.mark.parametrize("case", ["trial", "private", "cloud", "jobs", "backup", "trial-upgrade", "inline-upgrade"])
def test_every_pod_is_under_a_policy_that_denies_by_default(case: str) -> None:
    assert is_denied_by_default(resources(case))
