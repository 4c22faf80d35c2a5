"""Which process of a group reads which partitions: every process works it out from the same rows and comes to the same."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """A partition, and the process that has it now."""

    topic: str
    owner: str | None


def share_out(members: Sequence[tuple[str, frozenset[str]]], claims: Mapping[int, Claim]) -> dict[int, str]:
    """Whose each partition should be: within one of each other's number, each topic spread, and as few as can be moved.

    `members` are the processes with the topics that each reads, in the order in which they joined; partitions of topics that nobody
    reads are left out.
    """
    reads = dict(members)
    order = {member: place for place, (member, _) in enumerate(members)}
    owner: dict[int, str] = {}
    total: Counter[str] = Counter()
    of_topic: Counter[tuple[str, str]] = Counter()

    def give(partition: int, member: str) -> None:
        owner[partition] = member
        total[member] += 1
        of_topic[member, claims[partition].topic] += 1

    free = []
    for partition, claim in sorted(claims.items()):
        if claim.owner is not None and claim.topic in reads.get(claim.owner, ()):
            give(partition, claim.owner)
        else:
            free.append(partition)
    for partition in free:
        topic = claims[partition].topic
        takers = [member for member, topics in members if topic in topics]
        if takers:
            give(partition, min(takers, key=lambda member: (total[member], of_topic[member, topic], order[member])))
    while True:
        moves = [
            (total[giver] - total[taker], of_topic[giver, topic] - of_topic[taker, topic], partition, taker)
            for partition, giver in owner.items()
            for topic in (claims[partition].topic,)
            for taker, topics in members
            if topic in topics and total[giver] - total[taker] > 1
        ]
        if not moves:
            return owner
        _, _, partition, taker = max(moves, key=lambda move: (move[0], move[1], move[2], -order[move[3]]))
        giver, topic = owner[partition], claims[partition].topic
        total[giver] -= 1
        of_topic[giver, topic] -= 1
        give(partition, taker)
