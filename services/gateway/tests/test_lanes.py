"""Lanes: what arrives while a group is under way is the next group; nothing is lost, reordered or waited for without an end."""

import asyncio
from dataclasses import dataclass, field

import grpc
import msgspec
import pytest

import gateway.lanes
from gateway.lanes import GROUP_BYTES, ImportLanes, Lanes
from kit.problems import Refusal
from regulars.member.v1 import wallet_service_pb2 as pb


def failure(code: grpc.StatusCode) -> Exception:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "away", "")


@dataclass
class Writer:
    """Takes groups. `gate` holds them until it is set; each of `failures` fails one call, before or after it was decided."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    groups: list[list[str]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0
    outcomes_too_few: bool = False

    async def __call__(self, request: pb.ExecuteCommandsRequest, /, *, timeout: float) -> pb.ExecuteCommandsResponse:  # noqa: ASYNC109
        assert timeout > 0
        ids = [command.operation_id for command in request.commands]
        self.groups.append(ids)
        self.arrived.set()
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await self.gate.wait()
        self.at_once -= 1
        if self.failures:
            raise self.failures.pop(0)
        return pb.ExecuteCommandsResponse(outcomes=[pb.Outcome(status=201, body=each.encode()) for each in ids[self.outcomes_too_few :]])


@pytest.fixture
def writer() -> Writer:
    return Writer()


def lanes(writer: Writer, *, count: int = 1, group_size: int = 256, capacity: int = 100, deadline_seconds: float = 10) -> Lanes:
    return Lanes(writer, count=count, group_size=group_size, capacity=capacity, deadline_seconds=deadline_seconds)


def submit(to: Lanes, *operation_ids: str, key: str = "m", size: int = 100) -> "list[asyncio.Future[pb.Outcome]]":
    return [to.submit(key, pb.Command(operation_id=each), size) for each in operation_ids]


async def answers(outcomes: "list[asyncio.Future[pb.Outcome]]") -> list[str]:
    return [outcome.body.decode() for outcome in await asyncio.gather(*outcomes)]


def code_of(outcome: pb.Outcome) -> tuple[int, str]:
    return outcome.status, msgspec.json.decode(outcome.body)["code"]


async def test_a_single_write_leaves_at_once_alone(writer: Writer) -> None:
    writer.gate.set()
    assert await answers(submit(lanes(writer), "a")) == ["a"]
    assert writer.groups == [["a"]]


async def test_what_arrives_while_a_group_is_under_way_is_the_next_group_in_order(writer: Writer) -> None:
    lane = lanes(writer)
    first = submit(lane, "a")
    await writer.arrived.wait()
    later = submit(lane, "b", "c", "d")
    writer.gate.set()
    assert await answers(first + later) == ["a", "b", "c", "d"]
    assert writer.groups == [["a"], ["b", "c", "d"]]


def keys_of_two_lanes() -> tuple[str, str]:
    """Two keys that take different lanes of two, whatever this process hashes them to."""
    return next(("a", other) for other in "bcdefghijklmnopqrstuvwxyz" if hash(other) % 2 != hash("a") % 2)


async def test_a_few_writes_wait_for_the_other_lanes_group_and_enough_of_them_leave_at_once(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.lanes, "SLOW_SECONDS", 3600)
    one, other = keys_of_two_lanes()
    both = lanes(writer, count=2)
    outcomes = submit(both, "first", key=one)
    await writer.arrived.wait()
    few = [f"few-{number}" for number in range(gateway.lanes.ENOUGH_BESIDE - 1)]
    outcomes += submit(both, *few, key=other)
    writer.arrived.clear()
    assert writer.groups == [["first"]]
    outcomes += submit(both, "enough", key=other)
    await writer.arrived.wait()
    assert writer.groups == [["first"], [*few, "enough"]]
    assert writer.most_at_once == 2
    writer.gate.set()
    await answers(outcomes)


async def test_what_waits_for_the_other_lane_leaves_when_that_is_done_and_before_what_came_after(writer: Writer) -> None:
    one, other = keys_of_two_lanes()
    both = lanes(writer, count=2)
    outcomes = submit(both, "first", key=one)
    await writer.arrived.wait()
    outcomes += submit(both, "later", key=one) + submit(both, "waiting", key=other)
    writer.gate.set()
    await answers(outcomes)
    assert writer.groups == [["first"], ["waiting"], ["later"]]
    await both.drained()


async def test_nobody_waits_for_a_group_that_hangs(writer: Writer) -> None:
    one, other = keys_of_two_lanes()
    both = lanes(writer, count=2)
    outcomes = submit(both, "hangs", key=one)
    await writer.arrived.wait()
    writer.arrived.clear()
    outcomes += submit(both, "waiting", key=other)
    await writer.arrived.wait()
    assert writer.groups == [["hangs"], ["waiting"]]
    writer.gate.set()
    await answers(outcomes)


async def test_a_group_is_bounded_in_commands_and_in_bytes(writer: Writer) -> None:
    lane = lanes(writer, group_size=2)
    outcomes = submit(lane, "a", "b", "c")
    outcomes += submit(lane, "d", "e", size=GROUP_BYTES - 50)
    writer.gate.set()
    await answers(outcomes)
    assert writer.groups == [["a", "b"], ["c"], ["d"], ["e"]]


async def test_a_lane_has_one_group_under_way_and_lanes_run_beside_each_other(writer: Writer) -> None:
    both = lanes(writer, count=2)
    outcomes = [outcome for number in range(40) for outcome in submit(both, f"o{number}", key=f"m{number % 8}")]
    await writer.arrived.wait()
    outcomes += [outcome for number in range(40, 80) for outcome in submit(both, f"o{number}", key=f"m{number % 8}")]
    writer.gate.set()
    assert await answers(outcomes) == [f"o{number}" for number in range(80)]
    assert writer.most_at_once <= 2


async def test_writes_of_one_member_keep_their_order(writer: Writer) -> None:
    many = lanes(writer, count=3, group_size=4)
    writer.gate.set()
    outcomes = [outcome for number in range(50) for outcome in submit(many, f"{number:02}", key="one")]
    await answers(outcomes)
    sent = [operation_id for group in writer.groups for operation_id in group]
    assert sent == sorted(sent)


async def test_a_full_lane_refuses_and_recovers(writer: Writer) -> None:
    lane = lanes(writer, capacity=2)
    outcomes = submit(lane, "a")
    await writer.arrived.wait()
    outcomes += submit(lane, "b", "c")
    with pytest.raises(Refusal, match="too_busy") as refused:
        submit(lane, "d")
    assert refused.value.status == 503
    writer.gate.set()
    assert await answers(outcomes) == ["a", "b", "c"]
    assert await answers(submit(lane, "e")) == ["e"]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_group_that_was_not_taken_is_sent_again_as_it_was(writer: Writer, code: grpc.StatusCode) -> None:
    writer.failures = [failure(code), failure(code)]
    writer.gate.set()
    assert await answers(submit(lanes(writer), "a", "b")) == ["a", "b"]
    assert writer.groups == [["a", "b"]] * 3


async def test_a_write_is_answered_503_at_its_deadline_while_the_member_service_is_away(writer: Writer) -> None:
    writer.failures = [failure(grpc.StatusCode.UNAVAILABLE)] * 100
    writer.gate.set()
    (outcome,) = await asyncio.gather(*submit(lanes(writer, deadline_seconds=0.12), "a"))
    assert code_of(outcome) == (503, "member_unavailable")
    assert len(writer.groups) >= 2


async def test_writes_behind_a_call_that_hangs_are_answered_at_their_deadline(writer: Writer) -> None:
    lane = lanes(writer, deadline_seconds=0.3)
    outcomes = submit(lane, "a")
    await writer.arrived.wait()
    outcomes += submit(lane, "b")
    assert [code_of(outcome) for outcome in await asyncio.gather(*outcomes)] == [(503, "member_unavailable")] * 2
    assert writer.groups == [["a"]]
    writer.gate.set()
    await lane.drained()
    assert await answers(submit(lane, "c")) == ["c"]


async def test_a_fault_of_the_member_service_fails_its_group_only(writer: Writer) -> None:
    writer.failures = [failure(grpc.StatusCode.INTERNAL)]
    lane = lanes(writer, group_size=2)
    writer.gate.set()
    outcomes = await asyncio.gather(*submit(lane, "a", "b", "c"))
    assert [outcome.status for outcome in outcomes] == [500, 500, 201]


async def test_answers_that_do_not_fit_their_group_are_given_to_nobody(writer: Writer) -> None:
    writer.outcomes_too_few = True
    writer.gate.set()
    outcomes = await asyncio.gather(*submit(lanes(writer), "a", "b"))
    assert [outcome.status for outcome in outcomes] == [500, 500]


async def test_a_write_is_sent_also_when_its_client_is_gone(writer: Writer) -> None:
    lane = lanes(writer)
    submit(lane, "a")
    await writer.arrived.wait()
    (gone,) = submit(lane, "b")
    gone.cancel()
    writer.gate.set()
    await lane.drained()
    assert writer.groups == [["a"], ["b"]]


async def test_draining_waits_for_all_that_was_taken_in(writer: Writer) -> None:
    lane = lanes(writer, group_size=1)
    outcomes = submit(lane, "a", "b", "c")
    draining = asyncio.ensure_future(lane.drained())
    await writer.arrived.wait()
    assert not draining.done()
    writer.gate.set()
    await draining
    assert await answers(outcomes) == ["a", "b", "c"]


async def test_imports_are_groups_of_their_own_bounded_in_number(writer: Writer) -> None:
    imports = ImportLanes(writer, count=1, capacity=2, deadline_seconds=10)
    both = [asyncio.ensure_future(imports.run([pb.Command(operation_id=each) for each in group])) for group in ("ab", "cd")]
    await writer.arrived.wait()
    with pytest.raises(Refusal, match="too_busy"):
        await imports.run([pb.Command(operation_id="e")])
    writer.gate.set()
    assert [[outcome.body for outcome in outcomes] for outcomes in await asyncio.gather(*both)] == [[b"a", b"b"], [b"c", b"d"]]
    assert writer.most_at_once == 1
    await imports.drained()
