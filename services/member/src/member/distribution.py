"""How the tables are spread when the ledger outgrows one PostgreSQL: by member, with Citus (docs/adr/0008-wallets-on-shards.md).

Every table is declared here, and a test refuses one that is not. Another holds every write of a wallet to one shard key: the id of the
member or, for a guest's sale, of the store. `python -m member.distribution` prints the statements that spread a migrated database.
"""

import sys

# The column that a row is distributed by. Tables with the same key have the rows of one member on the same shard.
DISTRIBUTED = {
    "wallets": "member_id",
    "points_lots": "member_id",
    "points_entries": "member_id",
    "sales": "member_id",
    "sale_lines": "member_id",
    "reversals": "member_id",
    "unlinked_returns": "member_id",
}

# Small, read with every write and hardly ever changed: whole on every machine.
REFERENCE = {
    "programme_versions": "read by every group, changed a few times a year",
    "key_checks": "a few rows, read at the start",
}

# On one machine, and why they are not distributed by member.
LOCAL = {
    "members": "a verified phone and a card are unique over all members, which no shard of members can know",
    "operations": "an operation id is decided once, whichever member it comes with",
    "outbox": "one relay reads it in the order of its positions; it holds a second of events",
}

# The statements of a wallet's writes and of previews that do not say whose rows they want, and so ask every shard. None of them locks.
FAN_OUTS_OF_WRITES = {
    "member.wallet.loading._RESOLVE": "a reversal names its sale alone: this finds whose it is, and everything after it goes to one shard",
}

# The same of what people read.
FAN_OUTS_OF_READS = {
    "member.wallet.loading._SALES": "a sale by its id",
    "member.wallet.loading._SALE_LINES": "a sale by its id",
    "member.wallet.loading._REVERSALS": "a sale by its id",
    "member.sales.operations._NEWEST": "the newest sales of stores",
    "member.sales.operations._RETURNS": "the newest returns of stores",
}


def statements() -> list[str]:
    """What spreads a migrated database over the workers that Citus knows, run by an operator while the service is stopped."""
    first = next(iter(DISTRIBUTED))
    spread = [
        f"SELECT create_distributed_table('{table}', '{column}', colocate_with => '{'default' if table == first else first}')"
        for table, column in DISTRIBUTED.items()
    ]
    return spread + [f"SELECT create_reference_table('{table}')" for table in REFERENCE]


if __name__ == "__main__":
    sys.stdout.write(";\n".join([*statements(), ""]))
