"""Holds the Helm chart to what it promises, without a cluster: it lints, renders every case of ci/cases.yaml, and looks at each resource.

Usage: `python scripts/check_chart.py`; with `--write`, keeps what is rendered in ci/golden, to be read and committed.

- Every render is what ci/golden holds.
- Every resource is valid by the schemas of a real API server (deploy/helm/schemas), in which a field that it does not know is a fault. Of
  kinds that come from elsewhere (Strimzi, KEDA, cert-manager, the Gateway API, the Prometheus operator) only the form is looked at.
- Every pod keeps to Pod Security `restricted`, and every container has limits; those that run for ever have their three probes.
"""

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "regulars"
EXAMPLES = ROOT / "deploy" / "helm" / "examples"
GOLDEN = CHART / "ci" / "golden"
SCHEMAS = ROOT / "deploy" / "helm" / "schemas"
HELM = os.environ.get("HELM") or str(Path(sys.executable).parent / "helm")
RELEASE, NAMESPACE = "regulars", "regulars"
# Kinds that are no API server's own.
FOREIGN = ("keda.sh/", "kafka.strimzi.io/", "cert-manager.io/", "gateway.networking.k8s.io/", "monitoring.coreos.com/")
WORKLOADS = {"Deployment", "StatefulSet", "Job", "CronJob", "Pod"}
LONG_RUNNING = {"Deployment", "StatefulSet"}
# What the release makes anew each time, and what is read elsewhere.
_SECRET = re.compile(r"(?m)^(  [\w.-]+): [A-Za-z0-9+/=]{8,}$")
_DASHBOARD = re.compile(r"(?ms)^(data:\n  [\w.-]+\.json: \|-\n).*\Z")
_RULES = re.compile(r"(?ms)^  groups:\n.*\Z")

Resource = Mapping[str, Any]
Case = Mapping[str, Any]


class RenderFailed(Exception):
    """Helm refused; the text is what it said."""


def render(values: Sequence[str], settings: Mapping[str, Any] | None = None, *, upgrade: bool = False, cluster: str = "") -> str:
    """What the chart gives for files of values of its own and for more values, in this order; `cluster`: an API server that it may ask.

    Raises:
        RenderFailed: Helm refused.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as more:
        yaml.safe_dump(dict(settings or {}), more)
        more.flush()
        files = [word for name in (*(str(CHART / each) for each in values), more.name) for word in ("--values", name)]
        command = [HELM, "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.34.0", *files]
        command += ["--is-upgrade"] if upgrade else []
        command += ["--dry-run=server", "--kube-apiserver", cluster] if cluster else []
        # No other cluster than this one.
        done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "KUBECONFIG": os.devnull})
    if done.returncode:
        raise RenderFailed(done.stderr.strip())
    return done.stdout


def resources_in(text: str) -> list[Resource]:
    """The resources of a render."""
    return [each for each in yaml.load_all(text, _Loader) if each]


def cases() -> dict[str, Case]:
    """Every case of ci/cases.yaml, with the values of the one that it is over."""
    found: dict[str, Case] = yaml.safe_load((CHART / "ci" / "cases.yaml").read_text(encoding="utf-8"))
    return {name: {**case, "values": found[case["over"]]["values"] if "over" in case else case["values"]} for name, case in found.items()}


def main() -> int:
    """Says every fault; 1: there are some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep what is rendered")
    write = parser.parse_args().write
    found = cases()
    with ThreadPoolExecutor(2) as pool:
        texts = dict(
            zip(
                found,
                pool.map(lambda case: render(case["values"], case.get("set"), upgrade=case.get("upgrade", False)), found.values()),
                strict=True,
            )
        )
        faults = [
            fault for profile in pool.map(_lint, sorted({each for case in found.values() for each in case["values"]})) for fault in profile
        ]
    faults += _golden_faults(golden_texts(found, texts), write=write)
    for name, text in texts.items():
        faults += [f"{name}: {fault}" for fault in render_faults(resources_in(text))]
    for example in sorted(EXAMPLES.glob("*.yaml")):
        faults += [f"{example.name}: {fault}" for each in resources_in(example.read_text(encoding="utf-8")) for fault in _form_faults(each)]
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def render_faults(resources: Sequence[Resource]) -> list[str]:
    """What is wrong with the resources of one render."""
    faults = [fault for each in resources for fault in (*schema_faults(each), *pod_faults(each))]
    names = [(each["kind"], each["metadata"]["name"]) for each in resources]
    return faults + [f"{kind}/{name} is there twice" for kind, name in sorted({each for each in names if names.count(each) > 1})]


def schema_faults(resource: Resource) -> list[str]:
    """What the API server would not have; of foreign kinds, what is no resource at all."""
    if resource.get("apiVersion", "").startswith(FOREIGN):
        return _form_faults(resource)
    validator = _validator(f"{resource.get('apiVersion')}/{resource.get('kind')}")
    if validator is None:
        return [f"{_name(resource)}: no schema is kept of this kind: name it in scripts/write_kubernetes_schemas.py"]
    return [
        f"{_name(resource)}: /{'/'.join(map(str, error.instance_path))}: {error.message}"[:400] for error in validator.iter_errors(resource)
    ]


