"""``ensq doctor`` and SLURM: answers of a real cluster, and commands that hang, lie or fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ensq.doctor import Finding
from ensq.doctor.settings import check_partitions, parse_partitions, parse_settings
from ensq.doctor.slurm import check_slurm

ANSWERS = Path(__file__).parent / "slurm_answers"
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "sacct", "munge", "unmunge")
# What each command says where all is in order.
RIGHT = {
    "sinfo": "echo slurm-wlm 22.05.8",
    "munge": "echo MUNGE:credential:",
    "unmunge": 'read -r line; test "$line" = MUNGE:credential:',
    "scontrol": f"""
case "$*" in
ping) cat {ANSWERS}/ping.txt ;;
"show config") echo "Configuration data as of $(date +%s)"; cat "$CONFIG" ;;
"show partition") cat {ANSWERS}/partition.txt ;;
*) exit 1 ;;
esac""",
}


class Cluster:
    """A folder of stubs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config((ANSWERS / "config.txt").read_text())
        for name in COMMANDS:
            self.stub(name, RIGHT.get(name, "true"))
        for name in ("cat", "date", "sleep"):  # and no real SLURM
            self.stub(name, f'exec /bin/{name} "$@"')

    def stub(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def config(self, text: str) -> None:
        body = text.partition("\n")[2]  # without the time
        # A socket that is not there any more
        (self.folder / "config").write_text(body.replace("socket=/tmp/lab-doc", "x=y"))

    def set(self, **settings: str) -> None:
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        self.config((ANSWERS / "config.txt").read_text() + lines)

    def look(self, timeout: float = 10.0, **environment: str) -> dict[str, Finding]:
        known = {"PATH": str(self.folder), "CONFIG": str(self.folder / "config")}
        found = check_slurm(25.0, known | environment, timeout)
        return {finding.key: finding for finding in found}


@pytest.fixture
def stubs(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_settings_of_a_real_cluster_are_read() -> None:
    settings = parse_settings((ANSWERS / "config.txt").read_text())
    assert settings["KillWait"] == "3 sec"
    assert settings["MaxArraySize"] == "1001"


def test_partitions_of_a_real_cluster_are_read() -> None:
    partitions = parse_partitions((ANSWERS / "partition.txt").read_text())
    modes = {part["PartitionName"]: part["PreemptMode"] for part in partitions}
    assert modes == {"main": "OFF", "low": "REQUEUE", "lowc": "CANCEL"}


def test_a_good_cluster(stubs: Cluster) -> None:
    stubs.set(KillWait="30 sec")
    found = stubs.look()
    keys = {"slurm", "controller", "kill_wait", "requeue", "arrays", "settings", "slurm_clock"}
    assert set(found) == keys | {"partition", "accounting", "munge"}
    # The last partition is one whose jobs are cancelled.
    assert {found[key].state for key in set(found) - {"partition"}} == {"ok"}, found
    assert "slurm-wlm 22.05.8" in found["slurm"].seen
    assert "Slurmctld(primary) at vm is UP" in found["controller"].seen


def test_no_slurm_is_a_note(tmp_path: Path) -> None:
    found = check_slurm(25.0, {"PATH": str(tmp_path)})
    assert [finding.state for finding in found] == ["note"]


def test_commands_that_submitting_needs_are_missed(stubs: Cluster) -> None:
    (stubs.folder / "sacct").unlink()
    assert stubs.look()["slurm"].state == "ok"
    (stubs.folder / "sbatch").unlink()
    found = stubs.look()["slurm"]
    assert found.state == "warning"
    assert "not there: sbatch, sacct" in found.seen


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sleep 60", "no answer to `scontrol ping` within 0.5 s"),
        ("sleep 60 & sleep 60", "no answer to `scontrol ping`"),
        ("echo nonsense", "nonsense"),
        ("exit 1", "says nothing"),
        ("echo 'Slurmctld(primary) at vm is DOWN'; exit 1", "at vm is DOWN"),
        ("echo 'fatal: no configuration' >&2; exit 1", "fatal: no configuration"),
    ],
)
def test_a_controller_that_does_not_answer_is_a_warning_and_asked_no_more(
    script: str, words: str, stubs: Cluster
) -> None:
    stubs.stub("scontrol", f'echo "$*" >>{stubs.folder}/asked; {script}')
    begin = time.monotonic()
    found = stubs.look(0.5)
    assert time.monotonic() - begin < 5
    assert found["controller"].state == "warning"
    assert words in found["controller"].seen
    assert (stubs.folder / "asked").read_text() == "ping\n"


