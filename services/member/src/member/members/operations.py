"""Signing up, changing, reading and finding members.

Personal values are sealed before they reach the database, and so are the stored answers that hold them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.crypto import DataKey, KeyUnknown, PersonalDataKeys
from kit.db import RawConnection, may_retry, raw, reading, transaction
from kit.ids import uuid7
from kit.key_checks import check_key
from kit.outbox import Event, append
from kit.problems import FieldError, Refusal, render
from member.answers.operations import OPERATION_ID_REUSED, Answer, OperationTaken, find_answers, reused, store_answers
from member.members.events import member_changed, member_signed_up
from member.members.rules import (
    DEFAULT_REGION,
    FieldInvalid,
    GivenFields,
    MemberFile,
    birthday_key,
    card_key,
    changed_fields,
    changed_file,
    name_key,
    read_card,
    read_phone,
)
from member.paging import cursor, page, position_of
from member.programmes.operations import Books
from member.programmes.rules import ProgrammeBook
from member.sales.documents import encode, utc_text
from member.wallet.loading import open_wallets

LONGEST_TRY = timedelta(seconds=30)
PAUSE_SECONDS = 0.05

T = TypeVar("T")
_log = logging.getLogger(__name__)

_ROW = "member_id::text, kek_id, data_key, name, phone, phone_verified, card, birthday, gender, city, country, joined_on, created_at"

# The programme of the sign-up; of those of the first release, which did not keep it, that of a wallet.
PROGRAMME = "coalesce(programme_id, (SELECT min(w.programme_id) FROM wallets AS w WHERE w.member_id = members.member_id), '')"

_GET = f"SELECT {_ROW} FROM members WHERE member_id = $1 AND status = 'live'"

_INSERT = """
INSERT INTO members (member_id, data_key, name, name_index, phone, phone_index, phone_verified, card, card_index, birthday,
                     birthday_index, gender, city, country, joined_on, programme_id, status, kek_id, created_at)
SELECT *, 'live', $17::text, $18::timestamptz
FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bool[], $8::bytea[], $9::bytea[],
            $10::bytea[], $11::bytea[], $12::text[], $13::text[], $14::text[], $15::date[], $16::text[])
ON CONFLICT DO NOTHING
"""

_UPDATE = """
UPDATE members SET name = $2, name_index = $3, phone = $4, phone_index = $5, phone_verified = $6, card = $7, card_index = $8,
                   birthday = $9, birthday_index = $10, gender = $11, city = $12, country = $13, joined_on = $14, changed_at = $15
WHERE member_id = $1
"""

_FOR_CHANGE = f"""
SELECT {_ROW}, changed_at, {PROGRAMME} AS programme_id FROM members WHERE member_id = $1 AND status = 'live' FOR UPDATE
"""

_TAKEN_PHONES = """
SELECT phone_index FROM members
WHERE phone_index = ANY($1::bytea[]) AND phone_verified AND status = 'live' AND member_id IS DISTINCT FROM $2::uuid
"""

_TAKEN_CARDS = """
SELECT card_index FROM members WHERE card_index = ANY($1::bytea[]) AND status = 'live' AND member_id IS DISTINCT FROM $2::uuid
"""

_BY_PHONE = f"""
SELECT {_ROW} FROM members
WHERE phone_index = $1 AND status = 'live' AND ($2::uuid IS NULL OR (NOT phone_verified, member_id) > ($3, $2))
ORDER BY NOT phone_verified, member_id LIMIT $4
"""

_BY_CARD = f"SELECT {_ROW} FROM members WHERE card_index = $1 AND status = 'live'"

# From one key to the next through their index: a few steps, however many members there are.
_UNKNOWN_KEK = """
WITH RECURSIVE used AS (
    SELECT min(kek_id) AS kek_id FROM members
    UNION ALL
    SELECT (SELECT min(m.kek_id) FROM members AS m WHERE m.kek_id > used.kek_id) FROM used WHERE used.kek_id IS NOT NULL
)
SELECT kek_id FROM used WHERE kek_id <> ALL($1::text[]) LIMIT 1
"""

_KEYS = "SELECT member_id::text, kek_id, data_key FROM members WHERE member_id = ANY($1::uuid[]) AND status = 'live'"


@dataclass(frozen=True, slots=True)
class Operation:
    """The identity of a write. `fingerprint` tells a replay from a reuse of the id."""

    operation_id: str
    fingerprint: bytes
    method: str
    path: str
    traceparent: str


@dataclass(frozen=True, slots=True)
class SignUp:
    """One member to sign up, with a wallet in a programme."""

    operation: Operation
    programme_id: str
    given: GivenFields


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one write: HTTP status and public JSON; `member_id` is empty for a refusal."""

    status: int
    body: bytes
    replayed: bool = False
    member_id: str = ""
    # Of a new refusal.
    code: str = ""


