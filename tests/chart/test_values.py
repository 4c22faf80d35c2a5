"""Values that cannot be meant are refused, each with its sentence; what is left of them is rendered."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from scripts.check_chart import CHART, RenderFailed, pod_of, render, resources_in

DIGEST = f"sha256:{'0' * 63}1"
TRIAL, PRIVATE, CLOUD = "values-trial.yaml", "values-private.yaml", "values-cloud.yaml"


def part(service: str, name: str, **values: object) -> dict[str, Any]:
    return {"services": {service: {"parts": {name: values}}}}


# `null` takes a value away; the part's and the one below it.
NO_CPU = {**part("gateway", "serve", resources={"requests": {"cpu": None}}), "partDefaults": {"resources": {"requests": {"cpu": None}}}}
NO_LIMIT = {**part("member", "serve", resources={"limits": {"memory": None}}), "partDefaults": {"resources": {"limits": {"memory": None}}}}

IMPOSSIBLE: list[tuple[str, Mapping[str, Any], str]] = [
    (TRIAL, {"image": {"digests": {"gatway": DIGEST}}}, "image.digests.gatway is of no image: there are cli, gateway, member, reporting."),
    (TRIAL, {"trial": {"kafka": {"enabled": False}}}, "Events have no bus: set kafka.brokers"),
    (TRIAL, {"kafka": {"brokers": ["kafka:9092"]}}, "kafka.brokers and trial.kafka.enabled name two buses"),
    (TRIAL, {"bus": {"kind": "postgresql"}}, "trial.kafka.enabled starts a Kafka that nothing uses"),
    (PRIVATE, {"kafka": {"sasl": {"existingSecret": ""}}}, "kafka.securityProtocol SASL_SSL needs kafka.sasl.username"),
    (PRIVATE, {"kafka": {"securityProtocol": "PLAINTEXT"}}, "kafka.tls names certificates, and kafka.securityProtocol PLAINTEXT uses none"),
    (PRIVATE, {"kafka": {"strimziTopics": {"cluster": ""}}}, "kafka.strimziTopics.enabled needs kafka.strimziTopics.cluster"),
    (PRIVATE, {"kafka": {"strimziTopics": {"replicas": 1}}}, "minInSyncReplicas 2 is more than its replicas 1"),
    (PRIVATE, {"bus": {"kind": "postgresql"}}, "kafka.strimziTopics.enabled makes topics that nothing uses"),
    (PRIVATE, {"postgresql": {"databases": {"member": {"existingSecret": ""}}}}, "The database of member is nowhere"),
    (
        PRIVATE,
        {"postgresql": {"databases": {"member": {"url": "postgresql://a@b/c"}}}},
        "postgresql.databases.member has a url and an existing",
    ),
    (PRIVATE, {"bus": {"kind": "postgresql"}, "kafka": {"strimziTopics": {"enabled": False}}}, "The database of bus is nowhere"),
    (PRIVATE, {"trial": {"postgresql": {"enabled": True}}}, "trial.postgresql.enabled starts a PostgreSQL that nothing uses"),
    (PRIVATE, {"clickhouse": {"existingSecret": ""}}, "ClickHouse is nowhere"),
    (PRIVATE, {"clickhouse": {"url": "http://a:8123/b"}}, "clickhouse has a url and an existingSecret"),
    (PRIVATE, {"trial": {"clickhouse": {"enabled": True}}}, "trial.clickhouse.enabled starts a ClickHouse that nothing uses"),
    (TRIAL, {"trial": {"postgresql": {"replicas": 2}}}, "trial.postgresql.replicas must be 1"),
    (TRIAL, {"trial": {"kafka": {"replicas": 3}}}, "trial.kafka.replicas must be 1"),
    (TRIAL, {"trial": {"clickhouse": {"replicas": 2}}}, "trial.clickhouse.replicas must be 1"),
    (PRIVATE, {"keys": {"existingSecret": ""}}, "There are no keys: set keys.existingSecret"),
    (TRIAL, {"keys": {"existingSecret": "keys"}}, "keys.existingSecret and keys.generate are both set"),
    (PRIVATE, {"keys": {"existingSecret": "", "generate": True}}, "keys.generate is for a trial"),
    (
        TRIAL,
        part("member", "serve", replicas=10),
        "All pods together open up to 102 connections, also while a new version comes, and trial.postgresql",
    ),
    (CLOUD, {"postgresql": {"maxConnections": 100}}, "and postgresql.maxConnections allows 100"),
    (PRIVATE, part("member", "serve", pool=50), "and postgresql.databases.member.maxConnections allows 200"),
    (CLOUD, {"calls": {"gateway": {"coupons": ["CouponService"]}}}, "calls lets gateway call coupons, which has no part with a port"),
    (PRIVATE, part("gateway", "serve", uses=["bus"]), "services.gateway.parts.serve uses the bus, and no topic names gateway"),
    (PRIVATE, part("member", "relay", uses=["calls"]), "services.member.parts.relay uses calls, and calls lets member call nobody"),
    (PRIVATE, {"services": {"member": {"database": ""}}}, "uses a database, and services.member.database names none"),
    (PRIVATE, part("member", "serve", public=True), "services.member.parts.serve is public and so needs a port that speaks http"),
    (PRIVATE, part("gateway", "serve", public=False), "0 parts are public, and one must be"),
    (
        CLOUD,
        part("reporting", "consume", autoscaling={"enabled": True}),
        "services.reporting.parts.consume has autoscaling and keda enabled: both would set its replicas",
    ),
    (CLOUD, part("gateway", "serve", autoscaling={"minReplicas": 20}), "services.gateway.parts.serve.autoscaling has more minReplicas"),
    (CLOUD, NO_CPU, "and resources.requests.cpu is not set"),
    (CLOUD, part("reporting", "consume", keda={"minReplicas": 20}), "services.reporting.parts.consume.keda has more minReplicas"),
    (
        PRIVATE,
        part("reporting", "serve", keda={"enabled": True}),
        "services.reporting.parts.serve.keda scales on the lag of a consumer group",
    ),
    (PRIVATE, part("member", "relay", keda={"enabled": True}), "services.member.parts.relay.keda scales on the lag of a consumer group"),
    (TRIAL, part("reporting", "consume", keda={"enabled": True}), "services.reporting.parts.consume.keda cannot work with trial.kafka"),
    (PRIVATE, part("reporting", "consume", replicas=13), "may have 13 pods, and its topics have 12 partitions in all"),
    (CLOUD, part("reporting", "consume", keda={"maxReplicas": 73}), "may have 73 pods, and its topics have 72 partitions in all"),
    (
        PRIVATE,
        part("member", "serve", rollout={"maxSurge": 0}),
        "services.member.parts.serve.rollout allows neither a pod more nor a pod less",
    ),
    (
        PRIVATE,
        part("member", "serve", rollout={"maxSurge": "0%"}),
        "services.member.parts.serve.rollout allows neither a pod more nor a pod less",
    ),
    (PRIVATE, part("member", "serve", maxUnavailable=0), "services.member.parts.serve.maxUnavailable 0 would let no node be emptied"),
    (PRIVATE, part("member", "serve", terminationGracePeriodSeconds=20), "terminationGracePeriodSeconds 20 is shorter than draining takes"),
    (PRIVATE, {"settings": {"drainSecondsBefore": 60}}, "terminationGracePeriodSeconds 60 is shorter than draining takes"),
    (PRIVATE, NO_LIMIT, "resources.limits.memory is not set"),
    (PRIVATE, part("gateway", "serve", expose={"type": "NodePort"}), "opens the API without TLS beside the Ingress"),
    (PRIVATE, part("gateway", "serve", expose={"nodePort": 30000}), "expose.nodePort needs expose.type NodePort or LoadBalancer"),
    (TRIAL, {"services": {"member": None}, "calls": {"gateway": {"member": None}, "reporting": None}}, "seed.enabled needs the services"),
    (PRIVATE, {"ingress": {"host": ""}}, "ingress.enabled needs ingress.host"),
    (CLOUD, {"httpRoute": {"parentRefs": []}}, "httpRoute.enabled needs httpRoute.parentRefs"),
    (PRIVATE, {"certManager": {"issuerRef": {"name": ""}}}, "certManager.enabled needs certManager.issuerRef.name"),
    (TRIAL, {"certManager": {"enabled": True, "issuerRef": {"name": "ca"}}}, "certManager.enabled needs a name to certify"),
    (TRIAL, {"backup": {"enabled": True}}, "backup.enabled needs backup.to, where backups go"),
    (TRIAL, {"backup": {"enabled": True, "to": "/backups"}}, "backup.to is a folder, which needs backup.volumeClaim"),
    (PRIVATE, {"backup": {"enabled": True, "to": "s3://a/b"}}, "backup.enabled needs backup.database.existingSecret"),
    (TRIAL, {"backup": {"facts": {"enabled": True}}}, "backup.facts.enabled needs backup.enabled"),
    (
        TRIAL,
        {"backup": {"enabled": True, "to": "/backups", "volumeClaim": "disk", "facts": {"enabled": True}}},
        "backup.facts needs a bucket in backup.to, or backup.facts.disk",
    ),
    (PRIVATE, {"cronJobs": {"nightly": {"image": "cli"}}}, "cronJobs.nightly needs a schedule"),
    (
        PRIVATE,
        {"cronJobs": {"nightly": {"schedule": "@daily", "databases": ["bus"]}}},
        "cronJobs.nightly uses the database bus, which is nowhere",
    ),
]


@pytest.mark.parametrize("profile, values, sentence", IMPOSSIBLE, ids=[sentence[:60] for *_, sentence in IMPOSSIBLE])
def test_what_cannot_be_meant_is_refused_with_its_sentence(profile: str, values: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(RenderFailed) as refused:
        render([profile], values)
    assert "the values cannot be meant" in str(refused.value)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "values, place",
    [
        ({"servces": {}}, "servces"),
        ({"image": {"digests": {"gateway": "25.8"}}}, "digests"),
        (part("member", "serve", replica=2), "replica"),
        (part("member", "serve", replicas="two"), "replicas"),
        (part("member", "serve", uses=["internet"]), "uses"),
        (part("member", "serve", expose={"type": "Nodeport"}), "type"),
        ({"kafka": {"brokers": ["kafka"]}}, "brokers"),
        ({"clickhouse": {"url": "tcp://a"}}, "url"),
        ({"networkPolicy": {"publicFrom": [{"namespace": "a"}]}}, "publicFrom"),
        ({"topics": {"member.sale.v1": {"partitions": 0}}}, "partitions"),
        ({"trial": {"kafka": {"storage": {"size": "much"}}}}, "size"),
    ],
)
def test_what_is_misspelt_or_of_another_form_is_refused_by_the_schema(values: Mapping[str, Any], place: str) -> None:
    with pytest.raises(RenderFailed, match=r"values don't meet the specifications") as refused:
        render([TRIAL], values)
    assert place in str(refused.value)


def test_every_value_has_its_place_in_the_schema() -> None:
    """A value that the schema does not name would be refused only where somebody sets it."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values.keys() == schema["properties"].keys() - {"global"}
    assert values["partDefaults"].keys() == schema["definitions"]["part"]["properties"].keys()
    assert values["cronJobDefaults"].keys() == schema["definitions"]["cronJob"]["properties"].keys()


