"""How far the import is: a bar on a terminal, a plain line every few seconds anywhere else. All of it on stderr."""

import sys
import time
from types import TracebackType
from typing import Final, Protocol, Self

PLAIN_EVERY_SECONDS: Final = 5.0


class Progress(Protocol):
    def begin(self, what: str, total: int | None) -> None: ...
    def advance(self, lines: int) -> None: ...
    def say(self, text: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...


def make_progress() -> Progress:
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


class PlainProgress:
    """For logs: what, how much of it, lines per second, time left."""

    def __init__(self) -> None:
        self.begin("", None)

    def begin(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._said = time.monotonic()

    def advance(self, lines: int) -> None:
        self._done += lines
        now = time.monotonic()
        if now - self._said >= PLAIN_EVERY_SECONDS:
            self._said = now
            self.say(describe(self._what, self._done, self._total, now - self._began))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


def describe(what: str, done: int, total: int | None, seconds: float) -> str:
    """`Importing: 120,000 of 541,909 lines (22 %), 11,200 lines/s, 38 s left`."""
    rate = done / seconds if seconds > 0 else 0.0
    if total is None:
        return f"{what}: {done:,} lines, {rate:,.0f} lines/s"
    left = f"{(total - done) / rate:,.0f} s left" if rate else "time left unknown"
    return f"{what}: {min(done, total):,} of {total:,} lines ({100 * min(done, total) // max(total, 1)} %), {rate:,.0f} lines/s, {left}"


class BarProgress:
    """For a person at a terminal."""

    def __init__(self) -> None:
        # Loaded here: rich takes a tenth of a second that no script should pay.
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
        from rich.progress import Progress as Bar  # noqa: PLC0415

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=5,
        )
        self._task = self._bar.add_task("", total=None, rate="")
        self._began = time.monotonic()

    def begin(self, what: str, total: int | None) -> None:
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, rate="")
        self._began = time.monotonic()

    def advance(self, lines: int) -> None:
        done = self._bar.tasks[0].completed + lines
        self._bar.update(self._task, advance=lines, rate=f"{done / max(time.monotonic() - self._began, 0.001):,.0f} lines/s")

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()
