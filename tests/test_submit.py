"""``ensq submit``: what sbatch is asked for, how many, and what is said; SLURM is stubs here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ensemble_tools import ensq, write_config

from ensq import config as configuration
from ensq.config.slurm import SlurmConfig, seconds_of
from ensq.errors import UsageError
from ensq.jobs import State
from ensq.rundir import RunDir
from ensq.slurm.script import sbatch_text
from ensq.store import Store
from ensq.store.target import Target
from ensq.submit import comment, plan, workers_needed

HEAD = "JOBID|COMMENT"


class Place:
    """A folder with a configuration, and stubs in a folder of their own."""

    def __init__(self, folder: Path, n_models: int = 3, extra: str = "") -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        write_config(folder, n_models, extra)
        self.stub("sbatch", f'echo "$*" >>{folder}/sbatch.calls; env >{folder}/sbatch.env; echo 41')
        self.squeue()

    def stub(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def squeue(self, *comments: str) -> None:
        """Jobs of the right name, by their comments."""
        rows = [HEAD, *(f"41_{place}|{text}" for place, text in enumerate(comments))]
        self.stub(
            "squeue", f'echo "$*" >>{self.folder}/squeue.calls\nprintf "%s\\n" ' + _words(rows)
        )

    @property
    def comment(self) -> str:
        return comment(Target.parse(self.folder / "ensq.db"))

    def run(self, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        path = f"{self.bin}:/usr/bin:/bin"
        done = ensq(*arguments, cwd=self.folder, **{"PATH": path} | environment)
        assert done.returncode == code, f"{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def submit(self, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
        return self.run("submit", *arguments, code=code, **environment)

    def calls(self) -> list[str]:
        path = self.folder / "sbatch.calls"
        return path.read_text().splitlines() if path.exists() else []

    def scripts(self) -> list[Path]:
        return sorted(self.folder.glob("runs/*/slurm/*.sh"))


def _words(lines: list[str]) -> str:
    return " ".join(f"'{line}'" for line in lines)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_configuration_is_enqueued_and_one_array_submitted(place: Place) -> None:
    said, told = place.submit("tiny.yaml")
    assert said.splitlines() == [
        "job 41: 3 workers for 3 open members of tiny",
        f"script: {place.scripts()[0].relative_to(place.folder)}",
        "output: runs/tiny/slurm/%A_%a.out",
        "next: `ensq status`; `scancel 41` stops them, nothing is lost",
    ]
    assert "new: 3 members" in told
    (script,) = place.scripts()
    assert place.calls() == [f"--parsable {script}"]
    text = script.read_text()
    assert "#SBATCH --array=0-2\n" in text
    assert f"#SBATCH --comment={place.comment}\n" in text
    assert f"export ENSQ_DB={place.folder}/ensq.db\n" in text
    assert f'sbatch --parsable --array="$element" {script}' in text
    with Store.open(place.folder / "ensq.db", read_only=True) as store:
        (ensemble,) = store.ensembles()
        assert [job.state for job in store.jobs(ensemble.id)] == [State.QUEUED] * 3


def test_dry_run_prints_the_same_text_and_does_nothing(place: Place) -> None:
    printed, _ = place.submit("tiny.yaml", "--dry-run")
    assert {path.name for path in place.folder.iterdir()} == {
        *("bin", "tiny.npz", "tiny.yaml", "squeue.calls"),
    }
    place.submit("tiny.yaml")
    (script,) = place.scripts()
    assert printed == script.read_text()
    again, _ = place.submit("tiny", "--dry-run")
    assert again == printed
    assert len(place.calls()) == 1


def test_workers_that_wait_or_run_already_are_counted(place: Place) -> None:
    place.submit("tiny.yaml")
    # One of another database has the same name.
    place.squeue(place.comment, "ensq-000000000000", place.comment)
    said, _ = place.submit("tiny")
    assert "41: 1 worker for 3 open members of tiny, beside 2 already there\n" in said
    assert "--array=0\n" in place.scripts()[-1].read_text() + place.scripts()[0].read_text()
    place.squeue(*[place.comment] * 3)
    said, _ = place.submit("tiny")
    assert said == (
        "3 workers for the 3 open members of tiny wait or run already; --workers N submits more\n"
    )
    assert len(place.calls()) == 2
    said, _ = place.submit("tiny", "--workers", "2")
    assert "2 workers for 3 open members" in said
    asked = (place.folder / "squeue.calls").read_text()
    assert f"--user={os.getuid()}" in asked
    assert "--name=ensq-tiny" in asked
    assert "--array" in asked


def test_a_squeue_that_does_not_answer_is_no_obstacle(place: Place) -> None:
    place.stub("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    said, _ = place.submit("tiny.yaml", "--json")
    found = json.loads(said)
    assert (found["workers"], found["workers_already"], found["job"]) == (3, None, "41")
    (place.bin / "squeue").unlink()
    assert json.loads(place.submit("tiny", "--json")[0])["workers_already"] is None


def test_members_that_are_done_or_held_need_no_workers(place: Place) -> None:
    place.run("enqueue", "tiny.yaml")
    place.run("hold", "tiny", "--seed", "42")
    place.run("cancel", "tiny", "--seed", "43")
    assert "1 worker for 1 open member of" in place.submit("tiny")[0]
    place.run("hold", "tiny")
    assert place.submit("tiny")[0] == "no member of tiny is open: no workers are needed\n"


@pytest.mark.parametrize(
    ("count", "settings", "here", "expected"),
    [
        (8, {}, 0, 8),
        (8, {}, 3, 5),
        (8, {}, 9, 0),
        (0, {}, 0, 0),
        (8, {"workers": 4}, 0, 4),
        (8, {"workers": 4}, 3, 1),
        (9, {"pack": 4}, 0, 3),
        (9, {"pack": 2, "workers_per_gpu": 2}, 0, 3),
        (5000, {}, 0, 1000),
    ],
)
def test_number_of_workers(count: int, settings: dict[str, int], here: int, expected: int) -> None:
    assert workers_needed(count, SlurmConfig(**settings), here) == expected  # type: ignore[arg-type]


SECTION = """
slurm:
  partition: gpu
  time: "12:00:00"
  gpus: a100:1
  workers: 2
  modules: [cuda/12.4]
  setup: ["source env.sh"]
  extra: [--exclude=n01]
