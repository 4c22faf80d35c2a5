"""The supervisor over real processes: what dies is started again, and nothing is orphaned or touched that is not its own."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from regulars_cli.up import CannotStart
from regulars_cli.up.installation import Installation
from regulars_cli.up.processes import Identity, ProcessSpec, spawn
from regulars_cli.up.supervisor import Supervisor, keep_log_small

# Two services that do nothing, supervised as `regulars up` does it.
STAND_INS = """
import sys
from pathlib import Path
from regulars_cli.up.installation import Installation
from regulars_cli.up.processes import ProcessSpec
from regulars_cli.up.supervisor import StopRequested, Supervisor, stop_on_signals

def say(line):
    print(line, flush=True)

installation = Installation(Path(sys.argv[1]))
with stop_on_signals(), installation.locked():
    for name in installation.stop_leftovers():
        say(f"stopped leftover {name}")
    supervisor = Supervisor(say, installation.note_processes)
    try:
        supervisor.start([
            ProcessSpec(name, ("sleep", "1000"), installation.logs / f"{name}.log", lambda: True) for name in ("alpha", "beta")
        ])
        say("ready")
        supervisor.watch()
    except StopRequested:
        supervisor.stop()
        installation.forget_processes()
        say("stopped")
"""


@contextmanager
def supervised(var: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", STAND_INS, str(var)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line it prints; the test's timeout bounds the wait."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def pids(var: Path) -> dict[str, int]:
    return {process.name: process.identity.pid for process in Installation(var).running_processes()}


def has_ended(pid: int) -> bool:
    """Wait until the process, which need not be a child, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


def test_a_service_that_dies_is_started_again_and_the_console_says_so(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        assert line_of(process) == "ready"
        before = pids(tmp_path)
        os.kill(before["alpha"], signal.SIGKILL)
        assert line_of(process) == "alpha was killed by SIGKILL; starting it again."
        assert line_of(process) == "alpha is back."
        after = pids(tmp_path)
        assert after["alpha"] != before["alpha"]
        assert after["beta"] == before["beta"]
        os.kill(after["alpha"], signal.SIGKILL)
        assert line_of(process) == "alpha was killed by SIGKILL; starting it again in 1 s."
        assert line_of(process) == "alpha is back."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_stops_every_service(tmp_path: Path, number: signal.Signals) -> None:
    with supervised(tmp_path) as process:
        assert line_of(process) == "ready"
        children = pids(tmp_path)
        process.send_signal(number)
        assert line_of(process) == "stopped"
        assert process.wait() == 0
        assert all(has_ended(pid) for pid in children.values())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_killed_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        assert line_of(process) == "ready"
        children = pids(tmp_path)
        process.kill()
        assert all(has_ended(pid) for pid in children.values())


def test_leftovers_of_a_killed_supervisor_are_stopped_and_foreign_processes_never(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with subprocess.Popen(["sleep", "1000"]) as leftover, subprocess.Popen(["sleep", "1000"]) as foreign:
        mine, other = Identity.of(leftover.pid), Identity(foreign.pid, "another time")
        assert mine is not None
        spec = ProcessSpec("gamma", ("sleep", "1000"), tmp_path / "log", lambda: True)
        installation.note_processes([(spec, mine), (spec, other)])
        with supervised(tmp_path) as process:
            assert line_of(process) == "stopped leftover gamma"
            assert leftover.wait() == -signal.SIGTERM
            assert line_of(process) == "ready"
        assert foreign.poll() is None
        foreign.kill()


def test_a_process_that_ends_at_once_is_a_fault_with_its_last_words(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _: None)
    spec = ProcessSpec("gamma", ("sh", "-c", "echo no luck today; exit 3"), tmp_path / "gamma.log", lambda: False)
    with pytest.raises(CannotStart, match=r"gamma ended with exit code 3: no luck today \(see .*gamma.log\)"):
        supervisor.start([spec])
    supervisor.stop()


def test_a_process_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _: None)
    deaf = "trap '' TERM; touch ready; while :; do sleep 1000; done"
    ready = tmp_path / "ready"
    spec = ProcessSpec("deaf", ("sh", "-c", f"cd {tmp_path}; {deaf}"), tmp_path / "deaf.log", ready.exists, stop_seconds=0)
    supervisor.start([spec])
    supervisor.stop()
    assert spec.ready()


def test_a_log_is_kept_once_and_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("a") as writer:
        writer.write("a" * 100)
        writer.flush()
        keep_log_small(log, 100)
        assert log.stat().st_size == 100
        keep_log_small(log, 99)
        writer.write("b")
    assert log.read_text() == "b"
    assert (tmp_path / "x.log.1").read_text() == "a" * 100


def test_a_start_fails_without_what_is_vital_and_only_then(tmp_path: Path) -> None:
    said: list[str] = []

    def ending(*, is_vital: bool) -> ProcessSpec:
        return ProcessSpec("brittle", ("sh", "-c", "echo no luck; exit 3"), tmp_path / "brittle.log", lambda: False, is_vital=is_vital)

    steady = ProcessSpec("steady", ("sleep", "1000"), tmp_path / "steady.log", lambda: True)
    supervisor = Supervisor(said.append)
    try:
        supervisor.start([ending(is_vital=False), steady])
        with pytest.raises(CannotStart, match="brittle ended with exit code 3: no luck"):
            supervisor.start([ending(is_vital=True)])
    finally:
        supervisor.stop()
    # What is not vital was started again meanwhile, as after a later death.
    assert any(line.startswith("brittle ended with exit code 3: no luck") for line in said)


@pytest.mark.parametrize("is_vital", [True, False])
def test_what_no_sale_waits_for_gives_way(tmp_path: Path, is_vital: bool) -> None:  # noqa: FBT001
    spec = ProcessSpec("worker", ("sleep", "1000"), tmp_path / "worker.log", lambda: True, is_vital=is_vital)
    with spawn(spec) as process:
        try:
            own = os.getpriority(os.PRIO_PROCESS, 0)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) == (own if is_vital else max(own, 10))
        finally:
            process.kill()
