"""The writer over wallets that are distributed: every write on a real Citus, unchanged.

`TEST_CITUS_URL` names a database of a coordinator that knows its workers, empty or left by an earlier run of this file; no package that
could be locked brings a Citus along, so without it this is skipped.
"""

import logging
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from kit.clock import HeldClock
from kit.db import create_engine, migrate, raw, transaction
from kit.ids import uuid7
from member.database import MIGRATIONS
from member.distribution import DISTRIBUTED, statements
from member.partitions import ensure_partitions
from member.points.operations import get_points
from member.programmes.files import read_definition
from member.programmes.operations import Books, apply_programme
from member.sales.operations import get_sale, list_member_sales
from member.sales.rules import Store
from services.member.tests.wallet.conftest import DEMO, NOW
from services.member.tests.wallet.conftest import Chain as RealChain

if TYPE_CHECKING:
    from .conftest import Chain
else:
    Chain = Any

URL = os.environ.get("TEST_CITUS_URL", "")
# Like data that are not a part of the repository: where it is not there, even continuous integration does without.
pytestmark = [pytest.mark.external_data, pytest.mark.skipif(not URL, reason="TEST_CITUS_URL is not set")]


@pytest.fixture
async def spread() -> AsyncIterator[Chain]:
    """A chain whose wallets are distributed over workers."""
    await migrate(URL, MIGRATIONS)
    engine = create_engine(URL, 4)
    async with transaction(engine) as connection:
        done = await raw(connection).fetchval("SELECT count(*) FROM citus_tables WHERE table_name = 'wallets'::regclass")
    if not done:
        for statement in statements():
            async with transaction(engine) as connection:
                await raw(connection).execute(statement)
    await ensure_partitions(engine, NOW)
    async with transaction(engine) as connection:
        await apply_programme(raw(connection), read_definition(DEMO), applied_by="test", now=NOW)
    store = Store(uuid7(), "S001", ZoneInfo("Asia/Shanghai"), "CNY", "demo", 0, True)
    # Its operation ids are those of no earlier run.
    yield RealChain(engine, HeldClock(NOW), Books(), store, numbers=int(uuid7()[:8] + uuid7()[9:13], 16) * 1000)
    await engine.dispose()


async def test_every_write_works_on_distributed_wallets(spread: Chain, caplog: pytest.LogCaptureFixture) -> None:
    chain = spread
    member = await chain.member()
    with caplog.at_level(logging.WARNING, "member.wallet.operations"):
        sale = await chain.do(chain.sale(member))
        back = await chain.do(chain.reversal(sale["id"], [(2, "1")]))
        assert (sale["points"]["earned"], back["points"]["taken_back"]) == (469, 100)
        await chain.do(chain.adjustment(member, 500))
        spent = await chain.do(chain.sale(member, ["20.00"], points=100))
        await chain.do(chain.reversal("", sale_operation_id=spent["operation_id"]))
        await chain.do(chain.adjustment(member, -50))
        guests = await chain.do(chain.sale(""))
        await chain.do(chain.reversal(guests["id"], [(1, "1")]))
        outcomes = await chain.run(*(chain.command(chain.sale(member)) for _ in range(5)))
    assert [outcome.status for outcome in outcomes] == [201] * 5
    # None of these groups had to be tried again or split.
    assert caplog.records == []
    async with transaction(chain.engine, snapshot=True) as connection:
        driver = raw(connection)
        figures = msgspec.json.decode(await get_points(driver, member, "demo", "debt", chain.clock.now()))
        found = msgspec.json.decode(await get_sale(driver, sale["id"]))
        listed = msgspec.json.decode(await list_member_sales(driver, member, 50, ""))
    assert figures["balance"] == 369 + 500 - 50 + 5 * 469
    assert (found["id"], len(found["reversals"]), len(listed["items"])) == (sale["id"], 1, 7)


async def test_the_rows_of_one_member_lie_on_one_shard_of_each_table(spread: Chain) -> None:
    chain = spread
    member = await chain.member()
    await chain.do(chain.reversal((await chain.do(chain.sale(member)))["id"], [(1, "1")]))
    shards = await chain.rows(
        """
        SELECT p.logicalrelid::text, n.nodeport FROM pg_dist_partition AS p
        JOIN pg_dist_placement AS l ON l.shardid = get_shard_id_for_distribution_column(p.logicalrelid, $1::uuid)
        JOIN pg_dist_node AS n ON n.groupid = l.groupid WHERE p.logicalrelid::text = ANY($2)
        """,
        member,
        list(DISTRIBUTED),
    )
    assert {row[0] for row in shards} == set(DISTRIBUTED)
    assert len({row[1] for row in shards}) == 1


async def test_a_group_over_several_shards_is_split_into_writes_of_one(spread: Chain) -> None:
    """Its locks cannot be had in one statement: exact all the same, and dear; lanes are to follow shards (docs/adr/0008)."""
    chain = spread
    several = [await chain.member() for _ in range(6)]
    outcomes = await chain.run(*(chain.command(chain.sale(member)) for member in several))
    assert [outcome.status for outcome in outcomes] == [201] * 6
    rows = await chain.rows("SELECT member_id::text, balance FROM wallets WHERE member_id = ANY($1::uuid[])", several)
    assert dict(rows) == dict.fromkeys(several, 469)
