"""UUIDv7 identifiers (RFC 9562) as text: a range of ids is a range of time, and inserts stay at the end of an index."""

import os
import threading
import time

_RANDOM_DIGITS = 15


class _Generator:
    """Draws ids that only grow within a process, also when the clock goes back or two fall in one millisecond.

    `rand_a` is a counter within the millisecond; when it is full, the time part runs ahead of the clock. Of `rand_b`, 60 bits are
    random.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unix_ms = 0
        self._count = 0
        self._prefix = ""
        self._random = ""
        self._at = 0

    def draw(self, unix_ms: int) -> str:
        with self._lock:
            if unix_ms > self._unix_ms or self._count == 0xFFF:
                self._unix_ms = max(unix_ms, self._unix_ms + 1)
                self._count = 0
                text = f"{self._unix_ms:012x}"
                self._prefix = f"{text[:8]}-{text[8:]}-7"
            else:
                self._count += 1
            at = self._at
            if at == len(self._random):
                # One system call serves hundreds of ids.
                self._random, at = os.urandom(15 * 256).hex(), 0
            self._at = at + _RANDOM_DIGITS
            return f"{self._prefix}{self._count:03x}-8{self._random[at : at + 3]}-{self._random[at + 3 : at + _RANDOM_DIGITS]}"


_generator = _Generator()


def uuid7(unix_ms: int | None = None) -> str:
    """A new UUIDv7, larger than every one this process made before.

    `unix_ms` is the time to put into it, in milliseconds; the machine's clock by default.
    """
    return _generator.draw(time.time_ns() // 1_000_000 if unix_ms is None else unix_ms)


def smallest_uuid7(unix_ms: int) -> str:
    """The lower bound of all UUIDv7 made at or after `unix_ms`: where a partition of that time begins."""
    text = f"{unix_ms:012x}"
    return f"{text[:8]}-{text[8:]}-0000-0000-000000000000"
