"""Every write of a wallet stays on one shard key (docs/adr/0008-wallets-on-shards.md).

Shown by the rows that each transaction touches, as triggers see them, and by the plans of the statements that it ran.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import event

from kit.crypto import PersonalDataKeys, generate
from kit.db import raw, reading, transaction
from kit.ids import uuid7
from member.answers import tables as answers_tables
from member.database import metadata
from member.distribution import DISTRIBUTED, FAN_OUTS_OF_READS, FAN_OUTS_OF_WRITES, LOCAL, REFERENCE, statements
from member.members import operations as members
from member.members import tables as members_tables
from member.members.rules import GivenFields
from member.points import tables as points_tables
from member.points.operations import get_points, list_entries, list_lots, settle_wallet
from member.programmes import tables as programmes_tables
from member.programmes.operations import apply_programme
from member.sales import tables as sales_tables
from member.sales.operations import get_sale, list_member_sales, list_returns, list_sales
from member.sales.rules import NewReturn
from member.wallet.operations import preview_reversal

if TYPE_CHECKING:
    from .conftest import Chain
else:
    Chain = Any

TABLES = (answers_tables, members_tables, points_tables, programmes_tables, sales_tables)
PENDING: dict[str, Any] = {
    "programme_id": "pending",
    "name": "Matures and expires",
    "effective_from": "2010-01-01",
    "zone": "Asia/Shanghai",
    "currency": "CNY",
    "earn": {"points": 1, "per_minor": 100},
    "spend": {"points": 1, "minor": 1},
    "pending_days": 3,
    "expiry": {"days": 10},
}
# A member said by its value, not by another row's.
BY_MEMBER = re.compile(r"\bmember_id = (ANY \('\{|'[0-9a-f]{8}-)")


@dataclass
class Watch:
    """What a chain's transactions did: the shard keys of the rows they touched, and the statements they ran."""

    chain: Chain
    statements: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    async def touched(self, act: Callable[[], Awaitable[object]]) -> list[dict[str, set[str]]]:
        """Of each transaction of an act that touched distributed rows: the shard keys by table, in the order of their commits."""
        await self.chain.execute("TRUNCATE touched")
        await act()
        found: dict[str, dict[str, set[str]]] = {}
        for transaction_id, table, key in await self.chain.rows("SELECT transaction_id, of_table, shard_key FROM touched ORDER BY number"):
            found.setdefault(transaction_id, {}).setdefault(table, set()).add(key)
        return list(found.values())

    async def fan_outs(self) -> tuple[set[str], set[str]]:
        """Of the statements so far: those that look for distributed rows without saying whose, and those that read any by member."""
        everywhere: set[str] = set()
        by_member: set[str] = set()
        async with transaction(self.chain.engine) as connection:
            driver = raw(connection)
            roots = dict(await driver.fetch("SELECT relname, pg_partition_root(oid)::regclass::text FROM pg_class WHERE relispartition"))
            await driver.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            for statement, values in self.statements:
                if not statement.lstrip().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")) or "touched" in statement:
                    continue
                (plan,) = json.loads(await driver.fetchval(f"EXPLAIN (FORMAT JSON, VERBOSE) {statement}", *values))
                for node in _nodes(plan["Plan"]):
                    table = roots.get(node.get("Relation Name", ""), node.get("Relation Name"))
                    if table not in DISTRIBUTED or not node["Node Type"].endswith("Scan"):
                        continue
                    said = " ".join(str(node.get(of, "")) for of in ("Index Cond", "Recheck Cond", "Filter"))
                    (by_member if BY_MEMBER.search(said) else everywhere).add(statement)
        return everywhere, by_member


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


