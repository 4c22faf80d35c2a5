"""Where the gateway is and with which key: `--url` and `--key`, REGULARS_URL and REGULARS_KEY, or what `regulars up` wrote to `up.json`."""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

# Of the repository, wherever the command is called: the same as `regulars up` uses. An image has no repository, and names it.
VAR = Path(os.environ.get("REGULARS_VAR") or Path(__file__).resolve().parents[3] / "var")


class AccessUnknown(Exception):
    """Neither given nor found; the sentence says what to do."""


@dataclass(frozen=True)
class Access:
    url: str
    admin_key: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--var`, `--url` and `--key`."""
    parser.add_argument("--var", metavar="DIR", type=Path, default=VAR, help="the installation's folder (default: %(default)s)")
    parser.add_argument("--url", help="the gateway's address (default: REGULARS_URL, or from up.json in the folder)")
    parser.add_argument("--key", help="an admin key (default: REGULARS_KEY, or from up.json in the folder)")


def find_access(parsed: argparse.Namespace) -> Access:
    """Raises AccessUnknown."""
    url, key = parsed.url or os.environ.get("REGULARS_URL"), parsed.key or os.environ.get("REGULARS_KEY")
    if url and key:
        return Access(url, key)
    path = parsed.var / "up.json"
    try:
        found: dict[str, str] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise AccessUnknown(f"{path} cannot be read: start the system with `make up`, or give --url and --key.") from None
    try:
        return Access(url or found["url"], key or found["admin_key"])
    except (KeyError, TypeError):
        raise AccessUnknown(f"{path} names no address or admin key: give --url and --key.") from None
