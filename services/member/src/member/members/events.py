"""The facts that a member file leaves in the outbox: what reports may know of a member, never what identifies a person."""

from collections.abc import Sequence
from datetime import datetime

from google.protobuf.message import Message

from kit.ids import uuid7
from kit.outbox import Event
from member.members.rules import MemberFile, birth_year_from, city_to_tell
from member.points.rules import unix_us
from regulars.member.v1 import member_events_pb2 as pb

MEMBERS_TOPIC = "member.member.v1"


def member_signed_up(member_id: str, programme_id: str, file: MemberFile, at: datetime, traceparent: str) -> Event:
    """A member file was opened."""
    message = pb.MemberSignedUp(
        member_id=member_id,
        programme_id=programme_id,
        joined_on=file.joined_on.isoformat(),
        birth_year_from=birth_year_from(file.birthday),
        city=city_to_tell(file.city),
        version=unix_us(at),
    )
    return _event(member_id, message, at, traceparent)


def member_changed(
    member_id: str, programme_id: str, changed_fields: Sequence[str], file: MemberFile, at: datetime, traceparent: str
) -> Event:
    """A member file changed; `file` is as it is now. `at` is later than that of the change before."""
    message = pb.MemberChanged(
        member_id=member_id,
        changed_fields=changed_fields,
        programme_id=programme_id,
        joined_on=file.joined_on.isoformat(),
        birth_year_from=birth_year_from(file.birthday),
        city=city_to_tell(file.city),
        version=unix_us(at),
    )
    return _event(member_id, message, at, traceparent)


def _event(member_id: str, message: Message, at: datetime, traceparent: str) -> Event:
    return Event(uuid7(), MEMBERS_TOPIC, member_id, message.DESCRIPTOR.full_name, message.SerializeToString(), traceparent, at)