def test_a_backup_that_is_up_is_enough(stubs: Cluster) -> None:
    lines = "Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP"
    stubs.stub("scontrol", f"test $1 = ping && echo '{lines}'")
    found = stubs.look()
    assert found["controller"].state == "note"
    assert "at b is UP" in found["controller"].seen
    assert "at a is DOWN" in found["controller"].seen
    assert found["settings"].state == "warning", "it tells none"


@pytest.mark.parametrize(
    ("value", "state", "words"),
    [
        ("3 sec", "warning", "less than the 25 s"),
        ("27 sec", "warning", "hardly more than the 25 s"),
        ("30 sec", "ok", "30 sec"),
    ],
)
def test_a_short_kill_wait_is_a_warning(value: str, state: str, words: str, stubs: Cluster) -> None:
    stubs.set(KillWait=value)
    found = stubs.look()["kill_wait"]
    assert found.state == state
    assert words in found.seen


def test_jobs_that_are_not_requeued_are_a_note(stubs: Cluster) -> None:
    stubs.set(JobRequeue="0")
    found = stubs.look()["requeue"]
    assert found.state == "note"
    assert "successor" in found.advice


@pytest.mark.parametrize(
    ("value", "state"), [("0", "warning"), ("1", "warning"), ("101", "note"), ("1001", "ok")]
)
def test_short_arrays(value: str, state: str, stubs: Cluster) -> None:
    stubs.set(MaxArraySize=value)
    assert stubs.look()["arrays"].state == state


@pytest.mark.parametrize(("minutes", "words"), [(10, "ahead of"), (-10, "behind"), (0, "agrees")])
def test_the_controllers_clock(minutes: int, words: str, stubs: Cluster) -> None:
    moved = f'"Configuration data as of $(($(date +%s) + {60 * minutes}))"'
    script = RIGHT["scontrol"].replace('"Configuration data as of $(date +%s)"', moved)
    stubs.stub("scontrol", f'test "$SLURM_TIME_FORMAT" = %s || exit 1\n{script}')
    found = stubs.look()["slurm_clock"]
    assert found.state == ("warning" if minutes else "ok")
    assert words in found.seen
    assert not minutes or abs(int(found.seen.split("is ")[1].split()[0]) - 600) < 5


@pytest.mark.parametrize("script", ["exit 1", "sleep 60", "echo 'is disabled' >&2; exit 1"])
def test_no_accounting_is_a_note(script: str, stubs: Cluster) -> None:
    stubs.stub("sacct", script)
    found = stubs.look(1.0)["accounting"]
    assert found.state == "note"
    assert "no accounting: sacct fails (" in found.seen


def test_munge_that_is_not_here_is_unknown(stubs: Cluster) -> None:
    """As in a container."""
    (stubs.folder / "munge").unlink()
    known = {"PATH": str(stubs.folder)}
    assert {one.key: one for one in check_slurm(25.0, known)}["munge"].state == "unknown"


@pytest.mark.parametrize(
    ("munge", "unmunge", "words"),
    [
        ("sleep 60", "true", "no answer within 1 s"),
        ("echo 'no socket' >&2; exit 1", "true", "no socket"),
        ("echo x", "sleep 60", "no answer within 1 s"),
        ("echo x", "echo 'STATUS:   Expired credential (15)'; exit 15", "Expired credential (15)"),
    ],
)
def test_munge_that_fails_is_a_warning_only_if_slurm_is_silent(
    munge: str, unmunge: str, words: str, stubs: Cluster
) -> None:
    stubs.stub("munge", munge)
    stubs.stub("unmunge", unmunge)
    found = stubs.look(1.0)["munge"]
    assert found.state == "note"
    assert words in found.seen
    stubs.stub("scontrol", "exit 1")
    found = stubs.look(1.0)["munge"]
    assert found.state == "warning"
    assert words in found.seen


