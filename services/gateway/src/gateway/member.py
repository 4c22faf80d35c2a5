"""The member service as the gateway sees it: reads on behalf of a caller, and what every write carries."""

import asyncio
from typing import TypeVar, cast

import grpc
import msgspec

from gateway.bodies import Fingerprints, Writing, operation_id_of
from gateway.callers import Caller
from gateway.calling import Service
from gateway.http import Answer
from gateway.lanes import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, RETRIED_CODES, Execute, ImportLanes, Lanes
from gateway.problems import member_away
from gateway.settings import Settings
from kit.clock import Clock
from kit.rpc import call_metadata
from kit.tokens import TokenMinter
from regulars.member.v1 import member_service_pb2 as members_pb
from regulars.member.v1 import wallet_service_pb2 as pb
from regulars.member.v1.member_service_pb2_grpc import MemberServiceStub
from regulars.member.v1.programme_service_pb2_grpc import ProgrammeServiceStub
from regulars.member.v1.wallet_service_pb2_grpc import WalletServiceStub

# A page of wallets to prove, a programme to apply.
LONG_CALL_SECONDS = 60.0
IMPORT_SECONDS = 60.0
# Import requests that may wait for a lane.
IMPORT_CAPACITY = 16

Request = TypeVar("Request")
Response = TypeVar("Response")


class Write(msgspec.Struct, frozen=True, gc=False):
    """The identity of one write: who asks, under which operation id, and for what exactly."""

    caller: Caller
    operation_id: str
    fingerprint: bytes
    method: str
    path: str
    # About how many bytes it has on the wire.
    size: int


class MemberService(Service):
    """Calls of the member service."""

    def __init__(self, channel: grpc.aio.Channel, minter: TokenMinter, fingerprint_key: bytes, clock: Clock, settings: Settings) -> None:
        super().__init__(channel, minter, member_away)
        self.wallet = WalletServiceStub(channel)
        self.members = MemberServiceStub(channel)
        self.programmes = ProgrammeServiceStub(channel)
        execute = cast("Execute", self.wallet.ExecuteCommands)
        self.lanes = Lanes(
            execute,
            count=settings.lanes,
            group_size=settings.group_size,
            capacity=settings.lane_capacity,
            deadline_seconds=settings.write_deadline_seconds,
        )
        self.import_lanes = ImportLanes(execute, count=settings.import_lanes, capacity=IMPORT_CAPACITY, deadline_seconds=IMPORT_SECONDS)
        self._fingerprints = Fingerprints(fingerprint_key)
        self._clock = clock
        self._write_milliseconds = settings.write_deadline_seconds * 1000

    def write(self, caller: Caller, method: str, path: str, raw: bytes, body: Writing) -> Write:
        """The identity of a write by its body, `raw` and read. Raises Refusal (400) when it has no operation id."""
        identity = operation_id_of(body, caller.idempotency_key)
        return Write(caller, identity, self._fingerprints.of(method, path, raw), method, path, len(raw))

    def command(self, write: Write, milliseconds: int | None = None) -> pb.Command:
        """A command without its act. `milliseconds`: how long somebody waits for its answer."""
        return pb.Command(
            operation_id=write.operation_id,
            fingerprint=write.fingerprint,
            internal_token=self.token(write.caller),
            traceparent=write.caller.traceparent,
            request_id=write.caller.request_id,
            deadline_unix_ms=self._deadline_unix_ms(milliseconds),
            method=write.method,
            path=write.path,
        )

    def operation(self, write: Write) -> members_pb.Operation:
        """The same identity for a write of member files."""
        return members_pb.Operation(
            operation_id=write.operation_id,
            fingerprint=write.fingerprint,
            internal_token=self.token(write.caller),
            traceparent=write.caller.traceparent,
            request_id=write.caller.request_id,
            deadline_unix_ms=self._deadline_unix_ms(None),
            method=write.method,
            path=write.path,
        )

    def _deadline_unix_ms(self, milliseconds: int | None) -> int:
        return int(self._clock.now().timestamp() * 1000) + (milliseconds or self._write_milliseconds)

    async def decide(self, key: str, command: pb.Command, size: int) -> Answer:
        """The answer to a command, sent in the lane of `key`."""
        outcome = await self.lanes.submit(key, command, size)
        return answer_of(outcome)

    async def call_until_decided(self, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]", request: Request) -> Response:
        """A call whose writes carry their own operations, repeated while the member service restarts until their deadline."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._write_milliseconds / 1000
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await method(request, timeout=max(deadline - loop.time(), FIRST_PAUSE_SECONDS), metadata=call_metadata())
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED_CODES or loop.time() + pause > deadline:
                    if refusal := self._refusal(error):
                        raise refusal from error
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def drained(self) -> None:
        """Returns when no write is under way."""
        await self.lanes.drained()
        await self.import_lanes.drained()


def answer_of(outcome: pb.Outcome | members_pb.MemberOutcome) -> Answer:
    """A decided answer as the caller gets it: the stored bytes, untouched."""
    if not outcome.body:
        return Answer.problem(member_away())
    return Answer(outcome.status, outcome.body, outcome.replayed)
