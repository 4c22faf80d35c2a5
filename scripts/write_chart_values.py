"""Writes into the Helm chart what is decided elsewhere: who calls whom and what travels (protos/*.yaml, into values.yaml), and the rules
and dashboards of deploy/observability (into files/, since a chart reads only its own).

Usage: `python scripts/write_chart_values.py`; with `--check`, only says whether the chart is current.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "regulars"
VALUES = CHART / "values.yaml"
BEGIN, END = "# --- generated ---\n", "# --- end of generated ---\n"
REGISTRIES = ("calls", "topics")
# Folder of the chart, and what goes there.
COPIES = {"files/dashboards": "deploy/observability/dashboards/*.json", "files/rules": "deploy/observability/rules/*.y*ml"}


def main(arguments: list[str]) -> int:
    """Writes the files, or compares them; 1: the chart is not current."""
    wanted = wanted_files()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    left_over = [path for folder in COPIES for path in (CHART / folder).glob("*") if path not in wanted]
    if arguments == ["--check"]:
        for path in (*stale, *left_over):
            print(f"{path.relative_to(ROOT)} is not what its sources say: run `make chart` and commit.")
        return 1 if stale or left_over else 0
    for path in left_over:
        path.unlink()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    return 0


def wanted_files() -> dict[Path, str]:
    """Every file that is written, and its text."""
    copies = {
        CHART / folder / source.name: source.read_text(encoding="utf-8")
        for folder, pattern in COPIES.items()
        for source in sorted(ROOT.glob(pattern))
    }
    return {VALUES: values_with(VALUES.read_text(encoding="utf-8"), "\n".join(map(_registry, REGISTRIES))), **copies}


def values_with(text: str, generated: str) -> str:
    """`values.yaml` with another generated part."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def _registry(name: str) -> str:
    """A registry as it is written, with the comments that explain it, under its own key."""
    return (ROOT / "protos" / f"{name}.yaml").read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
