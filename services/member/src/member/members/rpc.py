"""MemberService: protobuf in, operation, JSON documents out."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.crypto import PersonalDataKeys
from kit.db import raw, reading
from kit.metrics import MEMBERS_SIGNED_UP, REFUSALS
from kit.problems import Refusal, render
from kit.rpc import current_actor, unauthenticated
from kit.telemetry import TraceContext, request_context
from kit.tokens import TokenInvalid, TokenVerifier
from member.access import require_role
from member.members import operations
from member.members.rules import GivenFields
from member.paging import page_size
from member.programmes.operations import Books
from regulars.member.v1 import member_service_pb2 as pb
from regulars.member.v1.member_service_pb2_grpc import MemberServiceServicer

ROLES = ("till", "admin")


class MemberServicer(MemberServiceServicer):
    """Serves MemberService. The writes carry their actors' tokens inside, one for each operation.

    `nudge` is called when there may be new events in the outbox.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        clock: Clock,
        verifier: TokenVerifier,
        keys: PersonalDataKeys,
        books: Books,
        nudge: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._verifier = verifier
        self._keys = keys
        self._books = books
        self._nudge = nudge

    async def SignUpMembers(self, request: pb.SignUpMembersRequest, context: object) -> pb.SignUpMembersResponse:
        undecided = [self._why_not(message.operation) for message in request.sign_ups]
        allowed = [
            operations.SignUp(_operation(message.operation), message.programme_id, _given(message.fields))
            for message, why_not in zip(request.sign_ups, undecided, strict=True)
            if why_not is None
        ]
        # A caller that goes away does not undo a group: its answers are stored, and given when it asks again.
        act = operations.sign_up_members(self._engine, self._clock, self._keys, self._books, allowed)
        decided: Iterator[operations.Outcome] = iter(await asyncio.shield(act) if allowed else [])
        self._nudge()
        outcomes = [why_not or next(decided) for why_not in undecided]
        _count(outcomes)
        MEMBERS_SIGNED_UP.of().inc(sum(outcome.status == 201 and not outcome.replayed for outcome in outcomes))
        return pb.SignUpMembersResponse(outcomes=[_outcome(outcome) for outcome in outcomes])

    async def ChangeMember(self, request: pb.ChangeMemberRequest, context: object) -> pb.ChangeMemberResponse:
        message = request.operation
        with request_context(TraceContext.parse(message.traceparent), message.request_id):
            outcome = self._why_not(message)
            if outcome is None:
                given = _given(request.fields)
                act = operations.change_member(self._engine, self._clock, self._keys, _operation(message), request.member_id, given)
                outcome = await asyncio.shield(act)
                self._nudge()
        _count([outcome])
        return pb.ChangeMemberResponse(outcome=_outcome(outcome))

    async def GetMember(self, request: pb.GetMemberRequest, context: object) -> pb.GetMemberResponse:
        require_role(current_actor(), *ROLES)
        async with reading(self._engine) as connection:
            return pb.GetMemberResponse(body=await operations.get_member(raw(connection), self._keys, request.member_id))

    async def SearchMembers(self, request: pb.SearchMembersRequest, context: object) -> pb.SearchMembersResponse:
        require_role(current_actor(), *ROLES)
        async with reading(self._engine) as connection:
            match request.WhichOneof("by"):
                case "phone":
                    size = page_size(request.page_size)
                    body = await operations.find_by_phone(
                        raw(connection), self._keys, request.phone, request.phone_region, size, request.page_token
                    )
                case "card":
                    body = await operations.find_by_card(raw(connection), self._keys, request.card)
                case None:
                    raise Refusal("search_empty", 400, "Nothing to search by", "Send a phone or a card.")
        return pb.SearchMembersResponse(body=body)

    def _why_not(self, message: pb.Operation) -> operations.Outcome | None:
        """The answer to an operation that is not even begun, and so not stored; None: it may be decided."""
        try:
            actor = self._verifier.verify(message.internal_token)
            require_role(actor, *ROLES)
        except TokenInvalid:
            refused = unauthenticated()
        except Refusal as refusal:
            refused = refusal
        else:
            if not message.deadline_unix_ms or self._clock.now() < datetime.fromtimestamp(message.deadline_unix_ms / 1000, UTC):
                return None
            refused = Refusal("not_decided_in_time", 503, "Not decided in time", "Nothing was done. Send the same command again.")
        return operations.Outcome(refused.status, render(refused), code=refused.code)


def _operation(message: pb.Operation) -> operations.Operation:
    return operations.Operation(message.operation_id, message.fingerprint, message.method, message.path, message.traceparent)


def _given(message: pb.MemberFields) -> GivenFields:
    return GivenFields(**{field.name: value for field, value in message.ListFields()})


def _count(outcomes: Sequence[operations.Outcome]) -> None:
    for outcome in outcomes:
        if outcome.code:
            REFUSALS.of(outcome.code).inc()


def _outcome(outcome: operations.Outcome) -> pb.MemberOutcome:
    return pb.MemberOutcome(status=outcome.status, body=outcome.body, replayed=outcome.replayed, member_id=outcome.member_id)
