import asyncio
import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest

from kit.crypto import KeyUnknown, PersonalDataKeys, SealBroken, generate
from kit.db import raw, transaction
from kit.key_checks import KeyForeign
from kit.problems import Refusal
from member.members.operations import check_keys, rewrap_data_keys
from member.points.rules import unix_us
from regulars.member.v1 import member_events_pb2 as events_pb

if TYPE_CHECKING:
    from .conftest import Desk
else:
    Desk = Any

PERSONAL = {"name": "王小明", "phone": "13800138000", "card": "VIP-77 001", "birthday": "1990-05-17"}
SPOKEN = ["王小明", "13800138000", "VIP-77 001", "1990-05-17", "05-17"]


def problem(body: bytes) -> tuple[int, str]:
    document = msgspec.json.decode(body)
    return document["status"], document["code"]


async def test_a_member_is_signed_up_read_and_found(desk: Desk) -> None:
    member = await desk.member(**PERSONAL, phone_verified=True, gender="female", city="上海", country="CN")
    assert member == {
        "id": member["id"],
        "name": "王小明",
        "phone": "+8613800138000",
        "phone_verified": True,
        "card": "VIP-77 001",
        "birthday": "1990-05-17",
        "gender": "female",
        "city": "上海",
        "country": "CN",
        "joined_on": "2026-11-21",
        "created_at": "2026-11-21T10:03:12Z",
    }
    assert await desk.read(member["id"]) == member
    assert (await desk.by_phone("+86 138 0013 8000"))["items"] == [member]
    assert await desk.by_card("vip77001") == [member["id"]]
    assert await desk.by_card("vip77002") == []
    assert (await desk.by_phone("13900139000"))["items"] == []


async def test_a_member_joins_on_the_day_it_is_in_the_programmes_zone(desk: Desk) -> None:
    desk.clock.advance(timedelta(hours=7))
    assert (await desk.member())["joined_on"] == "2026-11-22"
    assert (await desk.member(joined_on="2009-12-01"))["joined_on"] == "2009-12-01"


async def test_a_sign_up_opens_a_wallet_and_says_so(desk: Desk) -> None:
    member = await desk.member(**PERSONAL)
    assert [tuple(row) for row in await desk.rows("SELECT member_id::text, programme_id, balance FROM wallets")] == [
        (member["id"], "demo", 0)
    ]
    (event,) = await desk.rows("SELECT topic, key::text, type, payload FROM outbox")
    assert event[:3] == ("member.member.v1", member["id"], "regulars.member.v1.MemberSignedUp")
    assert events_pb.MemberSignedUp.FromString(event["payload"]) == events_pb.MemberSignedUp(
        member_id=member["id"],
        programme_id="demo",
        joined_on="2026-11-21",
        birth_year_from=1990,
        version=unix_us(desk.clock.now()),
    )


async def test_a_refused_sign_up_refuses_only_itself(desk: Desk) -> None:
    outcomes = await desk.run(
        desk.sign_up(name="A"),
        desk.sign_up(phone="12"),
        desk.sign_up(programme_id="none"),
        desk.sign_up(name="B"),
    )
    assert [outcome.status for outcome in outcomes] == [201, 422, 422, 201]
    assert problem(outcomes[1].body) == (422, "phone_invalid")
    assert problem(outcomes[2].body) == (422, "programme_not_found")
    assert len(await desk.rows("SELECT FROM members")) == len(await desk.rows("SELECT FROM outbox")) == 2


@pytest.mark.parametrize(
    "given, code",
    [({"phone": "13800138000", "phone_verified": True}, "phone_already_registered"), ({"card": "a 1"}, "card_already_registered")],
)
async def test_concurrent_sign_ups_with_one_key_give_one_member(desk: Desk, given: dict[str, Any], code: str) -> None:
    groups = await asyncio.gather(*(desk.run(desk.sign_up(**given), desk.sign_up(name="other")) for _ in range(12)))
    decided = [group[0] for group in groups]
    assert sorted(outcome.status for outcome in decided) == [201] + [409] * 11
    assert {problem(outcome.body)[1] for outcome in decided if outcome.status == 409} == {code}
    assert all(group[1].status == 201 for group in groups)
    assert len(await desk.rows("SELECT FROM members")) == 13


async def test_two_of_one_group_with_one_key_give_one_member(desk: Desk) -> None:
    card, phone = {"card": "A1"}, {"phone": "13800138000", "phone_verified": True}
    outcomes = await desk.run(*(desk.sign_up(**given) for given in (card, card, phone, phone, {"phone": "13800138000"})))
    assert [outcome.status for outcome in outcomes] == [201, 409, 201, 409, 201]


