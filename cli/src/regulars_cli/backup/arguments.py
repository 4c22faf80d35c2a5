"""What `regulars backup` and `regulars restore` are told alike: where backups are, what opens them, and which moment is meant."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from regulars_cli import access
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.sealing import Opener
from regulars_cli.backup.stores import Folder, Store, open_store

NOTE = "backup.json"
# Files of keys, by the names that `python -m kit.keys` gives them: who has these and a backup has everything.
KEY_FILES = ("personal_data.json", "fingerprint.key", "internal_token_private.pem")
PLACE = "where backups are: a folder, or s3://bucket/prefix (default: BACKUP_TO, or where the last one of the installation went)"


def add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--identity", metavar="FILE", type=Path, help="what opens encrypted backups (or BACKUP_IDENTITY_FILE)")


def guarded(parsed: argparse.Namespace) -> int:
    """0: done. 1: not, for the reason that was printed."""
    try:
        code: int = parsed.action(parsed)
    except (CannotBackUp, access.AccessUnknown) as reason:
        print(reason, file=sys.stderr)
        return 1
    return code


def store_of(parsed: argparse.Namespace) -> Store:
    place = parsed.place or os.environ.get("BACKUP_TO", "") or place_noted(getattr(parsed, "var", None))
    return open_store(place)


def opener_of(parsed: argparse.Namespace) -> Opener:
    named = os.environ.get("BACKUP_IDENTITY_FILE")
    return Opener(parsed.identity or (Path(named) if named else None))


def place_noted(var: Path | None) -> str:
    """Where the installation's backups went the last time; empty: nobody knows."""
    try:
        return str(json.loads(((var or access.VAR) / NOTE).read_bytes())["to"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def note_place(var: Path, store: Store) -> None:
    """So that `regulars doctor` looks there, and whoever lists or restores need not say it again."""
    if (var / "up.json").exists():
        fresh = var / (NOTE + ".new")
        fresh.write_text(json.dumps({"to": store.place}) + "\n", "utf-8")
        fresh.replace(var / NOTE)


def noted_settings(var: Path) -> Mapping[str, str]:
    """The services' settings as the last `regulars up` noted them; none where there was none."""
    try:
        noted = json.loads((var / "up.json").read_bytes())["environment"]
        return {str(name): str(value) for name, value in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def refuse_keys_beside(store: Store) -> None:
    """Raises CannotBackUp where keys lie in the folder of the backups, or above it: who takes the one has the other."""
    if not isinstance(store, Folder):
        return
    root = Path(store.place)
    for folder in (root, *root.parents[:2], root / "keys"):
        if any((folder / name).exists() for name in KEY_FILES):
            raise CannotBackUp(
                f"Keys lie in {folder}, beside the backups: keep backups elsewhere, or whoever takes them can read everything."
            )


def instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(sep=" ", timespec="seconds")


def moment(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a moment is written as 2026-11-22T14:15:00+08:00") from None
    if at.tzinfo is None:
        raise argparse.ArgumentTypeError("say in which zone, as 2026-11-22T14:15:00+08:00 or …Z: hours matter here")
    return at.astimezone(UTC)