def test_munge_is_asked_at_slurms_own_socket(stubs: Cluster) -> None:
    stubs.set(AuthInfo="socket=/run/mine,cred_expire=5")
    stubs.stub("munge", 'test "$*" = "-n --socket=/run/mine"')
    stubs.stub("unmunge", 'test "$*" = "--socket=/run/mine"')
    assert stubs.look()["munge"].state == "ok"


def test_another_way_to_prove_who_one_is(stubs: Cluster) -> None:
    stubs.set(AuthType="auth/slurm")
    stubs.stub("munge", "exit 1")
    assert stubs.look()["munge"].seen == "SLURM uses auth/slurm, not munge"


def partition(preempt: str = "preempt/partition_prio", **fields: str) -> Finding:
    usual = {"PartitionName": "gpu", "Default": "YES", "State": "UP", "MaxTime": "2-00:00:00"}
    text = " ".join(f"{name}={value}" for name, value in (usual | fields).items())
    (found,) = check_partitions(text, {"PreemptType": preempt, "KillWait": "30 sec"}, 25.0)
    return found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"MaxTime": "00:30:00"}, "--margin"),
        ({"MaxTime": "30:00"}, "training.checkpoint_freq"),
        ({"DefaultTime": "00:10:00"}, "name slurm.time: without it jobs end after 00:10:00"),
        ({"State": "DOWN"}, "starts no jobs (DOWN)"),
        ({"State": "DRAIN"}, "starts no jobs (DRAIN)"),
        ({"PreemptMode": "CANCEL", "GraceTime": "60"}, "do not come back"),
    ],
)
def test_partitions_to_be_careful_with(fields: dict[str, str], words: str) -> None:
    found = partition(**fields)
    assert found.state == "warning"
    assert words in found.advice


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"MaxTime": "UNLIMITED", "DefaultTime": "NONE"},
        {"MaxTime": "01:00:00", "DefaultTime": "01:00:00"},
        {"PreemptMode": "OFF", "GraceTime": "0"},
        {"PreemptMode": "REQUEUE", "GraceTime": "0"},  # KillWait is long enough
        {"PreemptMode": "CANCEL", "preempt": "preempt/none"},
    ],
)
def test_partitions_that_are_in_order(fields: dict[str, str]) -> None:
    found = partition(**fields)
    assert (found.state, found.advice) == ("ok", "")
    assert found.seen.startswith("partition gpu (default): State UP")


def test_pre_emption_with_little_notice_is_a_warning() -> None:
    text = "PartitionName=low PreemptMode=REQUEUE GraceTime=4"
    (found,) = check_partitions(text, {"PreemptType": "preempt/qos", "KillWait": "3 sec"}, 25.0)
    assert found.state == "warning"
    assert "leaves 7 s to save, and a worker may take 25 s" in found.advice


JOB = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1"}


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ("echo 2:05:00", "ok", "job 77, run 1, on n1; 2 h 05 min left"),
        ("echo 3:00", "warning", "0 h 03 min left"),
        ("echo UNLIMITED", "ok", "no time limit"),
        ("exit 1", "unknown", "when it ends is not told"),
        ("sleep 60", "unknown", "when it ends is not told"),
    ],
)
def test_the_time_left_of_the_job(script: str, state: str, words: str, stubs: Cluster) -> None:
    stubs.stub("squeue", script)
    found = stubs.look(1.0, **JOB)
    assert found["job"].state == state
    assert words in found["job"].seen
    assert "step" not in found


def test_gpus_of_the_job(stubs: Cluster) -> None:
    assert stubs.look(**JOB)["job_gpus"].state == "note"
    found = stubs.look(**JOB, SLURM_STEP_GPUS="2,3", CUDA_VISIBLE_DEVICES="0,1")["job_gpus"]
    assert found.seen == "GPUs of the job on this node: 2,3; CUDA_VISIBLE_DEVICES 0,1"


def test_a_worker_in_the_jobs_script_would_get_no_warning(stubs: Cluster) -> None:
    found = stubs.look(SLURM_JOB_ID="77")["step"]
    assert "srun" in found.advice
