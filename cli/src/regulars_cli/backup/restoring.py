"""A data folder out of a base backup and the WAL after it, up to a moment.

Everything is made beside its place and takes it when it is whole and PostgreSQL has recovered it: a restore that is cut off leaves
nothing that looks like data, and what was there before is set aside, never removed.

The recovered server begins a new timeline. What comes after, the bus and the reports included, is in docs/backup.md.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from msgspec import Struct, field

from kit.clock import Clock
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import Backup, Contents, Segment, segment_name
from regulars_cli.backup.sealing import Opener, SealBroken
from regulars_cli.backup.servers import Server, last_line
from regulars_cli.backup.stores import PIECE_BYTES, Store
from regulars_cli.up.sockets import socket_folder

WAL_FOLDER = "regulars_wal"
AUTO_CONF = "postgresql.auto.conf"
_MANIFEST = "backup_manifest"
_MARK = "# Of a restore by `regulars restore`; it goes when it is done."
_FETCHERS = 4
_RECOVERY_SECONDS = 24 * 3600.0
_TARGET_MISSED = "recovery ended before configured recovery target was reached"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is restored from what. `at` None: everything that the archive has."""

    backup: Backup
    wal: Sequence[Segment]
    at: datetime | None
    reaches: datetime


@dataclass(frozen=True)
class Owner:
    """Whom PostgreSQL runs as, where that is not whoever restores: how to give it a path, and to run as it."""

    give: Callable[[Path], None]
    options: dict[str, Any]


def plan(contents: Contents, at: datetime | None, backup_id: str | None = None) -> Plan:
    """Which base backup serves the moment, and whether the WAL reaches it. Raises CannotBackUp, saying what can be restored."""
    if not contents.backups:
        raise CannotBackUp("There is no whole base backup in the archive.")
    usable = [each for each in contents.backups if at is None or each.ended_at <= at]
    if backup_id is not None:
        usable = [each for each in usable if each.id == backup_id]
    if not usable:
        if backup_id is not None:
            raise CannotBackUp(f"There is no whole base backup {backup_id} from before that moment: `regulars backup list` names them.")
        raise CannotBackUp(f"The oldest base backup is of {_said(contents.backups[0].ended_at)}: nothing before that can be restored.")
    backup = usable[-1]
    reaches = contents.restorable_until(backup)
    if at is not None and at > reaches:
        raise CannotBackUp(
            f"The archive reaches to {_said(reaches)}: choose that or an earlier moment, or leave --at away for all there is."
        )
    return Plan(backup, contents.wal_after(backup), at, reaches)


