"""The batch writer: lock, load, decide, write (design.md; docs/adr/0001-batch-writer.md).

Every write of a wallet or a sale takes this path, in a group that is one transaction. The group's wallets are locked in the order of
their ids, what its commands name is loaded with one statement a table, every command is decided in memory by pure rules, one after
another on the evolving state, and all is written in one statement, together with the outbox events and the answers.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from time import perf_counter
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.db import RawConnection, may_retry, raw, transaction
from kit.ids import uuid7
from kit.metrics import WRITER_DURATION, WRITER_GROUP_SIZE, WRITER_RETRIES, WRITER_SPLITS
from kit.problems import Refusal, render
from member.answers.operations import OPERATION_ID_REUSED, Answer, OperationTaken, reused
from member.points.rules import Cause, Wallet
from member.programmes.operations import Books
from member.programmes.rules import ProgrammeBook, ProgrammeVersion
from member.sales.documents import encode, points_figures, return_document, reversal_document, sale_document, utc_text
from member.sales.rules import (
    NewReturn,
    NewSale,
    Reversal,
    Sale,
    Store,
    UnlinkedReturn,
    decide_return,
    decide_reversal,
    decide_sale,
    insufficient_points,
    refusal,
    too_many_points,
)
from member.wallet.commands import Command, NewAdjustment, Outcome, SaleToReverse
from member.wallet.counting import count_amounts, count_moves
from member.wallet.events import points_moved, return_recorded, sale_recorded, sale_reversed
from member.wallet.loading import (
    ALL,
    SaleOwner,
    SaleWithReversals,
    WalletKey,
    find_decided,
    find_sale_owners,
    load_lots,
    load_sales,
    lock_sales,
    lock_wallets,
    read_wallets,
)
from member.wallet.writing import write

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.5
# For commands without a deadline of their own.
LONGEST_TRY = timedelta(seconds=30)

_log = logging.getLogger(__name__)


async def execute_commands(engine: AsyncEngine, clock: Clock, programmes: Books, commands: Sequence[Command]) -> list[Outcome]:
    """Decides every command of a group and returns their outcomes in the same order.

    A refused command refuses only itself. A fault of the moment (a lost connection, a deadlock, a commit that may have happened) is
    tried again whole, by the operation ids; a fault of data splits the group, until the one at fault is alone and answered 500.
    A command whose deadline passes before it is decided is answered 503; nothing of it was stored.
    """
    begun = perf_counter()
    give_up_at = clock.now() + LONGEST_TRY
    pause = FIRST_PAUSE_SECONDS
    while True:
        now = clock.now()
        if any(c.deadline is not None and c.deadline <= now for c in commands) or now >= give_up_at:
            return await _without_the_late(engine, clock, programmes, commands, now, given_up=now >= give_up_at)
        try:
            async with transaction(engine) as connection:
                group = _Group(raw(connection), programmes, now)
                outcomes = await group.run(commands)
        except OperationTaken:
            continue
        except Exception as error:  # noqa: BLE001  # whatever it is, it fails this group and is told apart below
            if may_retry(error):
                WRITER_RETRIES.of().inc()
                _log.warning("group tried again", extra={"commands": len(commands), "error": type(error).__name__})
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            elif len(commands) > 1:
                WRITER_SPLITS.of().inc()
                middle = len(commands) // 2
                return [
                    *await execute_commands(engine, clock, programmes, commands[:middle]),
                    *await execute_commands(engine, clock, programmes, commands[middle:]),
                ]
            else:
                _log.exception("command failed", extra={"operation_id": commands[0].operation_id})
                return [_failed()]
        else:
            WRITER_GROUP_SIZE.of().observe(len(commands))
            WRITER_DURATION.of().observe(perf_counter() - begun)
            group.count()
            return outcomes


async def preview_reversal(engine: AsyncEngine, clock: Clock, programmes: Books, reversal: SaleToReverse) -> Outcome:
    """What the reversal would answer now. Writes nothing."""
    async with transaction(engine, snapshot=True) as connection:
        group = _Group(raw(connection), programmes, clock.now(), locks=False)
        command = Command("", b"", "", "", "", None, reversal)
        await group.load([command])
        try:
            return Outcome(200, group.decide(command).body)
        except Refusal as refused:
            return Outcome(refused.status, render(refused))


async def _without_the_late(
    engine: AsyncEngine, clock: Clock, programmes: Books, commands: Sequence[Command], now: datetime, *, given_up: bool
) -> list[Outcome]:
    def late(command: Command) -> bool:
        return given_up or (command.deadline is not None and command.deadline <= now)

    waiting = [command for command in commands if not late(command)]
    decided = iter(await execute_commands(engine, clock, programmes, waiting) if waiting else [])
    return [_too_late() if late(command) else next(decided) for command in commands]


class _Amounts(Struct):
    """The figure of a stored answer that Outcome.amount_minor repeats."""

    net_minor: int = 0
    refund_minor: int = 0


_decode_amounts = msgspec.json.Decoder(_Amounts).decode


def _amount_in(answer: Answer) -> int:
    if answer.status >= HTTPStatus.BAD_REQUEST:
        return 0
    amounts = _decode_amounts(answer.body)
    return amounts.refund_minor or amounts.net_minor


def _too_late() -> Outcome:
    refused = Refusal("not_decided_in_time", 503, "Not decided in time", "Nothing was done. Send the same command again.")
    return Outcome(refused.status, render(refused), code=refused.code)


def _failed() -> Outcome:
    refused = Refusal("internal_error", 500, "Internal error", "Nothing was done. Tell the operator the request id of this answer.")
    return Outcome(refused.status, render(refused))


@dataclass(slots=True)
class _Decision:
    """What deciding one command gave, before it is written."""

    status: int
    body: bytes
    subject_id: str | None = None
    member_id: str | None = None
    amount_minor: int = 0
    code: str = ""


@dataclass(slots=True)
class _Group:
    """The state of one attempt at one group: loaded, changed by its decisions, and written."""

    connection: RawConnection
    programmes: Books
    now: datetime
    locks: bool = True
    book: ProgrammeBook = field(default_factory=ProgrammeBook)
    wallets: dict[WalletKey, Wallet] = field(default_factory=dict)
    sales: dict[str, SaleWithReversals] = field(default_factory=dict)
    sale_ids_by_operation: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    new_sales: list[Sale] = field(default_factory=list)
    new_reversals: list[tuple[Sale, Reversal]] = field(default_factory=list)
    new_returns: list[UnlinkedReturn] = field(default_factory=list)
    trace_of_wallet: dict[WalletKey, str] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)

    async def run(self, commands: Sequence[Command]) -> list[Outcome]:
        """Loads, decides and writes. The caller's transaction commits."""
        await self.load(commands)
        new_answers: list[Answer] = []
        outcomes: list[Outcome] = []
        for command in commands:
            known = self.answers.get(command.operation_id)
            if known is not None:
                outcomes.append(self._answer_again(command, known))
                continue
            try:
                decision = self.decide(command)
            except Refusal as refused:
                decision = _Decision(refused.status, render(refused), code=refused.code)
            answer = Answer(
                operation_id=command.operation_id,
                fingerprint=command.fingerprint,
                method=command.method,
                path=command.path,
                status=decision.status,
                body=decision.body,
                sealed=False,
                subject_id=decision.subject_id,
                member_id=decision.member_id,
                decided_at=self.now,
            )
            self.answers[command.operation_id] = answer
            new_answers.append(answer)
            outcomes.append(Outcome(decision.status, decision.body, amount_minor=decision.amount_minor, code=decision.code))
        await self._write(new_answers)
        return outcomes

    async def load(self, commands: Sequence[Command]) -> None:
        """Locks and loads what the commands name. Replays are told apart here, and need nothing loaded."""
        connection = self.connection
        owners, self.sale_ids_by_operation = await find_sale_owners(
            connection,
            {c.act.sale_id for c in commands if isinstance(c.act, SaleToReverse) and c.act.sale_id},
            {c.act.sale_operation_id for c in commands if isinstance(c.act, SaleToReverse) and c.act.sale_operation_id},
        )
        keys = {key for command in commands if (key := self._wallet_key(command, owners)) is not None}
        if self.locks:
            self.wallets = await lock_wallets(connection, keys, self.now)
            await lock_sales(connection, [owner for owner in owners.values() if owner.is_guest])
            # After the locks: whoever held them has committed, so a replay that ran beside its original finds the answer.
            self.answers, seq = await find_decided(connection, [command.operation_id for command in commands])
            self.book = await self.programmes.current(connection, seq)
            if any(self._was_sold_meanwhile(command) for command in commands):
                raise OperationTaken
        else:
            self.wallets = await read_wallets(connection, keys)
            self.book = await self.programmes.current(connection)
        undecided = [command for command in commands if command.operation_id not in self.answers]
        reversed_ids = {sale_id for c in undecided if isinstance(c.act, SaleToReverse) and (sale_id := self._sale_id(c.act)) in owners}
        self.sales = await load_sales(connection, reversed_ids, {owners[sale_id].member_id for sale_id in reversed_ids})
        lot_ids = {lot_id for found in self.sales.values() for lot_id, _ in found.sale.spent_from}
        lot_ids |= {found.sale.earned_lot_id for found in self.sales.values() if found.sale.earned_lot_id}
        await load_lots(connection, self.wallets, self.now, debits=self._debits(undecided), lot_ids=lot_ids)

    def _sale_id(self, act: SaleToReverse) -> str:
        return act.sale_id or self.sale_ids_by_operation.get(act.sale_operation_id, "")

    def _was_sold_meanwhile(self, command: Command) -> bool:
        """Whether a reversal's sale was recorded by another group between the resolving of sales and the locks."""
        act = command.act
        if not isinstance(act, SaleToReverse) or act.sale_operation_id in self.sale_ids_by_operation:
            return False
        sale = self.answers.get(act.sale_operation_id)
        return sale is not None and sale.subject_id is not None

    def _wallet_key(self, command: Command, owners: dict[str, SaleOwner]) -> WalletKey | None:
        """The wallet that a command may change or must find; None for a guest's."""
        act = command.act
        if isinstance(act, NewAdjustment):
            return act.member_id, act.programme_id
        if isinstance(act, SaleToReverse):
            owner = owners.get(self._sale_id(act))
            return (owner.member_id, owner.programme_id) if owner is not None and not owner.is_guest else None
        return (act.member_id, act.store.programme_id) if act.member_id and act.store is not None else None

    def _debits(self, commands: Sequence[Command]) -> dict[WalletKey, int]:
        """The most points that the commands may take from each wallet's live lots."""
        debits: dict[WalletKey, int] = {}

        def add(key: WalletKey, points: int) -> None:
            debits[key] = min(debits.get(key, 0) + points, ALL)

        for command in commands:
            act = command.act
            if isinstance(act, NewSale):
                if act.points_to_spend and act.member_id and act.store is not None:
                    add((act.member_id, act.store.programme_id), act.points_to_spend)
            elif isinstance(act, NewAdjustment):
                if act.points < 0:
                    add((act.member_id, act.programme_id), -act.points)
            elif isinstance(act, SaleToReverse):
                found = self.sales.get(self._sale_id(act))
                if found is not None:
                    add((found.sale.member_id, found.sale.programme_id), found.sale.points_earned)
                else:
                    # A sale of this very group: what it will have earned is not known yet.
                    for other in commands:
                        if isinstance(other.act, NewSale) and other.operation_id == act.sale_operation_id and other.act.store is not None:
                            add((other.act.member_id, other.act.store.programme_id), ALL)
        return debits

    def _answer_again(self, command: Command, known: Answer) -> Outcome:
        if known.fingerprint != command.fingerprint or known.sealed:
            status, body = reused(command.operation_id)
            return Outcome(status, body, code=OPERATION_ID_REUSED)
        return Outcome(known.status, known.body, replayed=True, amount_minor=_amount_in(known))

    def decide(self, command: Command) -> _Decision:
        """Decides one command on the state so far. Raises Refusal, and then has changed nothing."""
        act = command.act
        if isinstance(act, NewSale):
            return self._decide_sale(command, act)
        if isinstance(act, SaleToReverse):
            return self._decide_reversal(command, act)
        if isinstance(act, NewAdjustment):
            return self._decide_adjustment(command, act)
        return self._decide_return(command, act)

    def _decide_sale(self, command: Command, act: NewSale) -> _Decision:
        wallet = self._member_wallet(act.member_id, act.store, command)
        programme = self.book.at(act.store.programme_id, act.store.business_day(act.sold_at)) if act.store is not None else None
        sale_id = uuid7()
        sale = decide_sale(act, wallet, programme, Cause(self.now, sale_id, sale_id))
        self.new_sales.append(sale)
        self.sales[sale_id] = SaleWithReversals(sale)
        self.sale_ids_by_operation[act.operation_id] = sale_id
        points: dict[str, Any] | None = None
        if wallet is not None:
            points = {"earned": sale.points_earned, "spent": sale.points_spent, **self._figures(wallet)}
        self.events.append(sale_recorded(sale, command.traceparent))
        return _Decision(201, encode(sale_document(sale, points)), sale_id, sale.member_id or None, sale.net_minor)

    def _decide_reversal(self, command: Command, act: SaleToReverse) -> _Decision:
        found = self.sales.get(self._sale_id(act))
        if found is None:
            raise refusal("sale_not_found", "There is no such sale. Look it up by the member or the store.", "", status=404)
        sale = found.sale
        wallet = self._settled((sale.member_id, sale.programme_id), command) if sale.member_id else None
        programme = self._programme_now(sale.programme_id)
        cause = Cause(self.now, uuid7() if self.locks else None, sale.sale_id, act.reversal.reason or None)
        reversal = decide_reversal(act.reversal, sale, found.reversals, wallet, programme, cause)
        found.reversals.append(reversal)
        self.new_reversals.append((sale, reversal))
        figures = self._figures(wallet) if wallet is not None else None
        self.events.append(sale_reversed(reversal, sale, command.traceparent))
        body = encode(reversal_document(reversal, sale, figures))
        return _Decision(201, body, reversal.reversal_id or None, sale.member_id or None, reversal.refund_minor)

    def _decide_adjustment(self, command: Command, act: NewAdjustment) -> _Decision:
        wallet = self._settled((act.member_id, act.programme_id), command)
        programme = self._programme_now(act.programme_id)
        if programme is None:
            raise refusal("programme_not_found", f"There is no programme {act.programme_id}.", "/programme_id")
        if wallet is None:
            raise refusal("member_not_found", "There is no such member.", "", status=404)
        if -act.points > wallet.balance:
            raise insufficient_points(-act.points, wallet.balance, "/points")
        if not wallet.has_room_for(act.points):
            raise too_many_points(act.points, "/points")
        cause = Cause(self.now, uuid7(), None, act.reason)
        if act.points > 0:
            wallet.earn(act.points, available_at=self.now, expires_at=programme.expires_at(self.now), source_kind="adjustment", cause=cause)
        else:
            wallet.debit(-act.points, "adjust", cause)
        document = {
            "id": cause.cause_id,
            "operation_id": command.operation_id,
            "member_id": act.member_id,
            "programme_id": act.programme_id,
            "points": act.points,
            "reason": act.reason,
            "at": utc_text(self.now),
            **self._figures(wallet),
        }
        return _Decision(201, encode(document), cause.cause_id, act.member_id)

    def _programme_now(self, programme_id: str) -> ProgrammeVersion | None:
        """The version in force today, in the programme's own zone."""
        latest = self.book.latest(programme_id)
        return self.book.at(programme_id, self.now.astimezone(latest.zone).date()) if latest is not None else None

    def _decide_return(self, command: Command, act: NewReturn) -> _Decision:
        self._member_wallet(act.member_id, act.store, command)
        given = decide_return(act, uuid7(), self.now)
        self.new_returns.append(given)
        self.events.append(return_recorded(given, command.traceparent))
        return _Decision(201, encode(return_document(given)), given.return_id, given.member_id or None, given.refund_minor)

    def _member_wallet(self, member_id: str, store: Store | None, command: Command) -> Wallet | None:
        """The settled wallet of a member named in a command; None for a guest or where the store is unknown."""
        if not member_id or store is None:
            return None
        wallet = self._settled((member_id, store.programme_id), command)
        if wallet is None:
            raise refusal("member_not_found", "There is no such member. Sign the member up, or sell without one.", "/member_id")
        return wallet

    def _figures(self, wallet: Wallet) -> dict[str, Any]:
        """The wallet's figures, as a read would show them now: by the version in force, whatever day the act was dated."""
        version = self._programme_now(wallet.programme_id)
        return points_figures(wallet, version.shortfall if version is not None else "debt")

    def _settled(self, key: WalletKey, command: Command) -> Wallet | None:
        wallet = self.wallets.get(key)
        if wallet is not None:
            wallet.settle(self.now)
            self.trace_of_wallet[key] = command.traceparent
        return wallet

    def count(self) -> None:
        """Counts what it did. Called once it is committed."""
        count_amounts(self.new_sales, self.new_reversals, self.new_returns)
        count_moves(list(self.wallets.values()))

    async def _write(self, answers: Sequence[Answer]) -> None:
        moved = [
            points_moved(wallet, self.book, self.now, self.trace_of_wallet.get(key, ""))
            for key, wallet in self.wallets.items()
            if wallet.entries
        ]
        await write(
            self.connection,
            self.now,
            wallets=list(self.wallets.values()),
            sales=self.new_sales,
            reversals=self.new_reversals,
            returns=self.new_returns,
            events=[*self.events, *moved],
            answers=answers,
        )
