"""``ensq submit`` on a real cluster, as a user calls it, up to the exported ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pg_tools
import pytest
from ensemble_tools import ensq, write_config
from slurm_cluster import Cluster, until

from ensq.jobs import State
from ensq.store import Store, check, check_files

EXTRA = """
slurm: {partition: main, time: "10", cpus: 1, gpus: 1, extra: [--exclude=n4]}
"""


class User:
    """A person at the command line, in a folder with a configuration."""

    def __init__(self, cluster: Cluster, folder: Path, seeds: int) -> None:
        self.cluster, self.folder = cluster, folder
        write_config(folder, seeds, EXTRA)

    def __call__(
        self, *arguments: str, code: int = 0, environment: Mapping[str, str] | None = None
    ) -> str:
        environment = self.cluster.environment | {"JAX_PLATFORMS": "cpu"} | dict(environment or {})
        done = ensq(*arguments, cwd=self.folder, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        return str(done.stdout)

    def submit(self, *arguments: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("submit", *arguments, "--json", **more))
        return found

    def said(self) -> str:
        files = self.folder.glob("runs/*/slurm/*.out")
        return "\n".join(path.read_text() for path in sorted(files))

    def states(self) -> list[State]:
        with Store.open(self.folder / "ensq.db", read_only=True) as store:
            return [job.state for one in store.ensembles() for job in store.jobs(one.id)]


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path) -> User:
    return User(cluster, tmp_path, seeds=3)


def test_one_command_trains_an_ensemble_and_finalizes_it(user: User, cluster: Cluster) -> None:
    first = user.submit("tiny.yaml")
    assert (first["workers"], first["open_members"], first["workers_already"]) == (3, 3, 0)
    again = user.submit("tiny")
    assert (again["workers"], again["job"], again["workers_already"]) == (0, None, 3)
    found = cluster.wait_ended(first["job"], 120)
    assert [one.state for one in found] == ["COMPLETED"] * 3, user.said()
    assert "n4" not in {one.node for one in found}
    assert user.states() == [State.DONE] * 3
    assert check(user.folder / "ensq.db") == []
    assert check_files(user.folder / "ensq.db") == []
    metadata = user.folder / "runs/tiny/exported_models/ensemble_metadata.json"
    until(metadata.exists, "the exported ensemble", 5)
    assert json.loads(metadata.read_text())["n_models"] == 3
    # Those that ended before the others were done have said so, and no more.
    assert "Traceback" not in user.said()
    assert user.submit("tiny")["workers"] == 0


def test_a_queue_in_postgresql_whose_password_is_in_no_script(
    user: User, cluster: Cluster, postgres: pg_tools.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD")
    url = postgres.new_database().replace("ensq@", f"ensq:{postgres.password}@")
    # Neither ~/.pgpass nor PGPASSWORD is there for the job.
    more = {"ENSQ_DB": url, "ENSQ_ROOT": str(user.folder)}
    job = user.submit("tiny.yaml", "--n-models", "1", environment=more)["job"]
    (ended,) = cluster.wait_ended(job, 120)
    assert ended.state == "COMPLETED", user.said()
    assert (user.folder / "runs/tiny/exported_models/ensemble_metadata.json").exists()
    (script,) = user.folder.glob("runs/tiny/slurm/*.sh")
    for text in (script.read_text(), user.said(), cluster.run("scontrol", "show", "job", job)):
        assert postgres.password not in text


def test_what_sbatch_refuses_loses_nothing_and_can_be_put_right(
    user: User, cluster: Cluster
) -> None:
    done = ensq(
        *("submit", "tiny.yaml", "--partition", "none"),
        cwd=user.folder,
        **cluster.environment,
    )
    assert done.returncode == 1
    assert "invalid partition" in done.stderr.lower()
    assert user.states() == [State.QUEUED] * 3
    assert cluster.run("squeue", "-h") == ""


def test_jobs_that_wait_are_shown_by_status_and_counted(user: User, cluster: Cluster) -> None:
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        job = user.submit("tiny.yaml", "--workers", "2")["job"]
        said = user("status", "tiny")
        assert f"waits in SLURM: {job}_[0-1]: PENDING (PartitionDown)" in " ".join(said.split())
        assert user.submit("tiny")["workers"] == 1
        cluster.run("scancel", "-u", cluster.run("id", "-un").strip())
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
