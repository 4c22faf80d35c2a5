"""A part of a measurement in a process of its own: it prepares, says so, begins when told, and prints what it found.

`python -m benchmarks.events.worker MODULE:FUNCTION` reads a JSON job from the first line of standard input. The function is called with
the job and a `Signals`; what it returns is printed as JSON, with the CPU time that it used after it was told to begin.
"""

import asyncio
import cProfile
import importlib
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import uvloop

from kit.memory import freeze_start_up

REPOSITORY = Path(__file__).resolve().parents[2]
# A folder: every worker leaves a profile there, for `python -m pstats`.
PROFILES = "BENCH_PROFILES"


class Worker:
    """The parent's side."""

    def __init__(self, process: asyncio.subprocess.Process, function: str) -> None:
        self._process = process
        self._function = function

    @classmethod
    async def start(cls, function: str, job: Mapping[str, object], environment: Mapping[str, str] | None = None) -> Self:
        """Starts it; `function` is a name in a module of this package. Returns when it has prepared."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.events.worker", function,
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}, limit=2**24,
        )  # fmt: skip
        worker = cls(process, function)
        await worker._say(json.dumps(job))
        await worker._line()
        return worker

    async def begin(self) -> None:
        """Lets it begin."""
        await self._say("begin")

    async def stop(self) -> None:
        """Tells one that would go on for ever to end."""
        await self._say("stop")

    async def result(self) -> dict[str, Any]:
        """What it found; it has ended then."""
        found: dict[str, Any] = json.loads(await self._line())
        await self._process.wait()
        return found

    def kill(self) -> None:
        """Ends it, after a fault elsewhere."""
        if self._process.returncode is None:
            self._process.kill()

    async def _say(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode())
            await self._process.stdin.drain()

    async def _line(self) -> bytes:
        line = await self._process.stdout.readline() if self._process.stdout else b""
        if not line:
            raise RuntimeError(f"{self._function} ended with code {await self._process.wait()}")
        return line


class Signals:
    """The worker's side."""

    def __init__(self, lines: asyncio.StreamReader) -> None:
        self._lines = lines
        self._began = 0.0
        self._profile = cProfile.Profile() if os.environ.get(PROFILES) else None

    async def ready(self) -> None:
        """All is prepared; returns when it is to begin. Python's memory is then looked after as in the services."""
        freeze_start_up()
        print("ready", flush=True)
        await self._lines.readline()
        self._began = _cpu_seconds()
        if self._profile is not None:
            self._profile.enable()

    async def stopped(self) -> None:
        """Returns when it is told to stop, or the parent has gone."""
        await self._lines.readline()

    def used(self, function: str) -> float:
        """CPU seconds since it began."""
        used = _cpu_seconds() - self._began
        if self._profile is not None:
            self._profile.disable()
            self._profile.dump_stats(Path(os.environ[PROFILES]) / f"{function.replace(':', '.')}.{os.getpid()}.prof")
        return used


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _main(function: str) -> None:
    # It says once or twice that a new broker has no coordinator yet, and asks again.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    job = json.loads(await lines.readline())
    signals = Signals(lines)
    module, _, name = function.partition(":")
    found = await getattr(importlib.import_module(f"benchmarks.events.{module}"), name)(signals, **job)
    print(json.dumps({**found, "cpu_seconds": signals.used(function)}), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
