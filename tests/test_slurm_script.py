"""The batch script of workers: its text, and what it does when bash runs it with stubs for SLURM.

The text is compared with files in golden/sbatch; `ENSQ_WRITE_GOLDEN=1` writes them anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ensq.slurm.script import JobPlan, directives, sbatch_text, warning_seconds

GOLDEN = Path(__file__).parent / "golden" / "sbatch"
LEAST = JobPlan(
    ensemble="chignolin_ca",
    job_name="ensq-chignolin_ca",
    comment="ensq-0123456789ab",
    workers=1,
    script="/home/me/runs/chignolin_ca/slurm/workers-0123456789.sh",
    output="/home/me/runs/chignolin_ca/slurm/%A_%a.out",
    folder="/home/me",
    database="/home/me/ensq.db",
)
FULL = JobPlan(
    ensemble="ala2",
    job_name="ensq-ala2",
    comment="ensq-0123456789ab",
    workers=12,
    script="/home/me/my runs/runs/ala2/slurm/workers-0123456789.sh",
    output="/home/me/my runs/runs/ala2/slurm/%A_%a.out",
    folder="/home/me/my runs",
    database=None,
    root="/home/me/my runs",
    bin_folder="/home/me/my env/bin",
    partition="a100,h100",
    account="chem",
    qos="long",
    constraint="a100&nvlink",
    time="1-12:00:00",
    seconds=129600,
    gpus="a100:1",
    cpus=8,
    memory="32G",
    workers_per_gpu=2,
    pack=4,
    modules=("cuda/12.4", "python/3.11"),
    setup=("source env.sh", "ulimit -c 0"),
    environment={"XLA_FLAGS": "--xla_gpu_autotune_level=2", "NOTE": "it's mine"},
    command="apptainer exec --nv ensq.sif ensq",
    options=("--margin=120",),
    scratch="/scratch/$USER/$SLURM_JOB_ID",
    signal=300,
    extra=("--exclude=n01", "--mail-type=FAIL"),
)
PLANS = {
    "least": LEAST,
    "full": FULL,
    "processes": replace(LEAST, processes=4, gpus="4"),
    "no_requeue": replace(LEAST, requeue=False, finalize=False, gpus="0"),
}


@pytest.mark.parametrize("name", PLANS)
def test_text_is_that_of_the_golden_file(name: str) -> None:
    golden = GOLDEN / f"{name}.sh"
    text = sbatch_text(PLANS[name])
    if os.environ.get("ENSQ_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", PLANS)
def test_bash_and_shellcheck_have_nothing_against_it(name: str) -> None:
    golden = GOLDEN / f"{name}.sh"
    subprocess.run(["bash", "-n", golden], check=True)
    if shutil.which("shellcheck"):
        # What a user sources lies elsewhere.
        done = subprocess.run(
            ["shellcheck", "-e", "SC1091", golden], capture_output=True, text=True
        )
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("seconds", "signal_", "expected"),
    [
        (None, 120, 120),
        (86400, 120, 120),
        (3600, 120, 120),
        (1800, 120, 90),
        (600, 120, 30),
        (299, 120, 0),
        (86400, 0, 0),
        (None, 0, 0),
        (86400, 7200, 4320),
    ],
)
def test_warning_costs_little_of_a_short_limit(
    seconds: int | None, signal_: int, expected: int
) -> None:
    plan = replace(LEAST, seconds=seconds, signal=signal_)
    assert warning_seconds(plan) == expected
    assert (f"--signal=USR1@{expected}" in directives(plan)) == (expected > 0)


# What it does


class Run:
    """The script, run by bash, with commands of SLURM that note how they were called."""

    def __init__(self, folder: Path, worker: str, **changes: object) -> None:
        """``worker``: shell that stands for the workers."""
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        self.stub("srun", f"case $* in *finalize*) exit ${{FINALIZE:-0}} ;; esac\n{worker}")
        self.stub("ensq", "")
        self.stub("scontrol", "")
        self.stub("sbatch", "echo 77")
        self.stub("squeue", "case $* in *RestartCnt*) echo ${NOW:-} ;; *) echo None ;; esac")
        plan = {**vars(LEAST), "script": str(folder / "job.sh"), "least_run": 0, **changes}
        text = sbatch_text(JobPlan(**plan))
        (folder / "job.sh").write_text(text.replace("\n\n", "\necho $$ >pid\n\n", 1))

    def stub(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.calls}"\n{body}\n')
        path.chmod(0o755)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        slurm = {"SLURM_JOB_ID": "50", "SLURM_ARRAY_JOB_ID": "50", "SLURM_ARRAY_TASK_ID": "3"}
        path = f"{self.folder}:/usr/bin:/bin"
        return subprocess.Popen(
            ["bash", "--norc", "job.sh"],
            cwd=self.folder,
            env={"PATH": path, **slurm, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, **environment: str) -> tuple[int, str]:
        return self.end(self.start(**environment))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for its end; its code, and what it said."""
        try:
            said, _ = process.communicate(timeout=20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return process.returncode, said

    def called(self, *names: str) -> list[str]:
        lines = self.calls.read_text().splitlines()
        return [line for line in lines if line.split()[0] in names]

    def wait_called(self, name: str) -> None:
        end = time.monotonic() + 10
        while not self.called(name):
            assert time.monotonic() < end
            time.sleep(0.02)


def test_stopped_with_work_left_it_requeues_its_own_element_once(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75")
    code, said = run()
    assert code == 75
    assert "requeued" in said
    assert run.called("scontrol", "sbatch") == ["scontrol requeue 50_3"]
    assert not [line for line in run.called("srun") if "finalize" in line]


def test_where_requeueing_is_refused_one_successor_takes_its_place(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75")
    run.stub("scontrol", "echo Requested operation is presently disabled for job >&2; exit 1")
    run.stub("sbatch", f"env >>{run.calls}; echo 77")
    code, said = run(SLURM_RESTART_COUNT="2", SLURM_CONF="/etc/slurm.conf", OTHER="kept")
    assert code == 75
    assert "job 77 goes on" in said
    assert run.called("scontrol", "sbatch") == [
        "scontrol requeue 50_3",
        f"sbatch --parsable --array=3 {tmp_path}/job.sh",
    ]
    variables = run.calls.read_text()
    assert "OTHER=kept" in variables
    assert "SLURM_CONF=" in variables
    assert "SLURM_RESTART_COUNT" not in variables
    assert "SLURM_JOB_ID" not in variables


def test_what_cannot_be_submitted_again_is_said(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75")
    run.stub("scontrol", "exit 1")
    run.stub("sbatch", "echo sbatch: error: over the limit >&2; exit 1")
    code, said = run()
    assert code == 75
    assert "not submitted again: sbatch: error: over the limit; ensq submit does it" in said


def test_a_controller_that_is_away_is_asked_again(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75")
    run.stub(
        "scontrol",
        f'if [ "$(grep -c ^scontrol "{run.calls}")" -lt 2 ]; then\n'
        "echo slurm_requeue error: Unable to contact slurm controller >&2; exit 1; fi",
    )
    code, said = run()
    assert (code, said.count("requeued\n")) == (75, 1)
    assert run.called("scontrol", "sbatch") == ["scontrol requeue 50_3"] * 2


HEARD = {
    "without-an-answer": "kill -TERM $(cat pid); echo Socket timed out on send/recv >&2; exit 1",
    "killed-before-its-answer": "kill -TERM $(cat pid) $$; sleep 9",
    "killed-first": "(sleep 0.3; kill -TERM $(cat pid)) & kill -TERM $$; sleep 9",
}


@pytest.mark.parametrize("how", HEARD)
def test_if_slurm_heard_without_saying_so_there_is_no_successor(tmp_path: Path, how: str) -> None:
    """The SIGTERM of the requeueing comes to scontrol, too, before it can tell of its success."""
    run = Run(tmp_path, "exit 75")
    run.stub("scontrol", HEARD[how])
    assert run()[0] == 75
    assert run.called("scontrol", "sbatch") == ["scontrol requeue 50_3"]


WAITS = """
trap 'echo heard TERM >>{calls}; exit 75' TERM
trap 'echo heard USR1 >>{calls}; exit 75' USR1
trap 'echo heard USR2 >>{calls}; exit 75' USR2
echo ready >>{calls}
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
@pytest.mark.parametrize("times", [1, 2])
def test_signals_go_on_to_the_workers_but_after_a_sigterm_nothing_is_requeued(
    tmp_path: Path, name: str, times: int
) -> None:
    """SIGTERM to the script: scancel, or SLURM that requeues by itself."""
    run = Run(tmp_path, WAITS.format(calls=tmp_path / "calls"))
    process = run.start()
    run.wait_called("ready")
    for _ in range(times):
        process.send_signal(signal.Signals[f"SIG{name}"])
    assert run.end(process)[0] == 75
    assert run.called("heard")[0] == f"heard {name}"
    assert run.called("sbatch") == []
    assert run.called("scontrol") == ([] if name == "TERM" else ["scontrol requeue 50_3"])


def test_at_the_time_limit_a_successor_goes_on_in_spite_of_the_sigterm(tmp_path: Path) -> None:
    """SLURM requeues nothing that ran into its limit."""
    run = Run(tmp_path, WAITS.format(calls=tmp_path / "calls"))
    run.stub("squeue", "echo TimeLimit")
    process = run.start()
    run.wait_called("ready")
    process.send_signal(signal.SIGTERM)
    _, said = run.end(process)
    assert "job 77 goes on" in said
    assert run.called("scontrol", "sbatch") == [f"sbatch --parsable --array=3 {tmp_path}/job.sh"]


def test_at_the_time_limit_it_does_not_wait_for_workers_that_hang(tmp_path: Path) -> None:
    """SIGKILL comes to all of them together."""
    calls = tmp_path / "calls"
    run = Run(tmp_path, f"trap '' TERM; echo ready >>{calls}; while :; do sleep 0.05; done")
    run.stub("squeue", "echo TimeLimit")
    process = run.start()
    run.wait_called("ready")
    process.send_signal(signal.SIGTERM)
    run.wait_called("sbatch")
    process.send_signal(signal.SIGTERM)  # SLURM sends it twice
    time.sleep(0.5)
    assert process.poll() is None
    assert len(run.called("sbatch")) == 1
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_time_limit_while_the_controller_is_away_is_handed_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75")
    run.stub("scontrol", "echo Unable to contact slurm controller >&2; exit 1")
    run.stub("squeue", "echo TimeLimit")
    process = run.start()
    run.wait_called("scontrol")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert "job 77 goes on" in run.end(process)[1]
    assert len(run.called("sbatch")) == 1


@pytest.mark.parametrize("code", [75, 137])
@pytest.mark.parametrize(("now", "again"), [("1  ", 1), ("2", 0), ("", 1), ("error", 1)])
def test_a_run_that_was_given_up_does_not_requeue_the_one_after_it(
    tmp_path: Path, code: int, now: str, again: int
) -> None:
    """The node was called dead, and was not: the job has started elsewhere."""
    run = Run(tmp_path, f"exit {code}")
    said = run(SLURM_RESTART_COUNT="1", NOW=now)[1]
    assert len(run.called("scontrol", "sbatch")) == again
    assert ("run 2 of this job is under way: this was run 1" in said) == (again == 0)


def test_a_run_that_was_short_waits_before_it_requeues(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75", least_run=2)
    began = time.monotonic()
    run()
    assert time.monotonic() - began >= 1.9
    assert run.called("scontrol") == ["scontrol requeue 50_3"]


def test_after_ten_short_runs_in_a_row_a_person_is_asked(tmp_path: Path) -> None:
    """A long one in between begins the count anew."""
    run = Run(tmp_path, "exit 75", least_run=1)
    (tmp_path / "50_3.short").write_text("0\n" * 8)
    assert "waits" in run()[1]
    assert "ten runs in a row were short: see why above; ensq submit starts" in run()[1]
    assert len(run.called("scontrol", "sbatch")) == 1
    run.stub("srun", "sleep 1.1; exit 75")
    assert "requeued" in run()[1]
    assert not (tmp_path / "50_3.short").exists()


def test_cancelled_while_it_waits_it_requeues_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75", least_run=20)
    process = run.start()
    assert process.stdout is not None
    while "waits" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    assert run.end(process)[0] == 75
    assert run.called("scontrol", "sbatch") == []


def test_the_last_one_finalizes(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 0")
    assert run()[0] == 0
    calls = [line for line in run.called("srun") if "finalize" in line]
    assert calls == ["srun --export=ALL --ntasks=1 ensq finalize --when-done chignolin_ca"]
    code, said = run(FINALIZE="1")
    assert code == 0  # its members are trained: no reason to call the job failed
    assert "not finalized: ensq status tells why" in said


@pytest.mark.parametrize("code", [1, 2, 69, 78, 130])
def test_other_ends_are_for_a_person(tmp_path: Path, code: int) -> None:
    run = Run(tmp_path, f"exit {code}")
    assert run()[0] == code
    assert run.called("scontrol", "sbatch") == []


@pytest.mark.parametrize(("restarts", "again"), [("0", 1), ("2", 1), ("3", 0)])
@pytest.mark.parametrize("code", [135, 137, 143])
def test_killed_workers_are_started_again_three_times(
    tmp_path: Path, code: int, restarts: str, again: int
) -> None:
    run = Run(tmp_path, f"exit {code}")
    assert run(SLURM_RESTART_COUNT=restarts)[0] == code
    assert len(run.called("scontrol")) == again


def test_without_requeue_it_only_says_how_it_ended(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 75", requeue=False)
    assert run()[0] == 75
    assert run.called("scontrol", "sbatch") == []


def test_an_environment_without_ensq_is_said_where_and_what(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 0", command="ensq-of-elsewhere")
    code, said = run()
    assert code == 2
    assert "ensq-of-elsewhere is not found on" in said
    assert "slurm.setup" in said
    assert run.called("srun") == []


def test_environment_setup_and_scratch_reach_the_workers(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        'echo "saw $A|$ENSQ_DB|$TMPDIR|$B" >>calls',
        setup=("export B=from_setup",),
        environment={"A": "it's $HOME"},
        scratch="$WORK/scratch of mine",
    )
    assert run(WORK=str(tmp_path))[0] == 0
    scratch = tmp_path / "scratch of mine"
    assert scratch.is_dir()
    assert run.called("saw") == [f"saw it's $HOME|/home/me/ensq.db|{scratch}|from_setup"]


def test_a_database_with_a_password_must_come_by_the_environment(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 0", database=None)
    code, said = run()
    assert code != 0
    assert "--export=ALL" in said
    assert run.called("srun") == []
    assert run(ENSQ_DB="postgresql://me:secret@host/queue")[0] == 0


def test_modules_that_cannot_be_loaded_end_it(tmp_path: Path) -> None:
    run = Run(tmp_path, "exit 0", modules=("cuda/12",))
    run.stub("module", "exit 1")
    assert run()[0] == 2
    assert run.called("module", "srun") == ["module load cuda/12"]