async def test_an_unverified_phone_may_be_shared_and_the_verified_comes_first(desk: Desk) -> None:
    shared = [await desk.member(phone="13800138000") for _ in range(3)]
    verified = await desk.member(phone="13800138000", phone_verified=True)
    shared.append(await desk.member(phone="13800138000"))
    found: list[str] = []
    token = ""
    for size in (2, 2, 2):
        page = await desk.by_phone("13800138000", size=size, page_token=token)
        found += [item["id"] for item in page["items"]]
        token = page["next_cursor"] or ""
    assert found == [verified["id"], *(member["id"] for member in shared)]
    assert token == ""


async def test_a_replay_gives_the_same_bytes(desk: Desk) -> None:
    sign_up = desk.sign_up("op", **PERSONAL)
    (first,) = await desk.run(sign_up)
    await desk.change(decoded_id(first.body), name="李四")
    desk.clock.advance(timedelta(days=400))
    (again,) = await desk.run(sign_up)
    assert (again.status, again.body, again.replayed, again.member_id) == (201, first.body, True, first.member_id)
    refused = desk.sign_up("bad", phone="1")
    (no,) = await desk.run(refused)
    (still_no,) = await desk.run(refused)
    assert (still_no.body, no.replayed, still_no.replayed) == (no.body, False, True)


def decoded_id(body: bytes) -> str:
    member_id: str = msgspec.json.decode(body)["id"]
    return member_id


async def test_concurrent_replays_give_one_member_and_equal_answers(desk: Desk) -> None:
    sign_up = desk.sign_up("op", **PERSONAL, phone_verified=True)
    groups = await asyncio.gather(*(desk.run(sign_up, sign_up) for _ in range(8)))
    outcomes = [outcome for group in groups for outcome in group]
    assert {(outcome.status, outcome.body) for outcome in outcomes} == {(201, outcomes[0].body)}
    assert [outcome.replayed for outcome in outcomes].count(False) == 1
    assert len(await desk.rows("SELECT FROM members")) == 1


async def test_an_operation_id_serves_one_request(desk: Desk) -> None:
    member = await desk.member(**PERSONAL)
    await desk.run(desk.sign_up("op", name="A"))
    (other,) = await desk.run(desk.sign_up("op", name="B"))
    assert problem(other.body) == (409, "operation_id_reused")
    assert not other.replayed
    changed = await desk.change(member["id"], "op", name="C")
    assert problem(changed.body) == (409, "operation_id_reused")
    assert (await desk.read(member["id"]))["name"] == "王小明"


async def test_a_change_changes_what_is_given_and_leaves_the_rest(desk: Desk) -> None:
    member = await desk.member(**PERSONAL, phone_verified=True)
    outcome = await desk.change(member["id"], "op", phone="13900139000", city="杭州", card="")
    expected = {**member, "phone": "+8613900139000", "phone_verified": False, "city": "杭州", "card": None}
    assert msgspec.json.decode(outcome.body) == expected == await desk.read(member["id"])
    assert (outcome.status, outcome.member_id) == (200, member["id"])
    assert (await desk.by_phone("13800138000"))["items"] == []
    assert await desk.by_card("VIP-77 001") == []
    again = await desk.change(member["id"], "op", phone="13900139000", city="杭州", card="")
    assert (again.body, again.replayed) == (outcome.body, True)
    event = (await desk.rows("SELECT type, payload FROM outbox ORDER BY position"))[-1]
    assert event["type"] == "regulars.member.v1.MemberChanged"
    message = events_pb.MemberChanged.FromString(event["payload"])
    assert set(message.changed_fields) == {"phone", "phone_verified", "city", "card"}
    assert (message.programme_id, message.joined_on, message.birth_year_from, message.city) == ("demo", "2026-11-21", 1990, "杭州")


async def test_of_two_changes_the_later_has_the_larger_version_whatever_the_clock_says(desk: Desk) -> None:
    member = await desk.member()
    await desk.change(member["id"], city="杭州")
    desk.clock.advance(timedelta(hours=-1))
    await desk.change(member["id"], city="上海")
    rows = await desk.rows("SELECT payload FROM outbox ORDER BY position")
    signed_up = events_pb.MemberSignedUp.FromString(rows[0]["payload"])
    first, second = (events_pb.MemberChanged.FromString(row["payload"]) for row in rows[1:])
    assert signed_up.version < first.version < second.version
    assert [signed_up.city, first.city, second.city] == ["", "杭州", "上海"]


