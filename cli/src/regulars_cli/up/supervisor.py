"""Keeps a few processes running: starts them in order, starts again what dies, and stops them in the opposite order."""

import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from regulars_cli.up import CannotStart
from regulars_cli.up.processes import Identity, ProcessSpec, how_it_ended, last_line, spawn, stop

READY_SECONDS = 60
# A process that ran this long before it died is started again at once.
STEADY_SECONDS = 60
LONGEST_DELAY_SECONDS = 30
CHORES_SECONDS = 10
FULL_DISK_BYTES = 20 * 1024 * 1024


class StopRequested(BaseException):
    """Someone asked the supervisor to stop; not an error, and caught only where everything is stopped."""


@dataclass
class _Child:
    spec: ProcessSpec
    process: subprocess.Popen[bytes]
    identity: Identity | None
    started: float
    ready: bool = False
    deaths: int = 0
    start_again_at: float | None = None


@dataclass
class Supervisor:
    """Runs processes; `say` tells the console, `changed` is told after every start who runs, for whoever cleans up after a kill."""

    say: Callable[[str], None]
    changed: Callable[[list[tuple[ProcessSpec, Identity]]], None] = lambda _: None
    _children: list[_Child] = field(default_factory=list)

    def start(self, specs: Sequence[ProcessSpec]) -> None:
        """Start the processes together and wait until all are ready; of those that are not vital, until they are or it is said that not.

        Raises:
            CannotStart: a vital one ended instead, or is not ready in time.
        """
        awaited = [self._begin(spec) for spec in specs]
        deadline = time.monotonic() + READY_SECONDS
        while awaited:
            self._look_after([child for child in self._children if child not in awaited])
            for child in list(awaited):
                why = ""
                if child.process.poll() is not None:
                    why = self._why(child) + "."
                elif child.spec.ready():
                    child.ready = True
                elif time.monotonic() > deadline:
                    why = f"{child.spec.name} is not ready after {READY_SECONDS} seconds; see {child.spec.log}."
                if why and child.spec.is_vital:
                    raise CannotStart(why)
                if why and child.process.poll() is None:
                    self.say(why)
                if why or child.ready:
                    # One that ended is started again, like one that ends later.
                    awaited.remove(child)
            if awaited:
                time.sleep(0.02)

    def watch(self, chores: Callable[[], None] = lambda: None) -> None:
        """Start again what dies, until a signal raises `StopRequested`; `chores` is called now and then."""
        next_chores = 0.0
        with _child_deaths() as deaths:
            while True:
                if time.monotonic() >= next_chores:
                    chores()
                    next_chores = time.monotonic() + CHORES_SECONDS
                delays = [child.start_again_at - time.monotonic() for child in self._children if child.start_again_at is not None]
                waiting = any(not child.ready for child in self._children)
                timeout = min([0.1 if waiting else next_chores - time.monotonic(), *delays])
                select.select([deaths], [], [], max(0.0, timeout))
                with suppress(BlockingIOError):
                    deaths.recv(4096)
                self._look_after(self._children)

    def stop(self) -> None:
        """Stop everything that runs, the last started first; a second request to stop does it by force."""
        for child in reversed(self._children):
            if child.process.poll() is None:
                try:
                    stop(child.process, child.spec)
                except StopRequested:
                    self.say("Stopping by force.")
                    for other in self._children:
                        other.process.kill()
                        other.process.wait()
        self._children.clear()

    @property
    def runs_something(self) -> bool:
        """Whether anything was started and not yet stopped."""
        return bool(self._children)

    def _begin(self, spec: ProcessSpec) -> _Child:
        process = spawn(spec)
        child = _Child(spec, process, Identity.of(process.pid), time.monotonic())
        self._children.append(child)
        self._tell()
        return child

    def _tell(self) -> None:
        # On a full disk nothing can be noted down; what runs goes on.
        with suppress(OSError):
            self.changed([(child.spec, child.identity) for child in self._children if child.identity is not None])

    def _look_after(self, children: Sequence[_Child]) -> None:
        now = time.monotonic()
        for child in children:
            if child.start_again_at is not None:
                if now >= child.start_again_at:
                    self._begin_again(child)
            elif child.process.poll() is not None:
                child.deaths = 0 if now - child.started > STEADY_SECONDS else child.deaths
                delay = min(2 ** (child.deaths - 1), LONGEST_DELAY_SECONDS) if child.deaths else 0
                child.deaths += 1
                child.ready = False
                child.start_again_at = now + delay
                self.say(f"{self._why(child)}; starting it again{f' in {delay} s' if delay else ''}.")
            elif not child.ready and child.spec.ready():
                child.ready = True
                self.say(f"{child.spec.name} is back.")

    def _begin_again(self, child: _Child) -> None:
        try:
            child.process = spawn(child.spec)
        except OSError as error:
            self.say(f"{child.spec.name} cannot be started: {error.strerror}; trying again in {LONGEST_DELAY_SECONDS} s.")
            child.start_again_at = time.monotonic() + LONGEST_DELAY_SECONDS
            return
        child.identity = Identity.of(child.process.pid)
        child.started = time.monotonic()
        child.start_again_at = None
        self._tell()

    def _why(self, child: _Child) -> str:
        """What happened, with what the process said last when it ended by itself."""
        name, log = child.spec.name, child.spec.log
        ended = f"{name} {how_it_ended(child.process.returncode)}"
        if shutil.disk_usage(log.parent).free < FULL_DISK_BYTES:
            return f"{ended} because the disk that holds {log.parent.parent} is full: make room"
        if child.process.returncode < 0:
            return ended
        said = last_line(log)
        return f"{ended}: {said.rstrip('.')} (see {log})" if said else ended


@contextmanager
def _child_deaths() -> Iterator[socket.socket]:
    """A socket that becomes readable when a child ends."""
    readable, writable = socket.socketpair()
    readable.setblocking(False)
    writable.setblocking(False)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writable.fileno(), warn_on_full_buffer=False)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, before)
        readable.close()
        writable.close()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block, Ctrl-C, SIGTERM and a closed terminal raise `StopRequested`."""

    def request(_: int, __: FrameType | None) -> None:
        raise StopRequested

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, request) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def keep_log_small(log: Path, limit: int) -> None:
    """Keep a log that has grown beyond `limit` once as `.1` and begin it anew; it is appended to, so its writer goes on."""
    if log.exists() and log.stat().st_size > limit:
        shutil.copyfile(log, log.with_name(log.name + ".1"))
        with log.open("r+b") as file:
            file.truncate(0)
