"""Backups: a base backup now and then and all WAL in between, in a folder or an object store, from which any moment can be restored.

stores.py       a folder, or a bucket of an object store that speaks S3: whole objects only
sealing.py      how an object is written: compressed, and where asked encrypted in the format of age
archive.py      what is where in a store, what of it is whole, and how far each base backup can be restored
servers.py      the PostgreSQL server, and the programs of PostgreSQL that are used
bases.py        taking a base backup
wal.py          fetching WAL as it is written
checking.py     proving that what is kept can be read; removing what is no longer needed
restoring.py    a data folder out of a base backup and WAL, up to a moment
facts.py        backups of the facts of reports as they are kept: those that are whole, which may go
facts_taking.py, facts_restoring.py  what the ClickHouse server does itself, and from where on the bus to go on after it
definitions.py  programmes, stores and tills as files that people can read
command.py      `regulars backup …`, `regulars restore`, `regulars definitions …`
"""


class CannotBackUp(Exception):
    """Why it was not done, as one sentence that says what to do; it holds no secret."""
