"""The end of a SLURM job: asked at the start, and again, without waiting for the answer."""

from __future__ import annotations

import math
import stat
import time
from pathlib import Path

import pytest

from ensq import slurm
from ensq.slurm.deadline import LONGEST_PAUSE, DeadlineWatch

SHOW = "JobId=77 JobName=x StartTime=2026-11-25T15:00:00 EndTime={} Deadline=N/A"


def commands(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment of job 77 in which only these commands of SLURM exist, as shell scripts."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"SLURM_JOB_ID": "77", "PATH": f"{folder}:/usr/bin:/bin"}


def answer(watch: DeadlineWatch, seconds: float = 10.0) -> float | None:
    """The next answer, or None if none comes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        found = watch.poll()
        assert time.monotonic() - began < 1.0  # it never waits
        if found is not None:
            return found
        time.sleep(0.01)
    return None


def asked(folder: Path) -> int:
    path = folder / "asked"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (SHOW.format("1970-01-02T00:00:10"), 86410.0),
        (SHOW.format("Unknown"), None),
        ("slurm_load_jobs error: Invalid job id specified", None),
    ],
)
def test_the_end_is_read_as_scontrol_writes_it(text: str, seconds: float | None) -> None:
    assert slurm.parse_end_time(text) == seconds


def test_without_squeue_scontrol_is_asked(tmp_path: Path) -> None:
    show = f'test "$*" = "-o show job 77" && test "$TZ" = UTC && echo "{SHOW}"'
    environment = commands(tmp_path, squeue="exit 1", scontrol=show.format("1970-01-02T00:00:10"))
    assert slurm.deadline(environment) == 86410.0


def test_formats_that_the_user_likes_do_not_reach_the_commands(tmp_path: Path) -> None:
    script = 'test -z "$SQUEUE_FORMAT" && test "$SLURM_TIME_FORMAT" = standard && echo 1:00'
    environment = commands(tmp_path, squeue=script)
    environment |= {"SQUEUE_FORMAT": "%A", "SLURM_TIME_FORMAT": "relative"}
    assert slurm.deadline(environment, clock=lambda: 0.0) == 60.0


def test_an_array_element_is_asked_for_by_its_label(tmp_path: Path) -> None:
    """The raw id of the last element is that of the whole array."""
    environment = commands(tmp_path, squeue='test "$3" = 77_4 && echo 1:00')
    environment |= {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "4"}
    assert slurm.deadline(environment, clock=lambda: 0.0) == 60.0


def test_components_of_a_heterogeneous_job_end_with_the_first(tmp_path: Path) -> None:
    environment = commands(tmp_path, squeue="printf '2:00\\n1:00\\n'")
    assert slurm.deadline(environment, clock=lambda: 0.0) == 60.0


def test_no_limit_is_not_unknown(tmp_path: Path) -> None:
    assert slurm.deadline(commands(tmp_path, squeue="echo UNLIMITED")) == math.inf


def test_a_limit_that_was_moved_is_heard_of(tmp_path: Path) -> None:
    environment = commands(tmp_path, squeue="echo 10:00") | {"SLURM_JOB_END_TIME": "1000"}
    watch = DeadlineWatch(environment, known=1000.0, least_pause=0.0, clock=lambda: 900.0)
    watch._pause = 0.0
    assert answer(watch) == 900.0 + 600.0
    watch.close()


def test_a_squeue_that_hangs_is_ended_and_nothing_is_concluded(tmp_path: Path) -> None:
    environment = commands(tmp_path, squeue='echo $$ > "${0%/*}/pid"; exec sleep 60')
    watch = DeadlineWatch(environment, known=None, least_pause=0.0, timeout=0.3)
    watch._pause = 0.0
    assert answer(watch, 1.0) is None
    watch.close()
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("script", ["exit 1", "echo 1:00; exit 1", "echo rubbish", "echo NOT_SET"])
def test_an_answer_that_is_none_changes_nothing(tmp_path: Path, script: str) -> None:
    watch = DeadlineWatch(
        commands(tmp_path, squeue=script, scontrol="exit 1"), known=5.0, least_pause=0.0
    )
    watch._pause = 0.0
    assert answer(watch, 0.5) is None
    watch.close()


def test_where_there_is_no_command_it_asks_no_more(tmp_path: Path) -> None:
    watch = DeadlineWatch({"SLURM_JOB_ID": "77", "PATH": str(tmp_path)}, known=None)
    for _ in range(5):
        watch._pause = 0.0
        assert watch.poll() is None
    assert watch._questions == []
    watch.close()


def test_outside_slurm_nothing_is_asked(tmp_path: Path) -> None:
    watch = DeadlineWatch({"PATH": str(tmp_path)}, known=None)
    watch._pause = 0.0
    assert watch.poll() is None
    assert watch._process is None


@pytest.mark.parametrize(
    ("left", "least", "most"),
    [(30.0, 60.0, 78.0), (900.0, 300.0, 390.0), (86400.0, LONGEST_PAUSE, 1.3 * LONGEST_PAUSE),
     (math.inf, LONGEST_PAUSE, 1.3 * LONGEST_PAUSE)],
)  # fmt: skip
def test_no_job_storms_the_controller(left: float, least: float, most: float) -> None:
    pauses = {
        DeadlineWatch({}, known=1000.0 + left, clock=lambda: 1000.0)._pause for _ in range(20)
    }
    assert all(least <= pause <= most for pause in pauses)
    assert len(pauses) > 1  # jobs that began together drift apart


def test_it_asks_once_a_pause(tmp_path: Path) -> None:
    environment = commands(tmp_path, squeue='echo x >> "${0%/*}/asked"; echo 1:00:00')
    watch = DeadlineWatch(environment, known=time.time() + 3600)
    watch._pause = 0.0
    assert answer(watch) is not None
    assert answer(watch, 0.3) is None
    assert asked(tmp_path) == 1
    watch.close()
