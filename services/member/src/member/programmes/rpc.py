"""ProgrammeService: protobuf in, operation, JSON documents out."""

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.db import raw, transaction
from kit.problems import Refusal
from kit.rpc import current_actor
from member.access import require_role
from member.programmes import operations
from regulars.member.v1 import programme_service_pb2 as pb
from regulars.member.v1.programme_service_pb2_grpc import ProgrammeServiceServicer

_encoder = msgspec.json.Encoder()


class ChangeDocument(msgspec.Struct, frozen=True):
    """One setting that differs; null on a side where it is not there."""

    pointer: str
    from_: object = msgspec.field(name="from")
    to: object


class ProposalDocument(msgspec.Struct, frozen=True):
    """What applying a definition does or did. `is_new` false: the newest version says the same already."""

    programme_id: str
    version: int
    effective_from: str
    is_new: bool
    changes: list[ChangeDocument]
    warnings: list[str]


class ProgrammeServicer(ProgrammeServiceServicer):
    """Serves ProgrammeService."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    async def GetProgramme(self, request: pb.GetProgrammeRequest, context: object) -> pb.GetProgrammeResponse:
        require_role(current_actor(), "till", "admin")
        async with transaction(self._engine, snapshot=True) as connection:
            document = await operations.get_programme(raw(connection), request.programme_id, self._clock.now())
        return pb.GetProgrammeResponse(body=_encoder.encode(document))

    async def CheckProgramme(self, request: pb.CheckProgrammeRequest, context: object) -> pb.CheckProgrammeResponse:
        require_role(current_actor(), "admin")
        definition = _decoded(request.definition)
        async with transaction(self._engine, snapshot=True) as connection:
            proposal = await operations.check_programme(raw(connection), definition, self._clock.now())
        return pb.CheckProgrammeResponse(body=_rendered(proposal))

    async def ApplyProgramme(self, request: pb.ApplyProgrammeRequest, context: object) -> pb.ApplyProgrammeResponse:
        actor = current_actor()
        require_role(actor, "admin")
        definition = _decoded(request.definition)
        async with transaction(self._engine) as connection:
            proposal = await operations.apply_programme(raw(connection), definition, applied_by=actor.subject, now=self._clock.now())
        return pb.ApplyProgrammeResponse(body=_rendered(proposal), created=proposal.is_new)


def _decoded(definition: bytes) -> object:
    try:
        return msgspec.json.decode(definition)
    except msgspec.DecodeError:
        raise Refusal("malformed_json", 400, "Not JSON", "Send the definition as a JSON document.") from None


def _rendered(proposal: operations.Proposal) -> bytes:
    return _encoder.encode(
        ProposalDocument(
            programme_id=proposal.version.programme_id,
            version=proposal.version.version,
            effective_from=proposal.version.effective_from.isoformat(),
            is_new=proposal.is_new,
            changes=[ChangeDocument(change.pointer, change.before, change.after) for change in proposal.changes],
            warnings=list(proposal.warnings),
        )
    )
