"""Whose name jobs run under, and for how long."""

from collections.abc import Mapping
from typing import Any

from scripts.check_chart import cases, pod_of, render, resources_in


def jobs(case: str, **more: Mapping[str, Any]) -> dict[str, Any]:
    """Pods with an account, by the name of their workload, and the specs of CronJobs' jobs."""
    found = cases()[case]
    return {each["metadata"]["name"]: each for each in resources_in(render(found["values"], {**found["set"], **more})) if pod_of(each)}


def test_only_backups_and_who_looks_at_them_run_under_the_account_that_may_write_them() -> None:
    run_as = {name: (pod_of(each) or {})["serviceAccountName"] for name, each in jobs("backup").items()}
    under = {name for name, account in run_as.items() if account == "regulars-backup"}
    assert under == {
        f"regulars-{each}" for each in ("backup-wal", "backup-base", "backup-facts", "backup-verify", "backup-prune", "operator")
    }
    assert "regulars-backup" not in {(pod_of(each) or {})["serviceAccountName"] for each in jobs("jobs").values()}


def test_the_role_of_backups_is_no_other_account_s() -> None:
    found = cases()["backup"]
    accounts = {
        each["metadata"]["name"]: each["metadata"].get("annotations", {})
        for each in resources_in(
            render(found["values"], {**found["set"], "serviceAccount": {"backupAnnotations": {"example.com/role": "writer"}}})
        )
        if each["kind"] == "ServiceAccount"
    }
    assert accounts.pop("regulars-backup") == {"example.com/role": "writer"}
    assert accounts
    assert not any(accounts.values())


def test_a_backup_takes_as_long_as_it_takes_unless_it_is_said() -> None:
    def deadlines(**more: Mapping[str, Any]) -> dict[str, int | None]:
        return {
            name: each["spec"]["jobTemplate"]["spec"].get("activeDeadlineSeconds")
            for name, each in jobs("backup", **more).items()
            if each["kind"] == "CronJob"
        }

    long = ("regulars-backup-base", "regulars-backup-facts", "regulars-backup-verify")
    assert deadlines() == {**dict.fromkeys(long), "regulars-backup-prune": 14400}
    given = {**cases()["backup"]["set"]["backup"], "activeDeadlineSeconds": 100000}
    assert deadlines(backup=given) == {**dict.fromkeys(long, 100000), "regulars-backup-prune": 14400}


def test_facts_are_backed_up_only_where_it_is_said_and_to_the_disk_that_is_named() -> None:
    def arguments(**facts: object) -> list[str] | None:
        found = jobs("backup", backup={**cases()["backup"]["set"]["backup"], "facts": facts}).get("regulars-backup-facts")
        return found and (pod_of(found) or {})["containers"][0]["args"]

    assert arguments() is None
    assert arguments(enabled=True) == ["backup", "facts"]
    assert arguments(enabled=True, disk="backups") == ["backup", "facts", "--disk", "backups"]
    known = {each["name"] for each in (pod_of(jobs("backup")["regulars-backup-facts"]) or {})["containers"][0]["env"]}
    assert {"CLICKHOUSE_URL", "BUS_URL", "BACKUP_TO", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= known
    assert "BACKUP_DATABASE_URL" not in known