"""


def test_the_section_decides_and_options_come_before_it(tmp_path: Path) -> None:
    place = Place(tmp_path, 8, SECTION)
    text, _ = place.submit("tiny.yaml", "--dry-run")
    for line in ("partition=gpu", "time=12:00:00", "gres=gpu:a100:1", "array=0-1", "exclude=n01"):
        assert f"#SBATCH --{line}\n" in text
    assert text.startswith("#!/bin/bash -l\n")
    changed = ("--partition", "long", "--time", "2-00", "--gpus", "0", "--extra", "--mail-type=END")
    text, _ = place.submit("tiny.yaml", "--dry-run", *changed, "--cpus", "2", "--memory", "8G")
    for line in ("partition=long", "time=2-00", "exclude=n01", "mail-type=END", "mem=8G"):
        assert f"#SBATCH --{line}\n" in text
    assert "gres" not in text
    assert "--cpus-per-task=2 " in text
    text, _ = place.submit(
        "tiny.yaml", "--dry-run", "--gpus", "1", "--workers-per-gpu", "2", "--pack", "4"
    )
    assert "#SBATCH --ntasks=2\n" in text
    assert "--ntasks=2" in text.partition("\nsrun ")[2]
    assert "--pack 4 --share 2" in text


def test_the_section_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    plain = configuration.load(write_config(tmp_path / "a"))
    with_section = configuration.load(write_config(tmp_path / "b", extra=SECTION))
    assert plain.slurm != with_section.slurm
    assert configuration.digest(plain) == configuration.digest(with_section)
    assert configuration.changed_keys(plain, with_section) == []
    # What a database from before holds has no such section.
    tree = json.loads(configuration.dumps(plain))
    del tree["slurm"]
    assert configuration.digest(configuration.loads(json.dumps(tree))) == configuration.digest(
        plain
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("time: 12:00:00", "time is the number 43200 to YAML"),
        ('time: "soon"', "time: 'soon' can't be used"),
        ("partition: a b", "partition: 'a b' can't be used: one word"),
        ("memory: lots", "memory: 'lots' can't be used"),
        ("gpus: two", "gpus: 'two' can't be used"),
        ("gpus: -1", "slurm.gpus"),
        ("environment: {a b: 1}", "environment: 'a b' can't be used"),
        ("environment: {PGPASSWORD: x}", "PGPASSWORD would stand in the script; use ~/.pgpass"),
        ("extra: [exclude=n01]", "'exclude=n01' is no option of sbatch"),
        ("extra: [--array=0-9]", "--array is set by ensq"),
        ("extra: [-J mine]", "--job-name is set by ensq"),
        ("extra: ['--mail-type=END # x']", "a character that ends a directive"),
        ("scratch: $(rm -r x)", "scratch: the path of a folder"),
        ("workers_per_gpu: 2\n  gpus: 2", "workers_per_gpu is for workers that share one GPU"),
        ("workers_per_gpu: 2\n  processes: 2", "processes for one worker that takes"),
        ("partitions: gpu", "did you mean partition?"),
        ("command: ''", "command is empty"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, line: str, expected: str) -> None:
    place = Place(tmp_path, 2, f"\nslurm:\n  {line}\n")
    _, told = place.submit("tiny.yaml", code=2)
    assert expected in told
    assert "slurm" in told
    assert not (tmp_path / "ensq.db").exists()
    assert place.calls() == []


def test_wrong_options_are_named(place: Place) -> None:
    assert "time: 'soon'" in place.submit("tiny.yaml", "--time", "soon", code=2)[1]
    assert "is no option of sbatch" in place.submit("tiny.yaml", "--extra", "x", code=2)[1]
    _, told = place.submit("nobody", code=69)
    assert "ensq.db" in told
    place.run("enqueue", "tiny.yaml")
    assert "no ensemble 'nobody'" in place.submit("nobody", code=2)[1]
    assert "go with a configuration" in place.submit("tiny", "--n-models", "5", code=2)[1]
    assert place.calls() == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 5400), ("90:30", 5430), ("12:00:00", 43200), ("2-00", 172800)),
        *(("1-12:30", 131400), ("1-00:00:01", 86401)),
    ],
)
def test_limits_are_read_as_sbatch_reads_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds
    assert SlurmConfig(time=text).seconds == seconds


def test_what_sbatch_refuses_is_said_and_nothing_is_lost(place: Place) -> None:
    place.stub("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    _, told = place.submit("tiny.yaml", code=1)
    assert "sbatch refused" in told
    assert "invalid partition specified: gpu" in told
    assert "the members stay queued" in told
    place.stub("sbatch", "echo what is this")
    assert "what is this" in place.submit("tiny", code=1)[1]
    (place.bin / "sbatch").unlink()
    _, told = place.submit("tiny", code=1, PATH=f"{place.bin}")
    assert "sbatch is not found; call it where SLURM is" in told


def test_an_sbatch_that_hangs_may_have_submitted(place: Place, monkeypatch: Any) -> None:
    from ensq import submit
    from ensq.errors import EnsqError

    monkeypatch.setattr(submit, "_SBATCH_SECONDS", 0.5)
    place.stub("sbatch", "exec sleep 30")
    target = Target.parse(place.folder / "ensq.db")
    script = place.folder / "job.sh"
    planned = submit.Submission(
        ensemble="tiny",
        open_members=1,
        here_already=0,
        workers=1,
        script=script,
        text="",
        output="",
    )
    with pytest.raises(EnsqError, match=r"may have submitted .* squeue --me"):
        submit.submit(planned, target, {"PATH": f"{place.bin}:/usr/bin:/bin"})


def test_inside_a_job_nothing_of_that_job_goes_on(place: Place) -> None:
    inside = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_CONF": "/etc/x", "OTHER": "kept"}
    place.submit("tiny.yaml", **inside)
    variables = (place.folder / "sbatch.env").read_text()
    assert "SLURM_JOB_ID" not in variables
    assert "SLURM_NTASKS" not in variables
    assert "SLURM_CONF=/etc/x" in variables
    assert "OTHER=kept" in variables


def planned(folder: Path, url: str, **settings: Any) -> str:
    target = Target.parse(url)
    run = RunDir.of(folder, "runs/e")
    made = plan(
        ensemble="e",
        run=run,
        target=target,
        settings=msgspec.convert(settings, SlurmConfig),
        workers=1,
        folder=folder,
    )
    return sbatch_text(made)


def test_passwords_are_in_no_script(tmp_path: Path) -> None:
    text = planned(tmp_path, "postgresql://me:secret@host/queue")
    assert "secret" not in text
    assert "ENSQ_DB:?" in text
    text = planned(tmp_path, "postgresql://me@host/queue")
    assert "export ENSQ_DB=postgresql://me@host/queue\n" in text
    assert f"export ENSQ_ROOT={Path.cwd()}\n" in text


def test_folders_with_spaces_and_percents(tmp_path: Path) -> None:
    folder = tmp_path / "my runs 100%"
    folder.mkdir()
    text = planned(folder, str(folder / "ensq.db"))
    assert f'#SBATCH --chdir="{folder}"\n' in text
    assert f'#SBATCH --output="{tmp_path}/my runs 100%%/runs/e/slurm/%A_%a.out"\n' in text
    bad = tmp_path / 'a"b'
    bad.mkdir()
    with pytest.raises(UsageError, match="rename the folder"):
        planned(bad, str(bad / "ensq.db"))


def test_another_text_gets_another_name_and_the_same_one_the_same(tmp_path: Path) -> None:
    one = planned(tmp_path, "ensq.db", time="60")
    assert one == planned(tmp_path, "ensq.db", time="60")
    name = one.partition("workers-")[2][:10]
    assert name not in planned(tmp_path, "ensq.db", time="61")
