"""What the imports of members and of sales share: groups of writes in one request, each answered for itself."""

import msgspec

from gateway.bodies import Writing
from gateway.member import answer_of
from gateway.problems import malformed
from kit.problems import FieldError
from regulars.member.v1 import member_service_pb2 as members_pb
from regulars.member.v1 import wallet_service_pb2 as pb

REFUSED = 400


def require_operation_id(body: Writing, at: str) -> None:
    """In a group each write names its own operation: a header could not."""
    if body.operation_id is msgspec.UNSET:
        raise malformed([FieldError(f"{at}/operation_id", "missing", "This field is required.")])


def problem_of(outcome: pb.Outcome | members_pb.MemberOutcome) -> msgspec.Raw | None:
    """The problem document of a refused write; None when it was done."""
    answer = answer_of(outcome)
    return msgspec.Raw(answer.body) if answer.status >= REFUSED else None
