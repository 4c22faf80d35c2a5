"""What the migration reads as a hook, before the rest of the release is changed: its own copies, which say what the release will."""

from typing import Any

import pytest

from scripts.check_chart import NAMESPACE, cases, pod_of, render, resources_in
from tests.chart.api_server import api_server

HOOK = "helm.sh/hook"
TOPICS = ("ConfigMap", "regulars-topics")
ACCOUNT = ("ServiceAccount", "regulars-jobs")
# What a cluster has of a release that is there, beside what every namespace has.
EMPTY: dict[tuple[str, str], dict[str, Any]] = {("ConfigMap", "kube-root-ca.crt"): {}}
THERE = EMPTY | {TOPICS: {}, ACCOUNT: {}}
SERVERS = {("StatefulSet", f"regulars-{name}"): {"status": {"readyReplicas": 1}} for name in ("postgresql", "kafka", "clickhouse")}


def rendered(case: str) -> dict[tuple[str, str], Any]:
    found = cases()[case]
    text = render(found["values"], found.get("set"), upgrade=found.get("upgrade", False))
    return {(each["kind"], each["metadata"]["name"]): each for each in resources_in(text)}


def read_by(pod: Any) -> set[tuple[str, str]]:
    """The ConfigMaps and Secrets that a pod mounts or takes variables from."""
    references = {
        ("Secret", each["valueFrom"]["secretKeyRef"]["name"])
        for container in (*pod["initContainers"], *pod["containers"])
        for each in container["env"]
        if "secretKeyRef" in each.get("valueFrom", {})
    }
    references |= {("Secret", each["secret"]["secretName"]) for each in pod["volumes"] if "secret" in each}
    return references | {("ConfigMap", each["configMap"]["name"]) for each in pod["volumes"] if "configMap" in each}


def test_the_hook_reads_nothing_that_the_release_only_brings_after_it() -> None:
    for case in ("trial-upgrade", "new-service-upgrade", "inline-upgrade"):
        found = rendered(case)
        read = read_by(pod_of(found["Job", "regulars-migrate-1"]))
        own = {key for key, each in found.items() if HOOK in each["metadata"].get("annotations", {})}
        assert read & found.keys() <= own
        assert read & own


@pytest.mark.parametrize(
    "profile, objects, is_hook, is_first",
    [
        ("trial", EMPTY, False, True),
        ("trial", THERE | SERVERS, True, False),
        ("trial", THERE, False, False),
        ("private", EMPTY, False, True),
        ("private", THERE, True, False),
        ("private", EMPTY | {TOPICS: {}}, False, False),
        ("private", EMPTY | {ACCOUNT: {}}, False, True),
    ],
)
def test_an_upgrade_has_a_hook_only_where_its_pod_finds_what_it_needs(
    profile: str, objects: dict[tuple[str, str], dict[str, Any]], *, is_hook: bool, is_first: bool
) -> None:
    """After an install that failed before it made anything, what belongs to the first release comes with the second."""
    with api_server(NAMESPACE, objects) as cluster:
        found = {
            (each["kind"], each["metadata"]["name"]): each
            for each in resources_in(render(cases()[profile]["values"], upgrade=True, cluster=cluster))
        }
    job = found["Job", "regulars-migrate-1"]
    assert (HOOK in job["metadata"].get("annotations", {})) == is_hook
    assert (("NetworkPolicy", "regulars-migrate") in found) == (not is_hook)
    assert ("Job", "regulars-seed") in found if profile == "trial" and is_first else ("Job", "regulars-seed") not in found
    hooks = [each for each in found.values() if each["metadata"].get("annotations", {}).get(HOOK) == "pre-upgrade"]
    assert all(each["metadata"]["ownerReferences"][0]["uid"] == "uid-of-regulars-topics" for each in hooks)
    if not is_hook:
        assert read_by(pod_of(job)) & found.keys()
        assert hooks == []


@pytest.mark.parametrize(
    "instance, status, expected",
    [("regulars", {}, True), ("regulars", {"failed": 11}, True), ("regulars", {"succeeded": 1}, False), ("another", {}, False)],
)
def test_the_demo_chain_is_made_again_while_it_was_begun_and_not_made(instance: str, status: dict[str, int], *, expected: bool) -> None:
    labels = {"app.kubernetes.io/component": "seed", "app.kubernetes.io/instance": instance}
    objects = THERE | SERVERS | {("Job", "regulars-seed"): {"metadata": {"labels": labels}, "status": status}}
    with api_server(NAMESPACE, objects) as cluster:
        text = render(cases()["trial"]["values"], upgrade=True, cluster=cluster)
    found = {(each["kind"], each["metadata"]["name"]) for each in resources_in(text)}
    # Under another name: a Job that is there cannot be changed.
    assert (("Job", "regulars-seed-1") in found) == expected
    assert (("NetworkPolicy", "regulars-seed") in found) == expected
    assert ("Job", "regulars-seed") not in found


def test_the_copies_of_a_hook_are_one_set_and_stay_for_a_job_that_helm_gave_up_waiting_for() -> None:
    copies = [each for key, each in rendered("inline-upgrade").items() if key[1] == "regulars-migrate-hook"]
    assert {each["kind"] for each in copies} == {"Secret", "ConfigMap", "NetworkPolicy"}
    assert {each["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for each in copies} == {"before-hook-creation"}


def test_a_new_service_gets_the_password_with_which_the_hook_made_its_database() -> None:
    found = rendered("new-service-upgrade")
    hook, release = found["Secret", "regulars-migrate-hook"]["data"], found["Secret", "regulars-trial"]["data"]
    assert hook == release
    assert "COUPONS_DATABASE_URL" in hook
    assert len({value for key, value in hook.items() if key.endswith("-password")}) == 7

    script = found["ConfigMap", "regulars-migrate-hook"]["data"]["databases.sh"]
    assert script == found["ConfigMap", "regulars-postgresql"]["data"]["databases.sh"]
    assert "for name in coupons gateway member bus; do" in script


def test_no_password_is_on_a_command_line() -> None:
    script = rendered("trial")["ConfigMap", "regulars-postgresql"]["data"]["databases.sh"]
    assert "-v password" not in script
    assert "$(cat" not in script
