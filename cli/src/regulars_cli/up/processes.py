"""Child processes that never outlive their supervisor, and a way to name a process for ever.

Each child leads a session of its own, so that Ctrl-C on the terminal reaches only the supervisor, which then stops the children in
order. On Linux the kernel signals a child whose supervisor died, even by SIGKILL; elsewhere the next start stops what was left over.
"""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
# Looked up before any fork: the child of a fork may only make simple calls.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_HAS_PROC = Path("/proc/self/stat").exists()
# Of what no sale waits for: a till's answer has the processor first.
_GIVING_WAY = 10


@dataclass(frozen=True)
class Account:
    """A system user that a child runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of(cls, uid: int) -> "Account":
        entry = pwd.getpwuid(uid)
        return cls(entry.pw_name, uid, entry.pw_gid)

    def given(self, path: Path) -> None:
        """Make this user the owner of `path`."""
        os.chown(path, self.uid, self.gid)

    def options(self) -> dict[str, Any]:
        """The arguments with which `subprocess` runs a command as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@dataclass(frozen=True)
class ProcessSpec:
    """One process to run: the command, where its output goes, when it counts as ready, and whether a start fails without it.

    One that is not vital runs at a lower priority than those that are.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: int = 20
    is_vital: bool = True


@dataclass(frozen=True)
class Identity:
    """A process as it was seen: the number may be given to another process later, number and start time together are not."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        started = _start_time(pid)
        return cls(pid, started) if started else None

    def alive(self) -> bool:
        return _start_time(self.pid) == self.started

    def stop(self, signals: tuple[signal.Signals, ...], seconds_each: float) -> bool:
        """Send the signals one after another until the process is gone; whether it is. Never touches another process."""
        for number in signals:
            if not self.alive():
                return True
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return True
            deadline = time.monotonic() + seconds_each
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
        return not self.alive()


def _start_time(pid: int) -> str | None:
    """When the process started, as text that no other process with this number shares; None if there is none (or only a zombie)."""
    if _HAS_PROC:
        try:
            # The name, in parentheses, may hold anything: fields are counted from the last one on.
            fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else f"{_boot_id()}:{fields[19]}"
    import psutil  # noqa: PLC0415 - large, and Linux does without

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def spawn(spec: ProcessSpec) -> subprocess.Popen[bytes]:
    """Start the process, its output appended to its log."""
    with spec.log.open("ab") as log:
        process = subprocess.Popen(
            spec.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **spec.environment},
            start_new_session=True,
            preexec_fn=tied_to_this_process(spec.stop_signal),  # noqa: PLW1509 - the supervisor has one thread
            **(spec.account.options() if spec.account else {}),
        )
    if not spec.is_vital:
        _give_way(process.pid)
    return process


def _give_way(pid: int) -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _GIVING_WAY)
        # Where Linux shares the processor among sessions first, what counts is the session's own.
        Path(f"/proc/{pid}/autogroup").write_text(str(_GIVING_WAY))


def tied_to_this_process(number: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """What a child does before it becomes another program: ask for the signal `number` when this process dies."""
    parent = os.getpid()

    def tie() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))
            if os.getppid() != parent:
                os._exit(1)

    return tie


def stop(process: subprocess.Popen[bytes], spec: ProcessSpec) -> None:
    """Stop the process: politely, and by force when it takes longer than it may."""
    process.send_signal(spec.stop_signal)
    try:
        process.wait(spec.stop_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def how_it_ended(returncode: int) -> str:
    """A return code as words: was killed by SIGKILL, ended with exit code 3."""
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def last_line(log: Path) -> str:
    """The last line of a log that says something, shortened. What begins with a tab, as the calls do after an exception of Java, only
    adds to a line before.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip() and not line.startswith("\t")), "")
