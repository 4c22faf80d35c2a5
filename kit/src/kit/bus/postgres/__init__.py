"""The bus over PostgreSQL alone: a log in a database of its own.

link.py          connections that come back by themselves
log.py           the messages: appending, reading, trimming
sharing.py       which process of a group reads which partitions
subscription.py  one process's part of a group
bus.py           all of it behind `kit.bus.interface.Bus`
"""

from kit.bus.postgres.bus import MIGRATIONS, PostgresBus

__all__ = ["MIGRATIONS", "PostgresBus"]
