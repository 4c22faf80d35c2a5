"""What a check says: one sentence, how bad it is, and what to do about it."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

Status = Literal["ok", "warning", "failed"]
WORST_FIRST: tuple[Status, ...] = ("failed", "warning", "ok")


class Finding(Struct, frozen=True, kw_only=True):
    """`check` is the area (address, version, …), `subject` what was looked at; `advice` is empty where nothing is to be done."""

    check: str
    subject: str
    status: Status
    sentence: str
    advice: str = ""


def ok(check: str, subject: str, sentence: str) -> Finding:
    return Finding(check=check, subject=subject, status="ok", sentence=sentence)


def warning(check: str, subject: str, sentence: str, advice: str) -> Finding:
    return Finding(check=check, subject=subject, status="warning", sentence=sentence, advice=advice)


def failed(check: str, subject: str, sentence: str, advice: str) -> Finding:
    return Finding(check=check, subject=subject, status="failed", sentence=sentence, advice=advice)


def exit_code(findings: Iterable[Finding]) -> int:
    """0: all is well. 1: warnings. 2: something failed."""
    found = {finding.status for finding in findings}
    return 2 if "failed" in found else 1 if "warning" in found else 0