def test_every_sentence_of_the_chart_is_tried() -> None:
    """Of each, some fourteen characters in a row are looked for above."""
    written = (CHART / "templates" / "validation.yaml").read_text(encoding="utf-8")
    sentences = re.findall(r'append \$faults (?:\(printf )?"((?:[^"\\]|\\.)+)"', written)
    assert len(sentences) == written.count("append $faults ")
    tried = " ".join(sentence for *_, sentence in IMPOSSIBLE)
    untried = [each for each in sentences if not any(piece in tried for piece in _pieces(each))]
    assert untried == []


def _pieces(sentence: str) -> Iterator[str]:
    for literal in re.split(r"%[sd]", sentence):
        yield from (literal[at : at + 14] for at in range(len(literal) - 13))


@pytest.mark.parametrize("upgrade", [False, True])
def test_images_are_pinned_by_their_digests_where_these_are_given(*, upgrade: bool) -> None:
    """In parts, hooks, jobs and servers for trial alike."""
    digests = {name: f"sha256:{number:064}" for number, name in enumerate(("gateway", "member", "reporting", "cli"))}
    servers = {"postgresql": "postgres", "kafka": "apache/kafka", "clickhouse": "clickhouse/clickhouse-server"}
    values = {
        "image": {"registry": "registry.example.com", "digests": digests},
        "trial": {name: {"image": f"{image}@{DIGEST}"} for name, image in servers.items()},
        "backup": {"enabled": True, "to": "s3://backups/regulars"},
        "cronJobs": {"nightly": {"schedule": "@daily"}},
    }
    pods = [pod for each in resources_in(render([TRIAL], values, upgrade=upgrade)) if (pod := pod_of(each))]
    images = {container["image"] for pod in pods for container in (*pod.get("initContainers", ()), *pod["containers"])}
    assert images == {f"registry.example.com/regulars/{name}@{digest}" for name, digest in digests.items()} | {
        f"{image}@{DIGEST}" for image in servers.values()
    }
