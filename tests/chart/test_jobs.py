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
    assert under == {f"regulars-{each}" for each in ("backup-wal", "backup-base", "backup-verify", "backup-prune", "operator")}
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

    assert deadlines() == {"regulars-backup-base": None, "regulars-backup-verify": None, "regulars-backup-prune": 14400}
    given = {**cases()["backup"]["set"]["backup"], "activeDeadlineSeconds": 100000}
    assert deadlines(backup=given) == {"regulars-backup-base": 100000, "regulars-backup-verify": 100000, "regulars-backup-prune": 14400}
