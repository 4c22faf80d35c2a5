"""The scrape configuration that docs/signals.md gives reads each of our pods once, under the labels that dashboards and alerts count on."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.check_chart import cases, render, resources_in

PAGE = Path(__file__).parents[2] / "docs" / "signals.md"
META = "__meta_kubernetes_"


def scrape_config() -> Any:
    text = next(
        block for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if "scrape_configs" in block
    )
    return yaml.safe_load(text)["scrape_configs"][0]


def targets(resource: Any) -> Iterator[dict[str, str]]:
    """What Prometheus finds of a Deployment's pods, before relabelling: a target for each port, or for a container without one."""
    pod = resource["spec"]["template"]
    labels = {f"{META}namespace": resource["metadata"]["namespace"], f"{META}pod_name": f"{resource['metadata']['name']}-x"}
    for kind in ("label", "annotation"):
        found = pod["metadata"].get(f"{kind}s", {})
        labels |= {f"{META}pod_{kind}_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}": str(value) for name, value in found.items()}
    for is_init, containers in (("true", pod["spec"].get("initContainers", ())), ("false", pod["spec"]["containers"])):
        for container in containers:
            for port in container.get("ports") or [{}]:
                named = {f"{META}pod_container_port_name": port["name"]} if port else {}
                yield {**labels, **named, f"{META}pod_container_init": is_init, "port": str(port.get("containerPort", ""))}


def relabelled(target: Mapping[str, str], rules: Any) -> dict[str, str] | None:
    """As Prometheus does it, so far as these rules go."""
    labels = dict(target)
    for rule in rules:
        value = ";".join(labels.get(name, "") for name in rule["source_labels"])
        matches = re.fullmatch(rule.get("regex", "(.*)"), value)
        action = rule.get("action", "replace")
        assert action in {"keep", "drop", "replace"}
        if (action == "keep" and not matches) or (action == "drop" and matches):
            return None
        if action == "replace" and matches:
            labels[rule["target_label"]] = matches[1]
    return labels


def test_every_pod_is_read_once_under_its_service_and_part() -> None:
    config, found = scrape_config(), cases()["backup"]
    assert config["job_name"] == "regulars"
    deployments = [each for each in resources_in(render(found["values"], found["set"])) if each["kind"] == "Deployment"]
    kept = [after for each in deployments for target in targets(each) if (after := relabelled(target, config["relabel_configs"]))]
    read = sorted((each["service"], each["part"]) for each in kept)
    assert read == [
        ("backup", "wal"),
        ("gateway", "serve"),
        ("member", "relay"),
        ("member", "serve"),
        ("reporting", "consume"),
        ("reporting", "serve"),
    ]
    assert {each["port"] for each in kept} == {"9600"}
    assert {each["__metrics_path__"] for each in kept} == {"/metrics"}
    assert {each["namespace"] for each in kept} == {"regulars"}
    assert all(each["pod"].startswith("regulars-") for each in kept)
