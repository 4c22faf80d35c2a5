"""Whether a key is the one that a database was written with.

Nothing fails at once under another key: a taken phone is free again, a repeated command is told that its id was used. So each database
keeps a proof (`kit.crypto.proof_of`) of the key that its rows depend on, and a service compares before it serves.
"""

from pathlib import Path

from sqlalchemy import Column, LargeBinary, MetaData, Table, Text
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.db import raw, transaction


class KeyForeign(Exception):
    """A key is not the one that the database was written with; the sentence says what to do."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"The keys in {file} are not the ones this database was written with: "
            f"put back the {file.name} of the installation that made it."
        )


def key_checks_table(metadata: MetaData) -> Table:
    """Declares the proofs in a service's own metadata."""
    return Table("key_checks", metadata, Column("name", Text, primary_key=True), Column("proof", LargeBinary, nullable=False))


async def check_key(engine: AsyncEngine, name: str, proof: bytes, file: Path) -> None:
    """Keeps the proof of the key `name` at the first call, and compares at every later one. Raises KeyForeign, naming its file."""
    async with transaction(engine) as connection:
        driver = raw(connection)
        await driver.execute("INSERT INTO key_checks (name, proof) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, proof)
        kept = await driver.fetchval("SELECT proof FROM key_checks WHERE name = $1", name)
    if kept != proof:
        raise KeyForeign(file)
