"""Makes the services' databases where they are missing: `python -m regulars_cli.up.databases NAME…`.

A process of its own, so that the supervisor need not keep a database driver in memory. The server's URL comes in `DATABASE_URL`: it
may hold a password, and other users can read a command line.
"""

import asyncio
import os
import sys

import asyncpg


async def create_missing(url: str, names: list[str]) -> None:
    """Make the databases of `names` that the server at `url` lacks."""
    connection = await asyncpg.connect(url, timeout=20)
    try:
        there = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")}
        for name in names:
            if name not in there:
                await connection.execute(f"CREATE DATABASE \"{name}\" ENCODING 'UTF8' TEMPLATE template0")
    finally:
        await connection.close()


def main(names: list[str]) -> int:
    """Exit code 1, with one sentence, when the server cannot be used."""
    try:
        asyncio.run(create_missing(os.environ["DATABASE_URL"], names))
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        print(str(error) or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
