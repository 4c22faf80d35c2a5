"""UUIDv7 identifiers (RFC 9562) as text: a range of ids is a range of time, and inserts stay at the end of an index."""

import os
import threading
import time

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_BITS = 62
_SEQUENCE_BITS = 12


class _Generator:
    """Draws ids that only grow within a process, also when the clock goes back or two fall in one millisecond.

    `rand_a` is a counter within the millisecond; when it is full, the time part runs ahead of the clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self._random = b""
        self._at = 0

    def draw(self, unix_ms: int) -> str:
        with self._lock:
            tick = max(unix_ms << _SEQUENCE_BITS, self._last + 1)
            self._last = tick
            if self._at == len(self._random):
                # One system call serves 512 ids.
                self._random, self._at = os.urandom(4096), 0
            random = int.from_bytes(self._random[self._at : self._at + 8], "big") >> (64 - _RANDOM_BITS)
            self._at += 8
        number = (tick >> _SEQUENCE_BITS) << 80 | _VERSION_7 | (tick & 0xFFF) << 64 | _VARIANT | random
        text = f"{number:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


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
