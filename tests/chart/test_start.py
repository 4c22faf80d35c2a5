"""What a pod waits for before it starts."""

from scripts.check_chart import cases, pod_of, render, resources_in


def test_only_what_serves_nobody_waits_for_the_bus() -> None:
    waiting = set()
    for each in resources_in(render(cases()["trial"]["values"])):
        pod = pod_of(each) or {}
        if "await-bus" in {container["name"] for container in pod.get("initContainers", ())}:
            waiting.add(each["metadata"]["name"])
    assert waiting == {"regulars-member-relay", "regulars-reporting-consume"}
