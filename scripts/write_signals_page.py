"""Writes the tables of metrics into docs/signals.md from their registry, kit/src/kit/metrics.py.

Usage: `python scripts/write_signals_page.py`; with `--check`, only says whether the page is current.
"""

import sys
from pathlib import Path

from kit.metrics import CURRENCY, AnyMetric, Label, all_metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "signals.md"
BEGIN, END = "<!-- written by scripts/write_signals_page.py -->\n", "<!-- end of what is written -->\n"
PARTS = "gateway-serve, member-serve, member-relay, reporting-serve, reporting-consume"


def main(arguments: list[str]) -> int:
    """Writes the page, or compares it; 1: it is not current."""
    page = PAGE.read_text(encoding="utf-8")
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        print("docs/signals.md lacks the marks between which the metrics are written.")
        return 1
    current = before + BEGIN + tables() + END + after
    if arguments == ["--check"]:
        if page == current:
            return 0
        print("docs/signals.md is not what kit/src/kit/metrics.py says: run `python scripts/write_signals_page.py` and commit.")
        return 1
    PAGE.write_text(current, encoding="utf-8")
    return 0


def tables() -> str:
    """The metrics and their labels, as Markdown."""
    metrics = all_metrics()
    lines = ["\n| metric | kind | labels | what it says | exported by |\n|---|---|---|---|---|\n"]
    lines += [_row(metric) for metric in metrics]
    lines.append("\n| label | of | values |\n|---|---|---|\n")
    seen: dict[int, tuple[Label, list[str]]] = {}
    for metric in metrics:
        for label in metric.labels:
            seen.setdefault(id(label), (label, []))[1].append(metric.name.removeprefix("regulars_"))
    lines += [f"| `{label.name}` | {', '.join(names)} | {label.meaning}: {_values(label)} |\n" for label, names in seen.values()]
    return "".join(lines) + "\n"


def _row(metric: AnyMetric) -> str:
    labels = ", ".join(f"`{label.name}`" for label in metric.labels)
    parts = "every part" if ", ".join(metric.parts) == PARTS else ", ".join(metric.parts)
    kind = metric.kind
    if metric.buckets:
        kind += f" to {', '.join(f'{bound:g}' for bound in metric.buckets)}"
    return f"| `{metric.name}` | {kind} | {labels} | {metric.meaning} | {parts} |\n"


def _values(label: Label) -> str:
    if label is CURRENCY:
        return f"{label.limit} codes, or `other`"
    if label.listed:
        return ", ".join(f"`{value}`" for value in label.listed) + ", or `other`"
    return f"at most {label.limit}, or `other`"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