async def test_an_address_and_a_person_typed_as_a_city_stay_in_the_file(desk: Desk) -> None:
    typed = "北京市朝阳区建国路88号 张三 13912349999"
    member = await desk.member(city=typed)
    await desk.change(member["id"], gender="female")
    assert (await desk.read(member["id"]))["city"] == typed
    events = await desk.rows("SELECT payload FROM outbox ORDER BY position")
    signed_up, changed = events_pb.MemberSignedUp.FromString(events[0][0]), events_pb.MemberChanged.FromString(events[1][0])
    assert [signed_up.city, changed.city] == ["", ""]
    assert not any(part.encode() in event[0] for event in events for part in typed.split())


async def test_a_change_of_nothing_is_answered_and_is_no_event(desk: Desk) -> None:
    member = await desk.member(**PERSONAL)
    assert (await desk.change(member["id"], name=" 王小明 ")).status == 200
    assert len(await desk.rows("SELECT FROM outbox")) == 1


async def test_a_change_may_not_take_what_another_member_holds(desk: Desk) -> None:
    await desk.member(phone="13800138000", phone_verified=True, card="A1")
    member = await desk.member(phone="13800138000", card="A2")
    assert problem((await desk.change(member["id"], phone_verified=True)).body) == (409, "phone_already_registered")
    assert problem((await desk.change(member["id"], card="a-1")).body) == (409, "card_already_registered")
    assert (await desk.change(member["id"], card="a-2")).status == 200
    assert problem((await desk.change("no-such-member", "op", name="A")).body) == (404, "member_not_found")
    assert (await desk.change("no-such-member", "op", name="A")).replayed


async def test_concurrent_changes_to_one_phone_give_it_to_one_member(desk: Desk) -> None:
    members = [await desk.member() for _ in range(8)]
    outcomes = await asyncio.gather(*(desk.change(member["id"], phone="13800138000", phone_verified=True) for member in members))
    assert sorted(outcome.status for outcome in outcomes) == [200] + [409] * 7


@pytest.mark.parametrize("member_id", ["", "x", "01890000-0000-7000-8000-00000000000a", "' OR 1=1"])
async def test_an_unknown_member_is_not_found(desk: Desk, member_id: str) -> None:
    with pytest.raises(Refusal) as caught:
        await desk.read(member_id)
    assert (caught.value.status, caught.value.code) == (404, "member_not_found")


async def test_a_search_by_no_phone_or_card_is_refused(desk: Desk) -> None:
    for search in (desk.by_phone("12"), desk.by_phone("13800138000", region="QQ"), desk.by_card("-")):
        with pytest.raises(Refusal) as caught:
            await search
        assert caught.value.status == 422


