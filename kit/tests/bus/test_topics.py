from datetime import timedelta

import pytest

from kit.bus.interface import TopicSpec
from kit.bus.topics import TopicsInvalid, all_specs, load_topics

SALES = """
topics:
  member.sale.v1:
    description: Sales.
    owner: member
    producers: [member]
    consumers: [reporting, marketing]
    messages: [regulars.member.v1.SaleRecorded]
    key: Id of the member.
    partitions: 4
    retention_days: 30
    classification: pseudonymous
"""
POINTS = """
  member.points.v1:
    description: Points.
    owner: member
    producers: [member]
    consumers: [reporting]
    messages: [regulars.member.v1.PointsMoved]
    key: Id of the member.
    partitions: 2
    retention_days: 7
    classification: pseudonymous
"""


def test_every_topic_and_one_of_dead_letters_for_each_consumer_is_created() -> None:
    topics = load_topics(SALES + POINTS)
    assert [topic.name for topic in topics] == ["member.sale.v1", "member.points.v1"]
    sales, points, *dead_letters = all_specs(topics)
    assert sales == TopicSpec("member.sale.v1", 4, timedelta(days=30))
    assert points == TopicSpec("member.points.v1", 2, timedelta(days=7))
    assert [(spec.name, spec.partitions) for spec in dead_letters] == [
        ("dead-letters.marketing.v1", 1),
        ("dead-letters.reporting.v1", 1),
    ]
    assert all(spec.retention >= timedelta(days=365) for spec in dead_letters)


@pytest.mark.parametrize(
    "text,says",
    [
        ("topics: [", "line 1"),
        ("[]", "Expected `object`"),
        ("topics: {}\nmore: 1", "more"),
        (SALES.replace("    owner: member\n", ""), "owner"),
        (SALES.replace("owner:", "owners:"), "owner"),
        (SALES.replace("owner: member", "owner: marketing"), "named after member and owned by marketing"),
        (SALES.replace("member.sale.v1:", "Sales:"), "regex"),
        (SALES.replace("partitions: 4", "partitions: 0"), "partitions"),
        (SALES.replace("partitions: 4", 'partitions: "4"'), "partitions"),
        (SALES.replace("retention_days: 30", "retention_days: 1.5"), "retention_days"),
        (SALES.replace("classification: pseudonymous", "classification: secret"), "classification"),
        (SALES.replace("messages: [regulars.member.v1.SaleRecorded]", "messages: []"), "messages"),
        (SALES.replace("regulars.member.v1.SaleRecorded", "regulars.member.v2.SaleRecorded"), "not in the package regulars.member.v1"),
        (SALES.replace("regulars.member.v1.SaleRecorded", "SaleRecorded"), "regex"),
        (SALES.replace("[reporting, marketing]", "[reporting, reporting]"), "names one of its consumers twice"),
        (SALES + SALES.removeprefix("\ntopics:\n"), "given twice"),
        (SALES + POINTS.replace("PointsMoved", "SaleRecorded"), "of both member.sale.v1 and member.points.v1"),
    ],
)
def test_a_fault_in_the_registry_is_named(text: str, says: str) -> None:
    with pytest.raises(TopicsInvalid, match=r"^topics\.yaml") as raised:
        load_topics(text)
    assert says in str(raised.value)
