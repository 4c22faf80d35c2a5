"""The one place that reads the time.

Whoever needs the time is given a `Clock`, so that tests hold it and nothing depends on when it runs.
"""

from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Tells the time as an aware UTC instant. It may go back: nothing may rely on it only to advance."""

    def now(self) -> datetime:
        """The present instant, in UTC."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The present instant, in UTC."""
        return datetime.now(UTC)


class HeldClock:
    """A clock that stands still until it is moved, in either direction."""

    def __init__(self, at: datetime) -> None:
        self._at = at.astimezone(UTC)

    def now(self) -> datetime:
        """The instant at which the clock is held."""
        return self._at

    def advance(self, by: timedelta) -> None:
        """Moves the clock by `by`, which may be negative."""
        self._at += by

    def set(self, at: datetime) -> None:
        """Holds the clock at `at`."""
        self._at = at.astimezone(UTC)
