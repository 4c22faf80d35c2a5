"""The disks of an installation on this machine, and of the folders that settings name."""

import shutil
from pathlib import Path

from regulars_cli.doctor.findings import Finding, failed, ok, warning
from regulars_cli.doctor.surroundings import Surroundings

# As `regulars up` warns, and what a night's work needs.
FAILS_MB, WARNS_MB = 200, 2048
WARNS_PERCENT = 10


def check_disks(around: Surroundings) -> list[Finding]:
    """Each folder that is here."""
    folders: dict[str, Path] = {}
    if around.var is not None:
        folders["installation"] = around.var
        folders["postgresql"] = around.var / "postgres"
    if around.get("REPORTING_DATA_DIR") and not around.get("CLICKHOUSE_URL"):
        folders["facts"] = Path(around.get("REPORTING_DATA_DIR"))
    if around.backup_to and "://" not in around.backup_to:
        folders["backups"] = Path(around.backup_to)
    found: list[Finding] = []
    seen: dict[int, str] = {}
    for name, folder in folders.items():
        try:
            device = folder.stat().st_dev
            usage = shutil.disk_usage(folder)
        except OSError as error:
            if name != "postgresql":
                found.append(failed("disk", name, f"{folder} cannot be reached ({error.strerror}).", "Mount it, or correct its path."))
            continue
        if device in seen:
            if name == "backups":
                said = f"Backups in {folder} are on the same disk as {seen[device]}: both go at once."
                found.append(warning("disk", name, said, "Keep them on another machine, or in an object store."))
            continue
        seen[device] = str(folder)
        free = usage.free // 1024**2
        said = f"The disk of {folder} has {free:,} MB left ({100 * usage.free // usage.total} %)"
        if free < FAILS_MB:
            found.append(failed("disk", name, f"{said}.", "Make room now: when it is full, sales are refused."))
        elif free < WARNS_MB or 100 * usage.free < WARNS_PERCENT * usage.total:
            found.append(warning("disk", name, f"{said}.", "Make room: old backups, logs, images."))
        else:
            found.append(ok("disk", name, f"{said}."))
    return found
