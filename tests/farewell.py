"""The moment in which PostgreSQL has ended a session and the connection has not ended yet."""

import struct
from typing import Any

_FIELDS = b"SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"


def hear_farewell(driver: Any) -> None:
    """Has asyncpg's connection read what a server says that ends its session; it refuses every statement from then on."""
    driver._transport.get_protocol().data_received(b"E" + struct.pack("!i", 4 + len(_FIELDS)) + _FIELDS)
