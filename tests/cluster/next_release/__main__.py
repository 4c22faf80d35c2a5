"""Builds the images of the made-up next release over those of this one: `python -m tests.cluster.next_release TAG NEXT`.

What it adds is what a release may add while the one before runs on the same database (docs/upgrading.md, "Expand, then contract"): columns
with defaults on the tables that every sale writes, an index made without a lock, a table, a column of facts.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kit.db import newest_revision
from reporting.clickhouse import newest_migration
from tests.cluster.kubernetes import tool

HERE = Path(__file__).parent
IMAGES = ("gateway", "member", "reporting", "cli", "visits")

# Statements, and those that no transaction may hold.
MEMBER = (
    [
        "ALTER TABLE sales ADD COLUMN visit_id uuid",
        "ALTER TABLE points_entries ADD COLUMN visit_note text NOT NULL DEFAULT ''",
        "ALTER TABLE members ADD COLUMN visits integer NOT NULL DEFAULT 0",
    ],
    ["CREATE INDEX CONCURRENTLY members_visits ON members (visits) WHERE visits > 0"],
)
GATEWAY: tuple[list[str], list[str]] = (
    [
        "ALTER TABLE stores ADD COLUMN counts_visits boolean NOT NULL DEFAULT false",
        "CREATE TABLE visit_counters (store_id uuid PRIMARY KEY REFERENCES stores, counted bigint NOT NULL)",
    ],
    [],
)
REPORTING = "ALTER TABLE sales ADD COLUMN IF NOT EXISTS visit_id UUID;\n"


def main() -> int:
    """Builds them all."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.next_release", description=__doc__)
    parser.add_argument("tag", help="of the images that are there")
    parser.add_argument("next_tag", help="of those to build")
    parsed = parser.parse_args()
    where = _docker(
        "run", "--rm", "--entrypoint", "python", f"regulars/member:{parsed.tag}", "-c", "import kit; print(kit.__path__[0])"
    ).strip()
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        fill(context)
        shutil.copy(HERE / "Dockerfile", context)
        for image in IMAGES:
            _docker(
                "build", "--quiet", "--target", image, "--tag", f"regulars/{image}:{parsed.next_tag}",
                "--label", f"org.opencontainers.image.version={parsed.next_tag}",
                "--build-arg", f"TAG={parsed.tag}", "--build-arg", f"PACKAGES={Path(where).parent}", folder,
            )  # fmt: skip
            print(f"regulars/{image}:{parsed.next_tag}")
    return 0


def fill(context: Path) -> None:
    """Writes what the images get, each service's migration after the newest that this release has."""
    for service, (statements, apart) in {"member": MEMBER, "gateway": GATEWAY}.items():
        newest = newest_revision(f"{service}:migrations")
        revision = f"{int(newest) + 1:04}"
        versions = context / service / "versions"
        versions.mkdir(parents=True)
        (versions / f"{revision}_visits.py").write_text(_migration(revision, newest, statements, apart), "utf-8")
    facts = context / "reporting"
    facts.mkdir()
    (facts / f"{int(newest_migration()[:4]) + 1:04}_visits.sql").write_text(REPORTING, "utf-8")
    shutil.copytree(HERE / "visits", context / "visits", ignore=shutil.ignore_patterns("__pycache__"))


def _migration(revision: str, newest: str, statements: list[str], apart: list[str]) -> str:
    lines = [
        '"""What the next release needs."""',
        "from alembic import op",
        f"revision, down_revision, branch_labels, depends_on = {revision!r}, {newest!r}, None, None",
        "def upgrade():",
        *(f"    op.execute({statement!r})" for statement in statements),
    ]
    if apart:
        lines += ["    with op.get_context().autocommit_block():", *(f"        op.execute({statement!r})" for statement in apart)]
    return "\n".join([*lines, ""])


def _docker(*arguments: str) -> str:
    return subprocess.run([tool("docker"), *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