def pod_faults(resource: Resource) -> Iterator[str]:
    """What a pod lacks: Pod Security `restricted`, requests and limits, probes."""
    pod = pod_of(resource)
    if pod is None:
        return
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser") or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{_name(resource)}: the pod's securityContext is not `restricted`"
    if pod.get("automountServiceAccountToken") is not False or pod.get("enableServiceLinks") is not False:
        yield f"{_name(resource)}: a token or the links of services are mounted"
    if any("hostPath" in volume for volume in pod.get("volumes", [])) or any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{_name(resource)}: something of the node's is used"
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        at = f"{_name(resource)}, {container['name']}"
        own = container.get("securityContext", {})
        if own != {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}:
            yield f"{at}: the securityContext is not `restricted` with a read-only root"
        amounts = container.get("resources", {})
        if not amounts.get("limits", {}).get("memory") or not {"cpu", "memory"} <= amounts.get("requests", {}).keys():
            yield f"{at}: a limit of memory or a request is missing"
        if len({each["name"] for each in container.get("env", [])}) != len(container.get("env", [])):
            yield f"{at}: a variable is set twice"
        if container["image"].endswith(":latest") or ":" not in container["image"]:
            yield f"{at}: the image has no tag of its own"
    if resource["kind"] in LONG_RUNNING:
        for container in pod["containers"]:
            yield from (
                f"{_name(resource)}, {container['name']}: no {probe}"
                for probe in ("startupProbe", "livenessProbe", "readinessProbe")
                if probe not in container
            )


def pod_of(resource: Resource) -> Mapping[str, Any] | None:
    """The pod's spec in a workload; None in anything else."""
    if resource["kind"] not in WORKLOADS:
        return None
    spec: Mapping[str, Any] = resource["spec"]
    if resource["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    found: Mapping[str, Any] = spec if resource["kind"] == "Pod" else spec["template"]["spec"]
    return found


def golden_texts(found: Mapping[str, Case], texts: Mapping[str, str]) -> dict[str, str]:
    """What is kept of each case: a profile whole; otherwise the documents that differ, and the names of those that are not there."""
    steady = {name: steady_documents(text) for name, text in texts.items()}
    kept = {}
    for name, case in found.items():
        documents = steady[name]
        if "over" in case:
            base = steady[case["over"]]
            gone = sorted(set(base) - set(documents))
            head = f"# What differs from {case['over']}.yaml.\n" + "".join(f"# Not there: {each}\n" for each in gone)
            documents = {key: text for key, text in documents.items() if base.get(key) != text}
        else:
            head = ""
        kept[name] = head + "".join(f"---\n{text}\n" for text in documents.values())
    return kept


def steady_documents(text: str) -> dict[str, str]:
    """The documents of a render by kind and name, without what is drawn by chance or stands in files of its own."""
    documents = {}
    for document in re.split(r"(?m)^---\n", text):
        resource = yaml.load(document, _Loader)  # noqa: S506  # a SafeLoader
        if not resource:
            continue
        kept = re.sub(r"(?m)^# Source: .*\n", "", document).strip()
        if resource["kind"] == "Secret" and "data" in resource:
            kept = _SECRET.sub(r"\1: (drawn once and kept)", kept)
        if "grafana_dashboard" in resource["metadata"].get("labels", {}):
            kept = _DASHBOARD.sub(r"\1    (as in files/dashboards)", kept)
        if resource["kind"] == "PrometheusRule":
            kept = _RULES.sub("  groups: (as in files/rules)", kept)
        documents[f"{resource['kind']}/{resource['metadata']['name']}"] = kept
    return documents


def _golden_faults(kept: Mapping[str, str], *, write: bool) -> Iterator[str]:
    paths = {GOLDEN / f"{name}.yaml": text for name, text in kept.items()}
    left_over = set(GOLDEN.glob("*.yaml")) - paths.keys()
    if write:
        GOLDEN.mkdir(exist_ok=True)
        for path in left_over:
            path.unlink()
        for path, text in paths.items():
            path.write_text(text, encoding="utf-8")
        return
    yield from (f"{path.relative_to(ROOT)} is of no case: run `make chart` and commit." for path in sorted(left_over))
    for path, text in paths.items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before != text:
            lines = [*difflib.unified_diff(before.splitlines(), text.splitlines(), "kept", "rendered", lineterm="", n=1)]
            yield "\n".join(
                [f"{path.relative_to(ROOT)} is not what the chart gives: run `make chart`, read the change and commit.", *lines[:30]]
            )


def _lint(profile: str) -> list[str]:
    done = subprocess.run(
        [HELM, "lint", "--strict", "--quiet", str(CHART), "-f", str(CHART / profile)], check=False, capture_output=True, text=True
    )
    return [f"helm lint, {profile}: {done.stdout}{done.stderr}"] if done.returncode else []


def _form_faults(resource: Resource) -> list[str]:
    named = isinstance(resource.get("metadata"), dict) and resource["metadata"].get("name")
    return (
        [] if named and all(isinstance(resource.get(key), str) for key in ("apiVersion", "kind")) else [f"{resource!r:.80} is no resource"]
    )


def _name(resource: Resource) -> str:
    return f"{resource['kind']}/{resource['metadata']['name']}"


def _validator(kind: str) -> "jsonschema_rs.Draft7Validator | None":
    if not _schemas:
        _schemas.update(json.loads(max(SCHEMAS.glob("kubernetes-*.json")).read_text(encoding="utf-8")))
    if kind not in _validators and kind in _schemas["kinds"]:
        schema = {"$ref": f"#/definitions/{_schemas['kinds'][kind]}", "definitions": _schemas["definitions"]}
        _validators[kind] = jsonschema_rs.Draft7Validator(schema)
    return _validators.get(kind)


_schemas: dict[str, Any] = {}
_validators: "dict[str, jsonschema_rs.Draft7Validator]" = {}


class _Loader(yaml.CSafeLoader):
    """YAML in which a key given twice is a fault."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    if len(set(keys)) != len(keys):
        raise yaml.MarkedYAMLError(problem=f"a key is given twice: {keys}", problem_mark=node.start_mark)
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


if __name__ == "__main__":
    sys.exit(main())