async def test_no_personal_value_is_stored_sent_or_logged_in_plain(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    member = await desk.member(**PERSONAL, phone_verified=True)
    refused = await desk.run(desk.sign_up(**PERSONAL, phone_verified=True), desk.sign_up(**PERSONAL | {"card": "VIP\x07 77 001"}))
    await desk.change(member["id"], name="李四", birthday="1990-05-17")
    stored: list[str] = []
    for table in ("members", "operations", "outbox", "wallets"):
        for row in await desk.rows(f"SELECT * FROM {table}"):
            stored += [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in row.values()]
    said = "\n".join([*stored, caplog.text, *(outcome.body.decode() for outcome in refused)])
    for value in [*SPOKEN, "李四", "+8613800138000", PERSONAL["card"].replace(" ", "")]:
        assert value not in said


async def test_destroying_a_members_key_erases_what_was_answered_too(desk: Desk) -> None:
    sign_up = desk.sign_up("op", **PERSONAL, phone_verified=True)
    (outcome,) = await desk.run(sign_up)
    async with transaction(desk.engine) as connection:
        await raw(connection).execute(
            """
            UPDATE members SET status = 'erased', data_key = NULL, kek_id = NULL, name = NULL, name_index = NULL, phone = NULL,
                               phone_index = NULL, phone_verified = false, card = NULL, card_index = NULL, birthday = NULL,
                               birthday_index = NULL
            WHERE member_id = $1
            """,
            outcome.member_id,
        )
    (again,) = await desk.run(sign_up)
    assert problem(again.body) == (410, "member_erased")
    with pytest.raises(Refusal):
        await desk.read(outcome.member_id)
    # The phone and the card are free again.
    assert (await desk.member(**PERSONAL, phone_verified=True))["id"] != outcome.member_id


@pytest.mark.parametrize("name", ["name", "phone", "card", "birthday"])
async def test_what_an_erased_member_was_found_by_cannot_stay(desk: Desk, name: str) -> None:
    member = await desk.member(**{name: PERSONAL[name]})
    with pytest.raises(asyncpg.CheckViolationError, match="members_erased_is_not_indexed"):
        async with transaction(desk.engine) as connection:
            await raw(connection).execute(
                "UPDATE members SET status = 'erased', data_key = NULL, kek_id = NULL WHERE member_id = $1", member["id"]
            )


async def test_names_and_birthdays_are_indexed_at_sign_up_and_change(desk: Desk) -> None:
    async def indexes() -> list[tuple[bytes | None, bytes | None]]:
        return [tuple(row) for row in await desk.rows("SELECT name_index, birthday_index FROM members ORDER BY member_id")]

    def index(name: str, birthday: str) -> tuple[bytes, bytes]:
        return desk.keys.blind_index("name", name), desk.keys.blind_index("birthday", birthday)

    member = await desk.member(name="Ａnna  Groß", birthday="1990-05-17")
    await desk.member(name="ANNA GROSS", birthday="05-17")
    await desk.member(phone="13800138000")
    assert await indexes() == [index("anna gross", "05-17"), index("anna gross", "05-17"), (None, None)]
    await desk.change(member["id"], name="李四", birthday="02-29")
    assert (await indexes())[0] == index("李四", "02-29")
    await desk.change(member["id"], name="", birthday="")
    assert (await indexes())[0] == (None, None)


async def test_only_the_keys_that_members_were_written_with_are_accepted(desk: Desk) -> None:
    file = Path("personal_data.json")
    await check_keys(desk.engine, desk.keys, file)
    await desk.member(name="A")
    await check_keys(desk.engine, desk.keys, file)

    with pytest.raises(KeyForeign, match=r"^The keys in personal_data\.json are not the ones"):
        await check_keys(desk.engine, PersonalDataKeys.parse(generate()), file)

    old, fresh = json.loads(desk.key_file), json.loads(generate())
    both = PersonalDataKeys.parse(json.dumps({**old, "kek": fresh["kek"], "retired_keks": [old["kek"]]}).encode())
    await check_keys(desk.engine, both, file)
    desk.keys = both
    await desk.member(name="B")
    for kek, lacking in ((fresh["kek"], old["kek"]), (old["kek"], fresh["kek"])):
        one = PersonalDataKeys.parse(json.dumps({**old, "kek": kek}).encode())
        missing = PersonalDataKeys.parse(json.dumps({**old, "kek": lacking}).encode()).kek_id
        with pytest.raises(KeyUnknown, match=missing):
            await check_keys(desk.engine, one, file)


async def test_a_value_copied_to_another_member_does_not_open(desk: Desk) -> None:
    one, other = await desk.member(name="A"), await desk.member(name="B")
    async with transaction(desk.engine) as connection:
        await raw(connection).execute(
            "UPDATE members SET name = (SELECT name FROM members WHERE member_id = $1) WHERE member_id = $2", one["id"], other["id"]
        )
    with pytest.raises(SealBroken):
        await desk.read(other["id"])


async def test_one_broken_answer_does_not_stop_a_group(desk: Desk) -> None:
    broken = desk.sign_up("broken", name="A")
    await desk.run(broken)
    async with transaction(desk.engine) as connection:
        await raw(connection).execute("UPDATE operations SET body = 'x'")
    outcomes = await desk.run(desk.sign_up(name="B"), broken, desk.sign_up(name="C"))
    assert [outcome.status for outcome in outcomes] == [201, 500, 201]


async def test_retired_keys_are_rewrapped_and_everything_still_opens(desk: Desk) -> None:
    sign_up = desk.sign_up("op", **PERSONAL)
    (outcome,) = await desk.run(sign_up)
    for number in range(4):
        await desk.member(name=f"M{number}")
    old, fresh = json.loads(desk.key_file), json.loads(generate())
    desk.keys = PersonalDataKeys.parse(json.dumps({**old, "kek": fresh["kek"], "retired_keks": [old["kek"]]}).encode())
    assert await rewrap_data_keys(desk.engine, desk.keys, batch=2) == 5
    assert await rewrap_data_keys(desk.engine, desk.keys, batch=2) == 0
    desk.keys = PersonalDataKeys.parse(json.dumps({**old, "kek": fresh["kek"]}).encode())
    assert (await desk.run(sign_up))[0].body == outcome.body
    assert (await desk.read(outcome.member_id))["name"] == "王小明"