class _Overtaken(Exception):
    """Another transaction registered one of the phones or cards after they were looked up: begin anew, and it is seen."""


async def sign_up_members(
    engine: AsyncEngine, clock: Clock, keys: PersonalDataKeys, books: Books, sign_ups: Sequence[SignUp]
) -> list[Outcome]:
    """Signs up members in one transaction, each for itself: a refused one refuses only itself.

    Of two at once with the same verified phone, or the same card, one is signed up and the other refused
    (409 `phone_already_registered`, `card_already_registered`). A replay gives the stored answer. What could not be decided is answered
    500 or 503 and not stored.
    """

    async def attempt() -> list[Outcome]:
        async with transaction(engine) as connection:
            driver = raw(connection)
            group = _Group(driver, keys, await books.current(driver), clock.now())
            return await group.run(sign_ups)

    try:
        return await _until_decided(clock, attempt)
    except Exception as error:  # noqa: BLE001  # whatever it is, it fails this group and is told apart here
        if may_retry(error):
            # It lasted; smaller groups would not fare better.
            late = Refusal("not_decided_in_time", 503, "Not decided in time", "Nothing was done. Send the same command again.")
            return [_outcome_of(late)] * len(sign_ups)
        _log.exception("group failed", extra={"sign_ups": len(sign_ups)})
        if len(sign_ups) == 1:
            detail = "Nothing was done. Tell the operator the request id of this answer."
            return [_outcome_of(Refusal("internal_error", 500, "Internal error", detail))]
        # A fault in what one of them found: the others are decided all the same.
        middle = len(sign_ups) // 2
        return [
            *await sign_up_members(engine, clock, keys, books, sign_ups[:middle]),
            *await sign_up_members(engine, clock, keys, books, sign_ups[middle:]),
        ]


async def change_member(
    engine: AsyncEngine, clock: Clock, keys: PersonalDataKeys, operation: Operation, member_id: str, given: GivenFields
) -> Outcome:
    """Changes what is given of a member file and leaves the rest. Refusals as for a sign-up, and 404 `member_not_found`."""

    async def attempt() -> Outcome:
        async with transaction(engine) as connection:
            return await _change(raw(connection), keys, operation, member_id, given, clock.now())

    return await _until_decided(clock, attempt)


async def _until_decided(clock: Clock, attempt: Callable[[], Awaitable[T]]) -> T:
    """Tries again whole, by the operation ids, what failed for a reason of the moment; raises the reason when it lasts."""
    give_up_at = clock.now() + LONGEST_TRY
    while True:
        try:
            return await attempt()
        except (OperationTaken, _Overtaken, asyncpg.UniqueViolationError):
            # Whoever was first has committed: the next attempt sees it.
            if clock.now() >= give_up_at:
                raise
        except Exception as error:
            if not may_retry(error) or clock.now() >= give_up_at:
                raise
            _log.warning("tried again", extra={"error": type(error).__name__})
            await asyncio.sleep(PAUSE_SECONDS)


