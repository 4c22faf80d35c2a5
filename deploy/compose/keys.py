"""Makes the installation's keys and passwords where they are missing, and gives each container those that it reads, and no other.

The whole set is in /keys/all, the volume to back up. Every other folder of /keys is one container's, which sees it as /run/keys. Runs
with every `docker compose up`, as root, to hand over what it writes, without a network and with no other right.
"""

import os
import secrets
import sys
import tempfile
from pathlib import Path

from kit.keys import KeysUnusable, create_missing_keys

KEYS = Path("/keys")
# Whom the files belong to: our services; the users of the official images.
REGULARS, POSTGRES, CLICKHOUSE, GRAFANA = 10001, 999, 101, 472
PASSWORDS = ("postgres", "member", "gateway", "backup", "clickhouse", "grafana")
# As PostgreSQL's clients look a user's password up; the operator's command knows them all.
USERS = {"member": ("member",), "gateway": ("gateway",), "backup": ("backup",), "operator": ("member", "gateway", "backup")}
# By folder: the owner, and what is in it.
READERS = {
    "gateway": (REGULARS, ("internal_token_private.pem", "fingerprint.key", "gateway.pgpass")),
    "member": (REGULARS, ("internal_token_public.pem", "personal_data.json", "member.pgpass")),
    "relay": (REGULARS, ("member.pgpass",)),
    "reporting": (REGULARS, ("internal_token_public.pem", "clickhouse.password")),
    "consume": (REGULARS, ("clickhouse.password",)),
    "cli": (REGULARS, ("operator.pgpass", "clickhouse.password", "internal_token_public.pem")),
    "backup": (REGULARS, ("backup.pgpass",)),
    "postgres": (POSTGRES, ("postgres.password", "member.password", "gateway.password", "backup.password")),
    "clickhouse": (CLICKHOUSE, ("clickhouse.password",)),
    "grafana": (GRAFANA, ("grafana.password",)),
}
# What our services write into: the address and the keys of the demo chain; backups.
WRITTEN = ("notes", "backups")


def make(folder: Path) -> None:
    """Everything in one folder, as it was if it was there."""
    create_missing_keys(folder)
    for name in PASSWORDS:
        file = folder / f"{name}.password"
        if not file.exists():
            put(file, f"{secrets.token_urlsafe(24)}\n".encode(), os.geteuid())
    for holder, users in USERS.items():
        lines = [f"*:*:*:{user}:{(folder / f'{user}.password').read_text().strip()}\n" for user in users]
        put(folder / f"{holder}.pgpass", "".join(lines).encode(), os.geteuid())


def put(file: Path, content: bytes, owner: int) -> None:
    """The file whole or as it was before, for its owner's eyes only."""
    descriptor, fresh = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "wb") as writing:
        writing.write(content)
        writing.flush()
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o400)
        os.fchown(descriptor, owner, owner)
    Path(fresh).replace(file)


def hand_out(everything: Path, folder: Path, owner: int, names: tuple[str, ...]) -> None:
    """Exactly these files, in a folder that belongs to who reads them."""
    for name in names:
        put(folder / name, (everything / name).read_bytes(), owner)
    for left in folder.iterdir():
        if left.name not in names:
            left.unlink()
    folder.chmod(0o500)
    os.chown(folder, owner, owner)


def main() -> int:
    """Exit code 1 when a key cannot be made again and its other half is lost."""
    try:
        make(KEYS / "all")
    except KeysUnusable as error:
        print(error, file=sys.stderr)
        return 1
    for name, (owner, files) in READERS.items():
        hand_out(KEYS / "all", KEYS / name, owner, files)
    for name in WRITTEN:
        (KEYS / name).chmod(0o700)
        os.chown(KEYS / name, REGULARS, REGULARS)
    print("The keys are there.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