@pytest.fixture
async def watch(chain: Chain) -> Watch:
    """A chain whose transactions are watched."""
    async with transaction(chain.engine) as connection:
        await apply_programme(raw(connection), PENDING, applied_by="test", now=chain.clock.now())
    await chain.execute(
        "CREATE TABLE touched (number bigint GENERATED ALWAYS AS IDENTITY, transaction_id text, of_table text, shard_key text)"
    )
    await chain.execute("""
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF TG_OP <> 'INSERT' THEN
            INSERT INTO touched (transaction_id, of_table, shard_key)
            VALUES (pg_current_xact_id()::text, TG_ARGV[0], to_jsonb(OLD) ->> TG_ARGV[1]);
          END IF;
          IF TG_OP <> 'DELETE' THEN
            INSERT INTO touched (transaction_id, of_table, shard_key)
            VALUES (pg_current_xact_id()::text, TG_ARGV[0], to_jsonb(NEW) ->> TG_ARGV[1]);
          END IF;
          RETURN NULL;
        END $$
    """)
    for table, column in DISTRIBUTED.items():
        await chain.execute(
            f"CREATE TRIGGER touch AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION touch({table}, {column})"
        )
    watched = Watch(chain)

    def log(query: Any) -> None:
        watched.statements.append((query.query, tuple(query.args)))

    # Connections from now on: those of the fixture are closed.
    await chain.engine.dispose()

    @event.listens_for(chain.engine.sync_engine, "connect")
    def attach(connection: Any, _: object) -> None:
        driver: asyncpg.Connection[Any] = connection.driver_connection
        driver.add_query_logger(log)

    return watched


# --- What is declared ----------------------------------------------------------------------------------------------------------------


async def test_every_table_is_declared_once(chain: Chain) -> None:
    """A new table is distributed by member, whole on every machine, or on one machine, and `member.distribution` says which and why."""
    assert all(each.metadata is metadata for each in TABLES)
    declared = [*DISTRIBUTED, *REFERENCE, *LOCAL]
    assert sorted(declared) == sorted(metadata.tables)
    made = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
    assert {row[0] for row in await chain.rows(made)} - {"alembic_version"} == set(declared)


async def test_every_key_of_a_distributed_table_holds_the_member(chain: Chain) -> None:
    """A shard can hold only those keys unique that lie on it, and refer only to rows that do; numbers are drawn on no shard."""
    keys = await chain.rows(
        """
        SELECT t.relname, array_agg(a.attname::text)
        FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = ANY(i.indkey)
        WHERE i.indisunique AND t.relname = ANY($1) GROUP BY t.relname, i.indexrelid
        """,
        list(DISTRIBUTED),
    )
    assert {row[0] for row in keys} == set(DISTRIBUTED)
    assert [row for row in keys if DISTRIBUTED[row[0]] not in row[1]] == []
    assert await chain.rows("SELECT conname FROM pg_constraint WHERE contype = 'f'") == []
    drawn = """
        SELECT relname, attname FROM pg_attribute JOIN pg_class AS t ON t.oid = attrelid
        WHERE t.relname = ANY($1) AND (attidentity <> '' OR atthasdef)
    """
    assert await chain.rows(drawn, list(DISTRIBUTED)) == []


def test_the_statements_spread_every_table_that_is_not_on_one_machine() -> None:
    text = "\n".join(statements())
    assert all(f"create_distributed_table('{table}', '{column}'" in text for table, column in DISTRIBUTED.items())
    assert text.count("colocate_with => 'wallets'") == len(DISTRIBUTED) - 1
    assert all(f"create_reference_table('{table}')" in text for table in REFERENCE)


# --- What a write touches ------------------------------------------------------------------------------------------------------------


def given_back(chain: Chain, member_id: str) -> NewReturn:
    """A return of no recorded sale."""
    line = (1, "SKU1", "", "", "1", "10.00", 1000)
    return NewReturn(chain.operation_id(), chain.store, uuid7(), "", chain.clock.now(), 0, "CNY", member_id, "", (line,))


EARNS = {"sales", "sale_lines", "points_lots", "points_entries", "wallets"}
REVERSES = {"reversals", "points_lots", "points_entries", "wallets"}


