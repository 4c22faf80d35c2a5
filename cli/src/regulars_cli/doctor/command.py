"""`regulars doctor`: looks at everything that a running system depends on, changes nothing, and says what to do."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from regulars_cli.doctor.backups import check_backups
from regulars_cli.doctor.bus import check_bus
from regulars_cli.doctor.databases import DATABASES, check_databases
from regulars_cli.doctor.disks import check_disks
from regulars_cli.doctor.facts import check_facts
from regulars_cli.doctor.findings import WORST_FIRST, Finding, exit_code, failed
from regulars_cli.doctor.keys import FINGERPRINT, PERSONAL, PRIVATE, PUBLIC, check_keys
from regulars_cli.doctor.services import check_own_version, check_services
from regulars_cli.doctor.surroundings import Surroundings, SurroundingsUnknown, add_arguments, find_surroundings

CHECK_SECONDS = 60.0
_MARKS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}

Check = Callable[[Surroundings], Awaitable[list[Finding]]]
CHECKS: tuple[Check, ...] = (check_services, check_databases, check_bus, check_facts, check_keys, check_backups)

# What is looked at only where its settings say where it is.
_OPTIONAL = {
    "the gateway": ("REGULARS_URL",),
    "member": ("MEMBER_ADDRESS",),
    "reporting": ("REPORTING_ADDRESS",),
    **{f"the database {each.name}": (each.setting,) for each in DATABASES if each.name != "bus"},
    "the bus": ("BUS_URL",),
    "ClickHouse": ("CLICKHOUSE_URL", "REPORTING_DATA_DIR"),
    "keys": (PRIVATE, PUBLIC, FINGERPRINT, PERSONAL),
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `doctor` to the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check everything that the system depends on, and say what to do",
        description="Checks addresses, versions, migrations, clocks, disks, topics, keys, connections, backups and what waits. It changes "
        "nothing. Exit code 0 if all is well, 1 if there are warnings, 2 if something failed.",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--quiet", action="store_true", help="only what is wrong, or was not checked")
    add_arguments(parser)
    parser.set_defaults(func=run)


def run(parsed: argparse.Namespace) -> int:
    """0: all is well. 1: there are warnings. 2: something failed, or nothing says where the system is."""
    try:
        around = find_surroundings(parsed)
    except SurroundingsUnknown as unknown:
        print(unknown, file=sys.stderr)
        return 2
    findings = asyncio.run(examine(around))
    if parsed.json:
        document = {"status": worst(findings), "findings": findings, "not_checked": not_checked(around)}
        print(json.dumps(msgspec.to_builtins(document), indent=2, ensure_ascii=False))
    else:
        _print(findings, not_checked(around), quiet=parsed.quiet)
    return exit_code(findings)


async def examine(around: Surroundings) -> list[Finding]:
    """All findings, in the order of the checks."""
    found = check_own_version()
    for each in await asyncio.gather(*(_bounded(check, around) for check in CHECKS)):
        found += each
    return [*found, *check_disks(around)]


async def _bounded(check: Check, around: Surroundings) -> list[Finding]:
    """A check that hangs or breaks is a finding, and no reason not to hear the others."""
    name = check.__name__.removeprefix("check_")
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check(around)
    except TimeoutError:
        return [
            failed(name, name, f"Looking at the {name} took longer than {CHECK_SECONDS:.0f} s.", "See whether the network drops packets.")
        ]
    except Exception as error:  # noqa: BLE001  # its text may hold values, so it is not shown
        return [failed(name, name, f"Looking at the {name} broke ({type(error).__name__}).", "Report it, with the version above.")]


def worst(findings: Sequence[Finding]) -> str:
    """The worst status of all."""
    return next((status for status in WORST_FIRST if any(each.status == status for each in findings)), "ok")


def not_checked(around: Surroundings) -> list[str]:
    """What nothing says the place of."""
    lacking = []
    for what, settings in _OPTIONAL.items():
        if what == "the gateway" and around.gateway_url:
            continue
        if not any(around.get(setting) for setting in settings):
            lacking.append(f"{what} (set {' or '.join(settings)})")
    return lacking


def _print(findings: Sequence[Finding], lacking: Sequence[str], *, quiet: bool) -> None:
    for finding in findings:
        if quiet and finding.status == "ok":
            continue
        print(f"{_MARKS[finding.status]}  {finding.check:<12}  {finding.sentence}")
        if finding.advice:
            print(f"{'':<23}→ {finding.advice}")
    if lacking:
        print(f"Not checked: {'; '.join(lacking)}.")
    counted = {status: sum(each.status == status for each in findings) for status in WORST_FIRST}
    print(f"{counted['ok']} ok, {counted['warning']} warnings, {counted['failed']} failed.")
