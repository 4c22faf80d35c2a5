"""Where the parts of a system are: as the environment says it to a pod, else as the last `regulars up` noted it."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kit.clock import Clock, SystemClock
from regulars_cli.access import VAR

# Any of them says that the environment is meant.
_OF_A_POD = ("MEMBER_DATABASE_URL", "GATEWAY_DATABASE_URL", "BUS_URL", "MEMBER_ADDRESS", "REPORTING_ADDRESS", "REGULARS_URL")
TOPICS_IN_IMAGE = Path("/app/protos/topics.yaml")
TOPICS_IN_CHECKOUT = Path(__file__).resolve().parents[4] / "protos" / "topics.yaml"


class SurroundingsUnknown(Exception):
    """Nothing says where the system is; the sentence says what to do."""


@dataclass(frozen=True)
class Surroundings:
    """`environ` are the services' settings. `var` is the folder of an installation on this machine, if there is one."""

    environ: Mapping[str, str]
    var: Path | None
    gateway_url: str
    # HOST:PORT of the operators' ports, by name.
    operators_ports: Mapping[str, str]
    backup_to: str
    topics_file: Path
    clock: Clock

    def get(self, name: str) -> str:
        """A setting; empty where there is none."""
        return self.environ.get(name, "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to look."""
    parser.add_argument("--var", metavar="DIR", type=Path, default=VAR, help="the installation's folder (default: %(default)s)")
    parser.add_argument("--url", default="", help="the gateway's address (default: REGULARS_URL, or from up.json in the folder)")
    parser.add_argument(
        "--ops",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="an operators' port whose release is to be compared; may be given again (default: OPS_ADDRESSES, separated by commas)",
    )
    parser.add_argument(
        "--topics", type=Path, default=None, help="the registry of topics (default: REGULARS_TOPICS, or that of this release)"
    )


def find_surroundings(parsed: argparse.Namespace, environ: Mapping[str, str] | None = None, clock: Clock | None = None) -> Surroundings:
    """Raises SurroundingsUnknown."""
    source: Mapping[str, str] = dict(os.environ) if environ is None else environ
    noted: dict[str, Any] = {}
    var: Path | None = None
    if not any(source.get(name) for name in _OF_A_POD):
        var = parsed.var
        noted = _noted(parsed.var)
        source = {**source, **noted["environment"]}
    ports = parsed.ops or [each.strip() for each in source.get("OPS_ADDRESSES", "").split(",") if each.strip()]
    topics = parsed.topics or (Path(source["REGULARS_TOPICS"]) if source.get("REGULARS_TOPICS") else _topics_of_release())
    return Surroundings(
        environ=source,
        var=var,
        gateway_url=parsed.url or source.get("REGULARS_URL", "") or str(noted.get("url", "")),
        operators_ports={each: each for each in ports} or {str(name): str(each) for name, each in (noted.get("ops") or {}).items()},
        backup_to=source.get("BACKUP_TO", "") or (_backup_noted(var) if var else ""),
        topics_file=topics,
        clock=clock or SystemClock(),
    )


def without_secrets(url: str) -> str:
    """Where a URL leads, without who asks and with which password: host:port/database, or the socket's folder."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "an address that cannot be read"
    place = host or parse_qs(parts.query).get("host", [""])[0] or "this machine"
    return f"{place}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def _topics_of_release() -> Path:
    return next((path for path in (TOPICS_IN_CHECKOUT, TOPICS_IN_IMAGE) if path.exists()), TOPICS_IN_CHECKOUT)


def _noted(var: Path) -> dict[str, Any]:
    path = var / "up.json"
    try:
        noted: dict[str, Any] = json.loads(path.read_bytes())
        noted["environment"] = {str(name): str(value) for name, value in noted["environment"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SurroundingsUnknown(
            f"{path} does not say where the system is: start it with `make up`, or set MEMBER_DATABASE_URL and the like as for a service."
        ) from None
    return noted


def _backup_noted(var: Path) -> str:
    try:
        return str(json.loads((var / "backup.json").read_bytes())["to"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