async def test_each_write_of_a_member_touches_rows_of_that_member_only(watch: Watch) -> None:
    chain = watch.chain
    member, other = await chain.member(), await chain.member()
    # Something of another member lies beside everything.
    await chain.do(chain.sale(other))
    answers: list[dict[str, Any]] = []

    async def do(act: Any) -> None:
        answers.append(await chain.do(act))

    async def alone(act: Callable[[], Any], tables: set[str]) -> None:
        # Made when it is sent: it may name the answer before.
        assert await watch.touched(lambda: do(act())) == [{table: {member} for table in tables}]

    await alone(lambda: chain.sale(member), EARNS)
    first = answers[-1]["id"]
    await alone(lambda: chain.reversal(first, [(2, "1")]), REVERSES)
    await alone(lambda: chain.reversal(first, [(1, "1")]), REVERSES)
    await alone(lambda: chain.reversal(first), REVERSES)
    await alone(lambda: chain.adjustment(member, 500), {"points_lots", "points_entries", "wallets"})
    await alone(lambda: chain.sale(member, ["20.00"], points=100), EARNS)
    await alone(lambda: chain.reversal("", sale_operation_id=answers[-1]["operation_id"]), REVERSES)
    await alone(lambda: chain.adjustment(member, -50), {"points_lots", "points_entries", "wallets"})
    await alone(lambda: given_back(chain, member), {"unlinked_returns"})
    assert await chain.differences() == []


async def test_a_guests_sale_and_what_comes_back_of_it_lie_with_the_store(watch: Watch) -> None:
    chain = watch.chain
    store = chain.store.store_id
    sale: dict[str, Any] = {}

    async def sell() -> None:
        sale.update(await chain.do(chain.sale("")))

    assert await watch.touched(sell) == [{"sales": {store}, "sale_lines": {store}}]
    assert await watch.touched(lambda: chain.do(chain.reversal(sale["id"], [(1, "1")]))) == [{"reversals": {store}}]
    assert await watch.touched(lambda: chain.do(given_back(chain, ""))) == [{"unlinked_returns": {store}}]


async def test_what_time_does_to_a_wallet_is_entered_on_its_shard(watch: Watch) -> None:
    """Points mature and expire when somebody looks: at the next sale, and when a report asks."""
    chain = watch.chain
    chain.store = type(chain.store)(chain.store.store_id, "S001", chain.store.zone, "CNY", "pending", 0, True)
    member = await chain.member()
    await chain.do(chain.sale(member))
    chain.clock.advance(timedelta(days=4))
    assert await watch.touched(lambda: chain.do(chain.sale(member))) == [{table: {member} for table in EARNS}]
    kinds = "SELECT kind FROM points_entries WHERE member_id = $1 ORDER BY sequence"
    assert [row[0] for row in await chain.rows(kinds, member)] == ["earn", "mature", "earn"]
    chain.clock.advance(timedelta(days=30))
    lapsed = await watch.touched(lambda: settle_wallet(chain.engine, chain.programmes, member, "pending", chain.clock.now()))
    assert lapsed == [{table: {member} for table in ("wallets", "points_lots", "points_entries")}]


async def test_signing_up_opens_a_wallet_on_the_new_members_shard_and_a_changed_file_touches_none(watch: Watch) -> None:
    chain, keys = watch.chain, PersonalDataKeys.parse(generate())
    made: list[members.Outcome] = []

    def operation() -> members.Operation:
        return members.Operation(chain.operation_id(), b"", "POST", "/v1/members", "")

    async def sign_up() -> None:
        new = members.SignUp(operation(), "demo", GivenFields(name="Test", phone="13800138000"))
        made.extend(await members.sign_up_members(chain.engine, chain.clock, keys, chain.programmes, [new]))

    touched = await watch.touched(sign_up)
    assert touched == [{"wallets": {made[0].member_id}}]

    async def change() -> None:
        made.append(
            await members.change_member(chain.engine, chain.clock, keys, operation(), made[0].member_id, GivenFields(city="Shanghai"))
        )

    assert await watch.touched(change) == []
    assert [outcome.status for outcome in made] == [201, 200]


