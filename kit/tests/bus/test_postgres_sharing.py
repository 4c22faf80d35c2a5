from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kit.bus.postgres.sharing import Claim, share_out

TOPICS = ("a", "b", "c")
names = st.sampled_from(["p1", "p2", "p3", "p4", "gone"])
claims = st.dictionaries(st.integers(0, 40), st.builds(Claim, st.sampled_from(TOPICS), st.none() | names), max_size=24)
alike = st.integers(1, 4).map(lambda count: [(f"p{place + 1}", frozenset(TOPICS)) for place in range(count)])
unlike = st.lists(
    st.tuples(st.sampled_from(["p1", "p2", "p3", "p4"]), st.frozensets(st.sampled_from(TOPICS), min_size=1)),
    unique_by=lambda member: member[0],
)


def test_the_first_takes_all_and_the_second_gets_half_of_every_topic() -> None:
    free = {number: Claim(TOPICS[number % 2], None) for number in range(8)}
    everything = frozenset(TOPICS)
    assert set(share_out([("p1", everything)], free).values()) == {"p1"}
    held = {number: Claim(claim.topic, "p1") for number, claim in free.items()}
    shares = share_out([("p1", everything), ("p2", everything)], held)
    assert Counter((held[number].topic, member) for number, member in shares.items()) == {
        (topic, member): 2 for topic in ("a", "b") for member in ("p1", "p2")
    }


@given(members=alike, claims=claims)
def test_processes_that_read_the_same_differ_by_one_partition_at_most(
    members: list[tuple[str, frozenset[str]]], claims: dict[int, Claim]
) -> None:
    shares = share_out(members, claims)
    assert shares.keys() == claims.keys()
    totals = [list(shares.values()).count(member) for member, _ in members]
    assert max(totals) - min(totals) <= 1


@given(members=unlike, claims=claims)
def test_everything_that_somebody_reads_is_given_to_one_who_reads_it(
    members: list[tuple[str, frozenset[str]]], claims: dict[int, Claim]
) -> None:
    shares = share_out(members, claims)
    reads = dict(members)
    assert shares.keys() == {number for number, claim in claims.items() if any(claim.topic in topics for topics in reads.values())}
    assert all(claims[number].topic in reads[member] for number, member in shares.items())


@given(members=unlike, claims=claims)
def test_when_all_is_as_it_should_be_nothing_moves(members: list[tuple[str, frozenset[str]]], claims: dict[int, Claim]) -> None:
    shares = share_out(members, claims)
    settled = {number: Claim(claim.topic, shares.get(number)) for number, claim in claims.items()}
    assert share_out(members, settled) == shares


@given(members=alike, claims=claims)
def test_no_more_is_taken_from_a_process_than_it_has_too_many(members: list[tuple[str, frozenset[str]]], claims: dict[int, Claim]) -> None:
    shares = share_out(members, claims)
    least = len(claims) // len(members)
    for member, _ in members:
        had = {number for number, claim in claims.items() if claim.owner == member}
        kept = {number for number in had if shares[number] == member}
        assert len(kept) >= min(len(had), least)
