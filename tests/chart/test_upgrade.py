"""What the migration reads as a hook, before the rest of the release is changed: its own copies, which say what the release will."""

from typing import Any

from scripts.check_chart import cases, pod_of, render, resources_in

HOOK = "helm.sh/hook"


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


def test_a_new_service_gets_the_password_with_which_the_hook_made_its_database() -> None:
    found = rendered("new-service-upgrade")
    hook, release = found["Secret", "regulars-migrate-1"]["data"], found["Secret", "regulars-trial"]["data"]
    assert hook == release
    assert "COUPONS_DATABASE_URL" in hook
    assert len({value for key, value in hook.items() if key.endswith("-password")}) == 7

    script = found["ConfigMap", "regulars-migrate-1"]["data"]["databases.sh"]
    assert script == found["ConfigMap", "regulars-postgresql"]["data"]["databases.sh"]
    assert "for name in coupons gateway member bus; do" in script


def test_no_password_is_on_a_command_line() -> None:
    script = rendered("trial")["ConfigMap", "regulars-postgresql"]["data"]["databases.sh"]
    assert "-v password" not in script
    assert "$(cat" not in script