@dataclass(slots=True)
class _Group:
    """One attempt at signing up a group: decided in memory, written with one statement a table."""

    connection: RawConnection
    keys: PersonalDataKeys
    book: ProgrammeBook
    now: datetime
    rows: list[tuple[str, bytes, DataKey, MemberFile, str]] = field(default_factory=list)
    wallets: list[tuple[str, str]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    async def run(self, sign_ups: Sequence[SignUp]) -> list[Outcome]:
        """Decides and writes. The caller's transaction commits."""
        stored = await find_answers(self.connection, [each.operation.operation_id for each in sign_ups])
        decided = await opened_answers(self.connection, self.keys, stored.values())
        undecided = [each for each in sign_ups if each.operation.operation_id not in decided]
        files = [self._file(each) for each in undecided]
        taken = await _Taken.load(self.connection, self.keys, [file for file in files if isinstance(file, MemberFile)])
        new: list[Answer] = []
        fresh: dict[str, Outcome] = {}
        for each, file in zip(undecided, files, strict=True):
            operation = each.operation
            if operation.operation_id in decided:
                # Twice in one group: the first decides.
                continue
            answer, outcome = self._decide(each, file, taken)
            decided[operation.operation_id] = replace(answer, body=outcome.body, sealed=False)
            new.append(answer)
            fresh[operation.operation_id] = outcome
        await _insert(self.connection, self.keys, self.rows, self.now)
        if self.wallets:
            await open_wallets(self.connection, self.wallets, self.now)
        await append(self.connection, self.events)
        await store_answers(self.connection, new)
        outcomes: list[Outcome] = []
        for each in sign_ups:
            operation_id = each.operation.operation_id
            first = fresh.pop(operation_id, None)
            outcomes.append(first if first is not None else _again(each.operation, decided[operation_id]))
        return outcomes

    def _file(self, sign_up: SignUp) -> MemberFile | Refusal:
        programme = self.book.latest(sign_up.programme_id)
        if programme is None:
            return _refusal("programme_not_found", "There is no such programme. Check the settings of the store.", "/programme_id")
        today = self.now.astimezone(programme.zone).date()
        try:
            return changed_file(MemberFile(joined_on=today), sign_up.given, self.now)
        except Refusal as refused:
            return refused

    def _decide(self, sign_up: SignUp, file: MemberFile | Refusal, taken: "_Taken") -> tuple[Answer, Outcome]:
        operation = sign_up.operation
        try:
            if isinstance(file, Refusal):
                raise file
            taken.claim(file)
        except Refusal as refused:
            body = render(refused)
            return _answer(operation, refused.status, body, self.now), Outcome(refused.status, body, code=refused.code)
        member_id = uuid7()
        key, wrapped = self.keys.new_data_key(member_id)
        body = encode(_document(member_id, file, self.now))
        self.rows.append((member_id, wrapped, key, file, sign_up.programme_id))
        self.wallets.append((member_id, sign_up.programme_id))
        self.events.append(member_signed_up(member_id, sign_up.programme_id, file, self.now, operation.traceparent))
        return _sealed_answer(operation, 201, body, key, member_id, self.now), Outcome(201, body, member_id=member_id)


async def _change(
    connection: RawConnection, keys: PersonalDataKeys, operation: Operation, member_id: str, given: GivenFields, now: datetime
) -> Outcome:
    row = await connection.fetchrow(_FOR_CHANGE, member_id) if _is_uuid(member_id) else None
    # After the lock: whoever held it has committed, so a replay that ran beside its original finds the answer.
    stored = await find_answers(connection, [operation.operation_id])
    if stored:
        opened = await opened_answers(connection, keys, stored.values())
        return _again(operation, opened[operation.operation_id])
    try:
        if row is None:
            raise member_not_found()
        key = keys.data_key(member_id, row["kek_id"], row["data_key"])
        before = _opened(row, key)
        after = changed_file(before, given, now)
        (await _Taken.load(connection, keys, [after], except_for=member_id)).claim(after)
    except Refusal as refused:
        body = render(refused)
        await store_answers(connection, [_answer(operation, refused.status, body, now)])
        return Outcome(refused.status, body, code=refused.code)
    if changed := changed_fields(before, after):
        # Later than the change before, also when the clock went back: it tells which of two states holds.
        changed_at = max(now, (row["changed_at"] or row["created_at"]) + timedelta(microseconds=1))
        await connection.execute(_UPDATE, member_id, *_columns(keys, key, after), changed_at)
        event = member_changed(member_id, row["programme_id"], changed, after, changed_at, operation.traceparent)
        await append(connection, [event])
    body = encode(_document(member_id, after, row["created_at"]))
    await store_answers(connection, [_sealed_answer(operation, 200, body, key, member_id, now)])
    return Outcome(200, body, member_id=member_id)


async def get_member(connection: RawConnection, keys: PersonalDataKeys, member_id: str) -> bytes:
    """One live member as JSON. Raises Refusal `member_not_found`."""
    row = await connection.fetchrow(_GET, member_id) if _is_uuid(member_id) else None
    if row is None:
        raise member_not_found()
    return encode(_found(row, keys))


async def find_by_phone(connection: RawConnection, keys: PersonalDataKeys, typed: str, region: str, size: int, page_token: str) -> bytes:
    """A page of the live members with a phone, who verified it first. Raises Refusal `phone_invalid`."""
    try:
        phone = read_phone(typed, region or DEFAULT_REGION)
    except FieldInvalid as invalid:
        raise _refusal("phone_invalid", str(invalid), "/phone") from None
    after = position_of(page_token, tuple[bool, UUID])
    unverified, member_id = after or (None, None)
    rows = await connection.fetch(_BY_PHONE, keys.blind_index("phone", phone), member_id, unverified, size + 1)
    more = cursor(not rows[size - 1]["phone_verified"], rows[size - 1]["member_id"]) if len(rows) > size else None
    return encode(page([_found(row, keys) for row in rows[:size]], more))


async def find_by_card(connection: RawConnection, keys: PersonalDataKeys, typed: str) -> bytes:
    """The live member with a card, as a list of one or none. Raises Refusal `card_invalid`."""
    try:
        card = read_card(typed)
    except FieldInvalid as invalid:
        raise _refusal("card_invalid", str(invalid), "/card") from None
    rows = await connection.fetch(_BY_CARD, keys.blind_index("card", card_key(card)))
    return encode(page([_found(row, keys) for row in rows], None))


async def opened_answers(connection: RawConnection, keys: PersonalDataKeys, answers: Iterable[Answer]) -> dict[str, Answer]:
    """The answers by operation id, those that were sealed opened.

    One whose member was erased is answered 410 `member_erased`: what it said is gone with the member's key.
    """
    given = list(answers)
    rows = await connection.fetch(_KEYS, [answer.member_id for answer in given]) if any(answer.sealed for answer in given) else []
    data_keys = {row[0]: keys.data_key(*row) for row in rows}
    return {answer.operation_id: _unsealed(answer, data_keys) if answer.sealed else answer for answer in given}


def _unsealed(answer: Answer, data_keys: dict[str, DataKey]) -> Answer:
    key = data_keys.get(answer.member_id or "")
    if key is None:
        erased = Refusal("member_erased", 410, "Member erased", "The member's data was erased, and what this write answered with it.")
        return replace(answer, status=410, body=render(erased), sealed=False)
    return replace(answer, body=key.open(_answer_field(answer.operation_id), answer.body), sealed=False)


async def check_keys(engine: AsyncEngine, keys: PersonalDataKeys, file: Path) -> None:
    """Raises KeyForeign or KeyUnknown unless `keys`, of a key file, are those that the members were written with."""
    await check_key(engine, "index_key", keys.index_key_proof(), file)
    async with reading(engine) as connection:
        unknown = await raw(connection).fetchval(_UNKNOWN_KEK, keys.kek_ids)
    if unknown is not None:
        raise KeyUnknown(unknown)


async def rewrap_data_keys(engine: AsyncEngine, keys: PersonalDataKeys, *, batch: int = 1000) -> int:
    """Wraps the data keys that are under a retired key-encryption key under the present one; returns how many.

    Members can be read and changed meanwhile. Afterwards the retired keys may leave the key file.
    """
    moved = 0
    while True:
        async with transaction(engine) as connection:
            driver = raw(connection)
            rows = await driver.fetch(
                "SELECT member_id::text, kek_id, data_key FROM members WHERE kek_id = ANY($1::text[]) LIMIT $2 FOR UPDATE",
                keys.retired_kek_ids,
                batch,
            )
            await driver.execute(
                """
                UPDATE members AS m SET data_key = n.data_key, kek_id = $3
                FROM unnest($1::uuid[], $2::bytea[]) AS n(member_id, data_key) WHERE m.member_id = n.member_id
                """,
                [row[0] for row in rows],
                [keys.rewrap(*row) for row in rows],
                keys.kek_id,
            )
        moved += len(rows)
        if len(rows) < batch:
            return moved


@dataclass(slots=True)
class _Taken:
    """Verified phones and cards that live members hold already, by blind index; those claimed in this group are added."""

    keys: PersonalDataKeys
    phones: set[bytes]
    cards: set[bytes]

    @classmethod
    async def load(
        cls, connection: RawConnection, keys: PersonalDataKeys, files: Sequence[MemberFile], except_for: str | None = None
    ) -> "_Taken":
        phones = [keys.blind_index("phone", file.phone) for file in files if file.phone and file.phone_verified]
        cards = [keys.blind_index("card", card_key(file.card)) for file in files if file.card]
        return cls(
            keys,
            {row[0] for row in await connection.fetch(_TAKEN_PHONES, phones, except_for)} if phones else set(),
            {row[0] for row in await connection.fetch(_TAKEN_CARDS, cards, except_for)} if cards else set(),
        )

    def claim(self, file: MemberFile) -> None:
        """Takes the file's verified phone and card. Raises Refusal (409), and then has taken nothing."""
        phone = self.keys.blind_index("phone", file.phone) if file.phone and file.phone_verified else None
        card = self.keys.blind_index("card", card_key(file.card)) if file.card else None
        if phone in self.phones:
            detail = "Another member has verified this phone. Search for it and use that member file."
            raise _refusal("phone_already_registered", detail, "/phone", status=409)
        if card in self.cards:
            detail = "Another member has this card. Search for it and use that member file."
            raise _refusal("card_already_registered", detail, "/card", status=409)
        self.phones |= {phone} if phone else set()
        self.cards |= {card} if card else set()


async def _insert(
    connection: RawConnection, keys: PersonalDataKeys, rows: Sequence[tuple[str, bytes, DataKey, MemberFile, str]], now: datetime
) -> None:
    """Inserts member files. Raises _Overtaken when one of them lost its phone or card to another transaction meanwhile."""
    if not rows:
        return
    values = [(member_id, wrapped, *_columns(keys, key, file), programme_id) for member_id, wrapped, key, file, programme_id in rows]
    # In one order, so that two groups with the same phones wait for each other one way round.
    values.sort(key=lambda value: (value[5] or b"", value[8] or b""))
    done = await connection.execute(_INSERT, *map(list, zip(*values, strict=True)), keys.kek_id, now)
    if done != f"INSERT 0 {len(rows)}":
        raise _Overtaken


_Bytes = bytes | None
_Text = str | None
_Columns = tuple[_Bytes, _Bytes, _Bytes, _Bytes, bool, _Bytes, _Bytes, _Bytes, _Bytes, _Text, _Text, _Text, date]


def _columns(keys: PersonalDataKeys, key: DataKey, file: MemberFile) -> _Columns:
    """The columns of a file from `name` on, in the order of `_INSERT` and `_UPDATE`."""

    def seal(name: str, value: str | None) -> bytes | None:
        return key.seal(name, value.encode()) if value is not None else None

    return (
        seal("name", file.name),
        keys.blind_index("name", name_key(file.name)) if file.name else None,
        seal("phone", file.phone),
        keys.blind_index("phone", file.phone) if file.phone else None,
        file.phone_verified,
        seal("card", file.card),
        keys.blind_index("card", card_key(file.card)) if file.card else None,
        seal("birthday", file.birthday),
        keys.blind_index("birthday", birthday_key(file.birthday)) if file.birthday else None,
        file.gender,
        file.city,
        file.country,
        file.joined_on,
    )


def _opened(row: "asyncpg.Record", key: DataKey) -> MemberFile:
    def plain(name: str) -> str | None:
        return key.open(name, row[name]).decode() if row[name] is not None else None

    return MemberFile(
        joined_on=row["joined_on"],
        name=plain("name"),
        phone=plain("phone"),
        phone_verified=row["phone_verified"],
        card=plain("card"),
        birthday=plain("birthday"),
        gender=row["gender"],
        city=row["city"],
        country=row["country"],
    )


def _found(row: "asyncpg.Record", keys: PersonalDataKeys) -> dict[str, Any]:
    file = _opened(row, keys.data_key(row["member_id"], row["kek_id"], row["data_key"]))
    return _document(row["member_id"], file, row["created_at"])


def _document(member_id: str, file: MemberFile, created_at: datetime) -> dict[str, Any]:
    """A member file as the API gives it."""
    return {
        "id": member_id,
        "name": file.name,
        "phone": file.phone,
        "phone_verified": file.phone_verified,
        "card": file.card,
        "birthday": file.birthday,
        "gender": file.gender,
        "city": file.city,
        "country": file.country,
        "joined_on": file.joined_on.isoformat(),
        "created_at": utc_text(created_at),
    }


def _answer(operation: Operation, status: int, body: bytes, now: datetime) -> Answer:
    return Answer(
        operation.operation_id, operation.fingerprint, operation.method, operation.path, status, body,
        sealed=False, subject_id=None, member_id=None, decided_at=now,
    )  # fmt: skip


def _sealed_answer(operation: Operation, status: int, body: bytes, key: DataKey, member_id: str, now: datetime) -> Answer:
    sealed = key.seal(_answer_field(operation.operation_id), body)
    return replace(_answer(operation, status, sealed, now), sealed=True, subject_id=member_id, member_id=member_id)


def _answer_field(operation_id: str) -> str:
    return f"answer\0{operation_id}"


def _again(operation: Operation, answer: Answer) -> Outcome:
    """The outcome of a write whose id was decided before; `answer` is opened."""
    if answer.fingerprint != operation.fingerprint:
        status, body = reused(operation.operation_id)
        return Outcome(status, body, code=OPERATION_ID_REUSED)
    return Outcome(answer.status, answer.body, replayed=True, member_id=answer.member_id or "")


def _outcome_of(refused: Refusal) -> Outcome:
    return Outcome(refused.status, render(refused), code=refused.code)


def member_not_found() -> Refusal:
    """There is no live member with an id."""
    return Refusal("member_not_found", 404, "No such member", "Search for the member by phone or card, or sign the member up.")


def _refusal(code: str, detail: str, pointer: str, *, status: int = 422) -> Refusal:
    return Refusal(code, status, code.replace("_", " ").capitalize(), detail, (FieldError(pointer, code, detail),))


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
