"""Writes deploy/helm/schemas/kubernetes-1.X.json: JSON Schemas of the kinds that the chart makes, out of a real API server's OpenAPI.

Usage: `KUBECONFIG=… python scripts/write_kubernetes_schemas.py`, for another version of Kubernetes or another kind; needs kubectl.

The server's own schemas allow fields that they do not name, and it drops those. Here such a field is a fault: it is a misspelt one.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "deploy" / "helm" / "schemas"
KINDS = {
    "v1": ("ConfigMap", "Pod", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "batch/v1": ("CronJob", "Job"),
    "networking.k8s.io/v1": ("Ingress", "NetworkPolicy"),
    "policy/v1": ("PodDisruptionBudget",),
}
# What the server fills in, and nobody applies.
SERVERS_OWN = ("status",)

Schema = dict[str, Any]


def main() -> int:
    """Asks the cluster of KUBECONFIG, and writes the file of its version."""
    version = json.loads(_raw("/version"))
    minor = f"{version['major']}.{version['minor'].rstrip('+')}"
    definitions: Schema = {}
    kinds = {}
    for api_version, names in KINDS.items():
        path = f"/openapi/v3/{'apis' if '/' in api_version else 'api'}/{api_version}"
        schemas: Schema = json.loads(_raw(path))["components"]["schemas"]
        for name in names:
            key = _key_of(schemas, api_version, name)
            kinds[f"{api_version}/{name}"] = key
            definitions |= {each: strict(schemas[each]) for each in reached_from(key, schemas)}
    for name in kinds.values():
        definitions[name] = top_level(definitions[name])
    SCHEMAS.mkdir(exist_ok=True)
    target = SCHEMAS / f"kubernetes-{minor}.json"
    text = json.dumps({"version": version["gitVersion"], "kinds": kinds, "definitions": definitions}, sort_keys=True, separators=(",", ":"))
    target.write_text(text.replace('},"io.', '},\n"io.') + "\n", encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}: {len(definitions)} definitions, {len(text) // 1024} KiB")
    return 0


def strict(schema: Any) -> Any:  # noqa: ANN401  # any JSON
    """A schema without its prose and defaults, in which an object has no fields but those named."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in {"description", "default", "format"} and not key.startswith("x-")}
    made = {
        key: {name: strict(each) for name, each in value.items()} if key == "properties" else _reference(strict(value))
        for key, value in kept.items()
    }
    if "properties" in made and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def top_level(schema: Schema) -> Schema:
    """The schema of a whole resource."""
    properties = {name: each for name, each in schema["properties"].items() if name not in SERVERS_OWN}
    return {**schema, "properties": properties, "required": sorted({"apiVersion", "kind", "metadata", *schema.get("required", [])})}


def reached_from(name: str, schemas: Schema) -> set[str]:
    """A schema's name, and those of all that it refers to."""
    found, waiting = {name}, [name]
    while waiting:
        new = set(_references(schemas[waiting.pop()])) - found
        found |= new
        waiting += new
    return found


def _references(schema: Any) -> Iterator[str]:  # noqa: ANN401  # any JSON
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference.rpartition("/")[2]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _reference(value: Any) -> Any:  # noqa: ANN401  # any JSON
    return value.replace("#/components/schemas/", "#/definitions/") if isinstance(value, str) else value


def _key_of(schemas: Schema, api_version: str, kind: str) -> str:
    group, _, version = api_version.rpartition("/")
    wanted = {"group": group, "version": version, "kind": kind}
    return next(name for name, each in schemas.items() if wanted in each.get("x-kubernetes-group-version-kind", []))


def _raw(path: str) -> str:
    return subprocess.run(["kubectl", "get", "--raw", path], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
