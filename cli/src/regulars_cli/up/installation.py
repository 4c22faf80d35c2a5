"""The folder `var/` of an installation: everything that it keeps, and the notes by which one start knows of another.

| path | holds |
|---|---|
| `version` | the version of this layout |
| `lock` | held by the supervisor while it lives, by the kernel, so that a killed one leaves nothing locked |
| `up.json` | address and keys for scripts; mode 0600 |
| `processes.json` | who runs now, to stop what a killed supervisor left |
| `keys/` | the installation's keys (kit.keys): back them up |
| `postgres/` | the embedded database |
| `clickhouse/` | the facts of `reporting`, made anew from the others by `regulars reporting rebuild` |
| `kafka/` | the local broker of `make up KAFKA=local` |
| `run/` | Unix sockets |
| `log/` | what every process says |
"""

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regulars_cli.up import CannotStart
from regulars_cli.up.processes import Identity, ProcessSpec

LAYOUT_VERSION = 1
# A fresh data folder of PostgreSQL with its first write-ahead log takes about 100 MB.
NEEDED_MB = 300
SUPERVISOR = "supervisor"


@dataclass(frozen=True)
class RunningProcess:
    """A process noted in `processes.json`."""

    name: str
    identity: Identity
    stop_signal: signal.Signals


@dataclass(frozen=True)
class Installation:
    """The folder and what is in it. Nothing is written before `locked`."""

    folder: Path

    @property
    def up_file(self) -> Path:
        return self.folder / "up.json"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    @property
    def facts(self) -> Path:
        return self.folder / "clickhouse"

    @property
    def kafka(self) -> Path:
        return self.folder / "kafka"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only supervisor of this folder, which is made if it is missing.

        Raises:
            CannotStart: another one runs, the layout is of a newer version, or the disk is full.
        """
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            # Others may pass through, to the database that runs as a user of its own, but not look around.
            self.folder.chmod(0o711)
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CannotStart(self._where_it_runs()) from None
            self._check_version()
            self._check_space()
            for part in (self.keys, self.logs, self.run):
                part.mkdir(mode=0o700, exist_ok=True)
            yield

    def free_mb(self) -> int:
        return shutil.disk_usage(self.folder).free // 1024**2

    def read_up(self) -> dict[str, Any]:
        """What the last start wrote into `up.json`; empty if it is missing or damaged."""
        return _read_json(self.up_file)

    def write_up(self, content: dict[str, Any]) -> None:
        _write_json(self.up_file, content)

    def note_processes(self, children: Sequence[tuple[ProcessSpec, Identity]]) -> None:
        """Note who runs: this supervisor and its children."""
        me = Identity.of(os.getpid())
        running = [(SUPERVISOR, me, signal.SIGTERM), *((spec.name, identity, spec.stop_signal) for spec, identity in children)]
        notes = [
            {"name": name, "pid": identity.pid, "started": identity.started, "stop_signal": number.name}
            for name, identity, number in running
            if identity is not None
        ]
        _write_json(self.folder / "processes.json", {"processes": notes})

    def running_processes(self) -> list[RunningProcess]:
        """The noted processes that are alive."""
        notes = _read_json(self.folder / "processes.json").get("processes", [])
        noted = [RunningProcess(n["name"], Identity(n["pid"], n["started"]), signal.Signals[n["stop_signal"]]) for n in notes]
        return [process for process in noted if process.identity.alive()]

    def forget_processes(self) -> None:
        (self.folder / "processes.json").unlink(missing_ok=True)

    def stop_leftovers(self) -> list[str]:
        """Stop what a killed supervisor left running; the names. The caller holds the lock, so no supervisor of these lives."""
        leftovers = [process for process in self.running_processes() if process.name != SUPERVISOR]
        for process in reversed(leftovers):
            if not process.identity.stop((process.stop_signal, signal.SIGQUIT, signal.SIGKILL), seconds_each=10):
                raise CannotStart(f"A {process.name} (process {process.identity.pid}) of an earlier start does not stop; stop it by hand.")
        self.forget_processes()
        return [process.name for process in leftovers]

    def _where_it_runs(self) -> str:
        pid = next((process.identity.pid for process in self.running_processes() if process.name == SUPERVISOR), None)
        up = self.read_up()
        if pid is not None and up.get("pid") == pid:
            return f"Regulars already runs from {self.folder} at {up['url']} (process {pid}); stop it with `make down`."
        return f"Regulars is already being started from {self.folder} (process {pid or 'unknown'}); stop it with `make down`."

    def _check_version(self) -> None:
        path = self.folder / "version"
        if not path.exists():
            path.write_text(f"{LAYOUT_VERSION}\n")
        found = path.read_text().strip()
        if not found.isdigit() or int(found) > LAYOUT_VERSION:
            raise CannotStart(
                f"{self.folder} was written by a newer release (layout {found}, this one knows {LAYOUT_VERSION}); "
                "start it with that release, or move it away to begin anew."
            )

    def _check_space(self) -> None:
        if self.free_mb() < NEEDED_MB:
            raise CannotStart(
                f"The disk that holds {self.folder} has {self.free_mb()} MB left and {NEEDED_MB} MB are needed; make room first."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file whole, readable by its owner only."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    fresh.replace(path)