async def test_a_group_is_one_transaction_over_the_shards_of_its_members(watch: Watch) -> None:
    """Why lanes have to follow shards before rows do: of one member a group has one shard key, of several it has several."""
    chain = watch.chain
    several = [await chain.member() for _ in range(3)]
    (touched,) = await watch.touched(lambda: chain.run(*(chain.command(chain.sale(member)) for member in [*several, ""])))
    assert touched == {table: set(several) for table in EARNS} | {
        table: {*several, chain.store.store_id} for table in ("sales", "sale_lines")
    }
    (touched,) = await watch.touched(lambda: chain.run(*(chain.command(chain.sale(several[0])) for _ in range(5))))
    assert touched == {table: {several[0]} for table in EARNS}


# --- What a statement says -----------------------------------------------------------------------------------------------------------


def of(declared: Sequence[str]) -> set[str]:
    """The texts of statements that are declared by name."""
    texts: set[str] = {resolve_name(name.replace("._", ":_")) for name in declared}
    return texts


async def test_every_statement_of_a_write_says_whose_rows_it_wants_but_for_the_declared(watch: Watch) -> None:
    chain = watch.chain
    chain.store = type(chain.store)(chain.store.store_id, "S001", chain.store.zone, "CNY", "pending", 0, True)
    member, other = await chain.member(), await chain.member()
    sale = await chain.do(chain.sale(member))
    guests = await chain.do(chain.sale(""))
    chain.clock.advance(timedelta(days=4))
    watch.statements.clear()
    await chain.do(chain.sale(member, ["20.00"], points=100))
    await chain.do(chain.reversal(sale["id"], [(1, "1")]))
    await chain.do(chain.reversal("", sale_operation_id=sale["operation_id"]))
    await chain.do(chain.reversal(guests["id"], [(1, "1")]))
    await chain.do(chain.adjustment(other, 10))
    await chain.do(given_back(chain, member))
    await chain.run(*(chain.command(chain.sale(each)) for each in (member, other, "")))
    await chain.preview(chain.reversal(guests["id"]))
    await settle_wallet(chain.engine, chain.programmes, member, "pending", chain.clock.now() + timedelta(days=30))
    everywhere, by_member = await watch.fan_outs()
    assert everywhere == of([*FAN_OUTS_OF_WRITES])
    assert len(by_member) >= 10
    assert not any("FOR UPDATE" in statement for statement in everywhere)


async def test_what_is_read_of_a_member_asks_one_shard_and_what_is_read_by_id_or_store_is_declared(watch: Watch) -> None:
    chain = watch.chain
    member = await chain.member()
    sale = await chain.do(chain.sale(member))
    watch.statements.clear()
    now = chain.clock.now()
    async with reading(chain.engine) as connection:
        driver = raw(connection)
        await get_points(driver, member, "demo", "debt", now)
        await list_lots(driver, member, "demo", now, size=10, page_token="")
        await list_entries(driver, member, "demo", "debt", size=10, page_token="")
        await list_member_sales(driver, member, 10, "")
    everywhere, by_member = await watch.fan_outs()
    assert everywhere == set()
    assert len(by_member) >= 6
    watch.statements.clear()
    async with reading(chain.engine) as connection:
        driver = raw(connection)
        await get_sale(driver, sale["id"])
        await list_sales(driver, [chain.store.store_id], 10, "")
        await list_returns(driver, [chain.store.store_id], 10, "")
    everywhere, _ = await watch.fan_outs()
    assert everywhere == of([*FAN_OUTS_OF_READS])


async def test_a_preview_asks_the_shard_of_the_sale(watch: Watch) -> None:
    chain = watch.chain
    sale = await chain.do(chain.sale(await chain.member()))
    watch.statements.clear()
    await preview_reversal(chain.engine, chain.clock, chain.programmes, chain.reversal(sale["id"]))
    everywhere, by_member = await watch.fan_outs()
    assert everywhere == of([*FAN_OUTS_OF_WRITES])
    assert by_member
