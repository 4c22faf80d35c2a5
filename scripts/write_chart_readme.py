"""Writes the Helm chart's README.md: every value, what holds where nothing is said, and the comment above it in values.yaml.

Usage: `python scripts/write_chart_readme.py`; with `--check`, only says whether it is current. A value without a comment is a fault.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "regulars"
VALUES, PAGE = CHART / "values.yaml", CHART / "README.md"
GENERATED = "# --- generated ---"
# Maps whose entries are their value, and are not explained one by one.
WHOLE = {"requests", "limits", "metricsFrom", "dnsTo", "labels"}
_HEAD = """# regulars

The Helm chart of Regulars. [docs/kubernetes.md](../../../docs/kubernetes.md) is the way in: profiles, secrets, network, upgrades, operators
for databases. This page is the reference, written from the comments of `values.yaml` by `scripts/write_chart_readme.py`.

    helm install regulars deploy/helm/regulars -n regulars --create-namespace -f deploy/helm/regulars/values-trial.yaml --wait

| profile | for |
|---|---|
| `values-trial.yaml` | everything in one namespace, with its own small databases, keys and a demo chain |
| `values-private.yaml` | servers of the chain's own, databases by operators |
| `values-cloud.yaml` | managed databases, autoscaling, the Gateway API |

Values of the wrong form are refused by `values.schema.json`, those that cannot be meant together by a sentence each. `calls` and `topics`,
which fix who may reach what, are written into `values.yaml` from `protos/` and are no settings, but for `partitions` before an install.
"""


class Undocumented(Exception):
    """A value has no comment above it."""


def main(arguments: list[str]) -> int:
    """Writes the page, or compares it; 1: it is not current, or a value has no comment."""
    try:
        page = page_of(VALUES.read_text(encoding="utf-8"))
    except Undocumented as fault:
        print(fault)
        return 1
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is not what values.yaml says: run `make chart` and commit.")
        return 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


def page_of(text: str) -> str:
    """The page as Markdown."""
    text = text.partition(GENERATED)[0]
    lines = text.splitlines()
    root = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise Undocumented(f"{VALUES.relative_to(ROOT)} is no map.")
    known = {key.value for key, value in root.value if key.value == "partDefaults" for key, _ in value.value}
    parts = [_HEAD]
    for key, value in root.value:
        parts.append(f"\n## {key.value}\n{_comment(lines, key.start_mark.line, key.value)}\n\n")
        rows = [*_rows(lines, value, key.value, known)] if _has_parts(value) else [(key.value, _shown(value), "")]
        parts.append("| value | default | |\n|---|---|---|\n")
        parts += [f"| `{name}` | {default} | {said} |\n" for name, default, said in rows]
    return "".join(parts)


def _rows(lines: list[str], node: yaml.MappingNode, at: str, known: set[str]) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        name = f"{at}.{key.value}"
        # What a part overrides, and each part itself, is explained where the defaults are.
        repeated = ".parts." in f"{name}." and at.startswith("services.")
        said = _comment(lines, key.start_mark.line, name, needed=not repeated and key.value not in WHOLE)
        if _has_parts(value) and key.value not in WHOLE and not (repeated and key.value in known):
            if said:
                yield name, "", said
            yield from _rows(lines, value, name, known)
        else:
            yield name, _shown(value), said


def _comment(lines: list[str], line: int, name: str, *, needed: bool = True) -> str:
    """The comment right above a line."""
    found: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].lstrip().removeprefix("#").strip())
    if needed and not found:
        raise Undocumented(f"{VALUES.relative_to(ROOT)}: {name} has no comment above it.")
    texts = " ".join(found).replace("|", "\\|").split("`")
    # Between backticks stands code; elsewhere `<` would begin a tag.
    return "`".join(each if index % 2 else each.replace("<", "\\<") for index, each in enumerate(texts))


def _has_parts(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and bool(node.value)


def _shown(node: yaml.Node) -> str:
    """A default as it may stand in a table."""
    value = yaml.safe_load(yaml.serialize(node))
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