def restore(
    store: Store,
    chosen: Plan,
    opener: Opener,
    folder: Path,
    server: Server,
    clock: Clock,
    say: Say,
    *,
    owner: Owner | None = None,
    recovers: bool = True,
) -> Path | None:
    """Makes `folder`, a data folder of PostgreSQL. Returns where what was there before is now.

    Without `recovers`, the server that is started on it does the recovery itself, and the WAL stays in it.

    Raises:
        CannotBackUp: nothing was changed.
    """
    if (folder / "postmaster.pid").exists():
        raise CannotBackUp(
            f"A PostgreSQL runs on {folder}, or was killed there: stop the system first; after a crash remove its postmaster.pid."
        )
    if recovers and owner is None and os.geteuid() == 0:
        raise CannotBackUp(
            "PostgreSQL does not run as root, so nothing can be recovered here: restore as the user that it runs as (`postgres`; 999 in its"
            " image), or with --leave-recovery, and give the folder to that user."
        )
    fresh = folder.with_name(folder.name + ".restoring")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(mode=0o700, parents=True)
        _make(fresh, store, chosen, opener, server, say, owner, recovers=recovers)
        aside = _set_aside(folder, clock)
        fresh.rename(folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise CannotBackUp(f"{error.filename or fresh} cannot be written: {error.strerror or type(error).__name__}.") from error
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return aside


def _make(
    fresh: Path, store: Store, chosen: Plan, opener: Opener, server: Server, say: Say, owner: Owner | None, *, recovers: bool
) -> None:
    backup = chosen.backup
    say(f"Fetching the base backup {backup.id} ({backup.size / 1e6:,.0f} MB).")
    base = next(part for part in backup.parts if "/base.tar" in part.name)
    with closing(opener.get(store, base.name, base.sha256)) as pieces:
        _unpack(pieces, fresh)
    _verify(fresh, backup)
    # A server that keeps its socket in its data folder has the socket's lock there too, which says that it runs.
    for lock in fresh.glob(".s.PGSQL.*"):
        lock.unlink()
    if chosen.wal:
        say(f"Fetching {len(chosen.wal):,} segments of WAL.")
    _fetch_wal(store, chosen.wal, backup, opener, fresh / WAL_FOLDER)
    _configure(fresh, chosen, exact=True)
    if owner is not None:
        for path in (fresh, *fresh.rglob("*")):
            owner.give(path)
    if recovers:
        say(f"Recovering to {_said(chosen.at)}." if chosen.at else f"Recovering everything, to {_said(chosen.reaches)} at least.")
        _recover(fresh, chosen, server, owner)
        _forget_recovery(fresh)


def _set_aside(folder: Path, clock: Clock) -> Path | None:
    """Makes room for the new one. Returns where what was there is now; None: there was nothing."""
    if not folder.exists():
        return None
    if not any(folder.iterdir()):
        folder.rmdir()
        return None
    aside = folder.with_name(f"{folder.name}.before-{clock.now():%Y%m%dT%H%M%SZ}")
    folder.rename(aside)
    return aside


def _unpack(pieces: Iterator[bytes], folder: Path) -> None:
    """A tar as it comes, written by whoever restores. Raises SealBroken when it is not whole, or holds what is in no data folder."""
    try:
        with tarfile.open(fileobj=_File(pieces), mode="r|", bufsize=PIECE_BYTES) as tar:  # type: ignore[call-overload]  # reading is all it needs
            for member in tar:
                _take_out(tar, member, folder)
    except tarfile.TarError as error:
        raise SealBroken("The base backup is damaged: it does not unpack.") from error
    # What follows the end of the tar: its checksum is compared when all was read.
    for _ in pieces:
        pass


def _take_out(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Only files and folders belong into a data folder, and none outside of it; for the server's user alone."""
    name = PurePosixPath(member.name)
    content = tar.extractfile(member) if member.isfile() else None
    if name.is_absolute() or ".." in name.parts or (content is None and not member.isdir()):
        raise SealBroken(f"The base backup holds {member.name}, which is no file or folder of a data folder.")
    path = folder / name
    if content is None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, PIECE_BYTES)


class _File:
    """Pieces as a file that is read in order."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""

    def read(self, size: int) -> bytes:
        parts, length = [self._held], len(self._held)
        while length < size and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            length += len(piece)
        joined = b"".join(parts)
        self._held = joined[size:]
        return joined[:size]


def _verify(folder: Path, backup: Backup) -> None:
    """Compares every file with the checksum that PostgreSQL made when it sent it, as `pg_verifybackup` does; none is too many or missing.

    That program is not called, since the wheel's crashes. What the WAL is worth, the recovery says.
    """
    text = (folder / _MANIFEST).read_bytes() if (folder / _MANIFEST).exists() else b""
    body, mark, _ = text.rpartition(b'"Manifest-Checksum"')
    try:
        manifest = msgspec.json.decode(text, type=_Manifest)
    except msgspec.DecodeError as error:
        raise SealBroken(f"The base backup {backup.id} is damaged: it has no manifest.") from error
    if not mark or hashlib.sha256(body).hexdigest() != manifest.checksum:
        raise SealBroken(f"The base backup {backup.id} is damaged: its manifest was changed.")
    # What is in the folder of the WAL is not a part of the backup by it.
    expected = {entry.name: entry for entry in manifest.files if not entry.name.startswith("pg_wal/")}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {_MANIFEST}
    found = {name for name in found if not name.startswith("pg_wal/")}
    if wrong := sorted(expected.keys() ^ found):
        raise SealBroken(f"The base backup {backup.id} is damaged: {wrong[0]} is {'missing' if wrong[0] in expected else 'too many'}.")
    with ThreadPoolExecutor(_FETCHERS) as pool:
        for entry, digest in zip(expected.values(), pool.map(partial(_digest, folder), expected), strict=True):
            if digest != entry.checksum:
                raise SealBroken(f"The base backup {backup.id} is damaged: {entry.name} is not what was sent.")


class _Entry(Struct, frozen=True):
    """A file of a manifest; its name in hexadecimal where it is no UTF-8."""

    checksum: str = field(name="Checksum")
    path: str = field(name="Path", default="")
    encoded_path: str = field(name="Encoded-Path", default="")

    @property
    def name(self) -> str:
        return self.path or os.fsdecode(bytes.fromhex(self.encoded_path))


class _Manifest(Struct, frozen=True):
    """What is read of `backup_manifest`."""

    files: list[_Entry] = field(name="Files")
    checksum: str = field(name="Manifest-Checksum")


def _digest(folder: Path, name: str) -> str:
    with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_wal(store: Store, wal: Sequence[Segment], backup: Backup, opener: Opener, folder: Path) -> None:
    folder.mkdir(mode=0o700)

    def fetch(segment: Segment) -> None:
        path = folder / segment_name(segment.timeline, segment.number, backup.segment_bytes)
        with path.open("wb") as file, closing(opener.get(store, segment.object.name)) as pieces:
            file.writelines(pieces)
        if path.stat().st_size != backup.segment_bytes:
            raise SealBroken(f"{segment.object.name} is damaged: it has not the size of a segment.")

    with ThreadPoolExecutor(_FETCHERS) as pool:
        list(pool.map(fetch, wal))


def _configure(folder: Path, chosen: Plan, *, exact: bool) -> None:
    """What PostgreSQL reads when it starts on the folder: where WAL is, and how far to go."""
    settings = {
        "restore_command": f'cp "{WAL_FOLDER}/%f" "%p"',
        "recovery_target_timeline": "current",
        "recovery_target_action": "promote",
    }
    if chosen.at is not None and exact:
        settings["recovery_target_time"] = chosen.at.isoformat(sep=" ")
        settings["recovery_target_inclusive"] = "true"
    lines = [_MARK, *(f"{name} = '{value}'" for name, value in settings.items())]
    own = _without_ours((folder / AUTO_CONF).read_text("utf-8") if (folder / AUTO_CONF).exists() else "")
    (folder / AUTO_CONF).write_text("\n".join([own.rstrip("\n"), *lines]).lstrip("\n") + "\n", "utf-8")
    (folder / "recovery.signal").touch(mode=0o600)


def _without_ours(text: str) -> str:
    """What was there before a restore wrote, which always does so at the end."""
    return text.partition(_MARK)[0]


def _forget_recovery(folder: Path) -> None:
    path = folder / AUTO_CONF
    path.write_text(_without_ours(path.read_text("utf-8")), "utf-8")
    shutil.rmtree(folder / WAL_FOLDER, ignore_errors=True)


def _recover(folder: Path, chosen: Plan, server: Server, owner: Owner | None) -> None:
    """Runs PostgreSQL by itself until it has recovered, and stops it in good order."""
    said = _run_until_recovered(folder, chosen.backup, server, owner)
    if said is not None and _TARGET_MISSED in said and chosen.at is not None:
        # The archive reaches beyond the moment, so nothing was committed between its last commit and then: all of it is what was meant.
        _configure(folder, chosen, exact=False)
        said = _run_until_recovered(folder, chosen.backup, server, owner)
    if said is not None:
        raise CannotBackUp(f"PostgreSQL could not recover: {_fatal_line(said)}")


def _run_until_recovered(folder: Path, backup: Backup, server: Server, owner: Owner | None) -> str | None:
    """None when it has recovered; else what it said."""
    major = int(backup.server_version.split(".")[0])
    # Nobody connects: it takes no network, and its socket is in a folder that is closed.
    socket_dir = socket_folder(folder, ".s.PGSQL.5432")
    if owner is not None:
        owner.give(socket_dir)
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "archive_mode": "off",
        "hot_standby": "off",
        "log_min_messages": "warning",
    }
    options |= {
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_statement": "none",
        "log_error_verbosity": "terse",
        "fsync": "on",
    }
    options |= {
        "shared_preload_libraries": "",
        "ssl": "off",
        "hba_file": str(folder / "pg_hba.conf"),
        "ident_file": str(folder / "pg_ident.conf"),
    }
    command = [
        server.program("postgres", major),
        "-D",
        str(folder),
        *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("PG")}, "LC_ALL": "C"},
        **(owner.options if owner else {}),
    )
    assert process.stderr is not None  # noqa: S101  # it was asked for
    said = bytearray()

    def listen() -> None:
        assert process.stderr is not None  # noqa: S101
        for line in process.stderr:
            said.extend(line)
            del said[:-65536]

    listening = threading.Thread(target=listen)
    listening.start()
    deadline = time.monotonic() + _RECOVERY_SECONDS
    try:
        # The signal's file goes when recovery is at its end; only then does the server take a stop in good order.
        while process.poll() is None and not _is_ready(folder):
            if time.monotonic() > deadline:
                raise CannotBackUp("PostgreSQL has not recovered within a day.")
            time.sleep(0.05)
        recovered = process.poll() is None and not (folder / "recovery.signal").exists()
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        listening.join()
        process.stderr.close()
        if socket_dir != folder:
            shutil.rmtree(socket_dir, ignore_errors=True)
    return None if recovered else said.decode("utf-8", "replace")


def _is_ready(folder: Path) -> bool:
    """Whether the server says that it takes connections, which it does when it has recovered."""
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return lines[7:] == ["ready   "]


def _fatal_line(said: str) -> str:
    fatal = [line for line in said.splitlines() if "FATAL" in line or "PANIC" in line]
    return last_line("\n".join(fatal) or said)


def _said(at: datetime | None) -> str:
    return at.isoformat(sep=" ", timespec="milliseconds") if at else "the end"
