"""`regulars programme apply|check|show`: a programme is a file, and what it changes is seen before it is done."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec

from member.programmes.files import ProgrammeFileUnreadable, read_definition
from member.programmes.rules import ProgrammeInvalid, parse_programme
from regulars_cli import access


class Change(msgspec.Struct):
    """One setting that differs; nothing on a side where it is not there."""

    pointer: str
    before: object = msgspec.field(name="from")
    after: object = msgspec.field(name="to")


class Proposal(msgspec.Struct):
    """What the gateway answers to `:check` and `:apply`."""

    programme_id: str
    version: int
    effective_from: str
    is_new: bool
    changes: list[Change]
    warnings: list[str]


class Version(msgspec.Struct):
    """One version of a programme as the gateway shows it."""

    version: int
    effective_from: str
    applied_at: str
    applied_by: str
    definition: dict[str, object]


class Programme(msgspec.Struct):
    """A programme as the gateway shows it, newest version first."""

    id: str
    name: str
    current_version: int
    versions: list[Version]


class CannotBeDone(Exception):
    """The command ends here; the text says why, and what to do."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `programme` to the command."""
    parser = subparsers.add_parser("programme", help="check, apply and show loyalty programmes")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    apply = actions.add_parser("apply", help="add a file's definition as a dated version, after showing what it changes")
    apply.add_argument("file", type=Path)
    apply.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    apply.add_argument("--yes", action="store_true", help="do not ask")
    access.add_arguments(apply)
    apply.set_defaults(func=_run, action=_apply)

    check = actions.add_parser("check", help="check a file alone, without a running system")
    check.add_argument("file", type=Path)
    check.set_defaults(func=_run, action=_check)

    show = actions.add_parser("show", help="show a programme's versions and the definition in effect")
    show.add_argument("programme_id", metavar="ID")
    show.add_argument("--json", action="store_true", help="as the gateway answers it")
    access.add_arguments(show)
    show.set_defaults(func=_run, action=_show)


def _run(parsed: argparse.Namespace) -> int:
    """0: done, or nothing to do. 1: refused, or it could not be done."""
    try:
        parsed.action(parsed)
    except (CannotBeDone, access.AccessUnknown, ProgrammeFileUnreadable) as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


def _check(parsed: argparse.Namespace) -> None:
    try:
        draft = parse_programme(read_definition(parsed.file))
    except ProgrammeInvalid as invalid:
        raise CannotBeDone(_faults(parsed.file, [(fault.pointer, fault.detail) for fault in invalid.faults])) from None
    print(f"{parsed.file} is a valid definition of {draft.programme_id}, from {draft.effective_from}.")


def _apply(parsed: argparse.Namespace) -> None:
    _check(parsed)
    body = msgspec.json.encode(read_definition(parsed.file))
    gateway = access.find_access(parsed)
    proposal = msgspec.json.decode(_call(gateway, "POST", "/v1/programmes:check", parsed.file, body), type=Proposal)
    for line in describe(proposal):
        print(line)
    if not proposal.is_new or parsed.dry_run:
        return
    if not parsed.yes and not _agreed():
        raise CannotBeDone("Nothing was changed.")
    applied = msgspec.json.decode(_call(gateway, "POST", "/v1/programmes:apply", parsed.file, body), type=Proposal)
    print(f"{applied.programme_id} is at version {applied.version}.")


def _show(parsed: argparse.Namespace) -> None:
    answer = _call(access.find_access(parsed), "GET", f"/v1/programmes/{quote(parsed.programme_id, safe='')}", None, None)
    if parsed.json:
        print(json.dumps(json.loads(answer), indent=2, ensure_ascii=False))
        return
    programme = msgspec.json.decode(answer, type=Programme)
    print(f"{programme.name} ({programme.id})")
    for version in programme.versions:
        mark = ", in effect" if version.version == programme.current_version else ""
        print(f"  version {version.version}, from {version.effective_from}{mark} (applied {version.applied_at} by {version.applied_by})")
    current = next(version for version in programme.versions if version.version == programme.current_version)
    for pointer, value in _settings("", current.definition):
        print(f"  {_name(pointer)}: {_value(value)}")


def describe(proposal: Proposal) -> Iterator[str]:
    """What applying does, in words."""
    if not proposal.is_new:
        yield f"Nothing to do: version {proposal.version} of {proposal.programme_id} says the same."
        return
    if proposal.version == 1:
        yield f"{proposal.programme_id} is new. Version 1, from {proposal.effective_from}:"
    else:
        yield f"Version {proposal.version} of {proposal.programme_id}, from {proposal.effective_from}, changes:"
    for change in proposal.changes:
        name = _name(change.pointer)
        if change.before is None:
            yield f"  {name}: {_value(change.after)}"
        elif change.after is None:
            yield f"  {name}: no longer {_value(change.before)}"
        else:
            yield f"  {name}: {_value(change.before)} → {_value(change.after)}"
    for warning in proposal.warnings:
        yield f"  Note: {warning}"


def _settings(pointer: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _settings(f"{pointer}/{key}", each)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for index, each in enumerate(value):
            yield from _settings(f"{pointer}/{index}", each)
    elif value not in (None, []):
        yield pointer, value


def _name(pointer: str) -> str:
    """`/earn/multipliers/0/rate_bp` as `earn multipliers 1 rate_bp`: people count from one."""
    parts = pointer.strip("/").split("/")
    return " ".join(str(int(part) + 1) if part.isdecimal() else part.replace("~1", "/").replace("~0", "~") for part in parts)


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(each)}" for key, each in value.items() if each not in (None, []))
    return "none" if value is None else str(value)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise CannotBeDone("Nothing was changed: give --yes where nobody can be asked.")
    return input("Apply? [y/N] ").strip().lower() in ("y", "yes")


def _call(gateway: access.Access, method: str, path: str, file: Path | None, body: bytes | None) -> bytes:
    headers = {"Authorization": f"Bearer {gateway.admin_key}", "Content-Type": "application/json"}
    try:
        answer = httpx.request(method, gateway.url.rstrip("/") + path, content=body, headers=headers, timeout=30, trust_env=False)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise CannotBeDone(f"The gateway at {gateway.url} does not answer ({type(error).__name__}): is the system up?") from error
    if answer.is_success:
        return answer.content
    try:
        problem = answer.json()
        errors = [(error["pointer"], error["detail"]) for error in problem.get("errors", ())]
        detail = problem["detail"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CannotBeDone(f"The gateway answered {answer.status_code}.") from None
    raise CannotBeDone(_faults(file, errors) if file and errors else f"{detail} ({problem.get('code')})")


def _faults(file: Path, faults: list[tuple[str, str]]) -> str:
    return "\n".join([f"{file} is not valid:", *(f"  {_name(pointer) or 'the file'}: {detail}" for pointer, detail in faults)])
