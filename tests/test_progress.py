from __future__ import annotations

import io
import os
from typing import Any

import pytest

from ensq.jobs import Ensemble, Job, State
from ensq.progress import (
    Display,
    duration,
    member_line,
    progress_lines,
    summary_line,
    time_left_in_all,
)

ENSEMBLE = Ensemble(
    id=1,
    name="chignolin",
    config="{}",
    config_digest="c",
    data_path="d.npz",
    data_digest="d",
    run_path="runs/chignolin",
    created_at=0.0,
)


def member(index: int, **values: Any) -> Job:
    facts: dict[str, Any] = {
        "id": index + 1,
        "ensemble_id": 1,
        "index": index,
        "seed": 42 + index,
        "state": State.QUEUED,
        "attempt": 0,
        "owner": None,
        "lease_seconds": None,
        "beat": 0,
        "not_before": 0.0,
        "wish": None,
        "epochs": 8,
        "epoch": 0,
        "train_loss": None,
        "val_loss": None,
        "best_epoch": None,
        "best_loss": None,
        "seconds_per_epoch": None,
        "checkpoint": None,
        "previous_checkpoint": None,
        "result_path": None,
        "result_digest": None,
        "failures": 0,
        "crashes": 0,
        "losses": 0,
        "interruptions": 0,
        "strikes": 0,
        "stalls": 0,
        "error": None,
        "updated_at": 0.0,
    }
    return Job(**(facts | values))


def running(index: int, epoch: int, **values: Any) -> Job:
    facts = {
        "state": State.RUNNING,
        "epoch": epoch,
        "val_loss": 3.123456,
        "best_loss": 3.1,
        "best_epoch": 2,
        "seconds_per_epoch": 10.0,
    }
    return member(index, **(facts | values))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3900, "1 h 05 min"),
        (180000, "2 d 2 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_each_member_shows_state_epochs_losses_speed_and_time_left() -> None:
    lines = progress_lines(ENSEMBLE, [running(0, 3), member(1)])
    assert lines[0] == "chignolin: 1 queued, 1 running, 18 % of the epochs, about 2 min 10 s left"
    assert lines[1].split()[:3] == ["seed", "state", "epoch"]
    assert " ".join(lines[2].split()) == "42 running 3/8 3.1235 3.1000 2 10 50 s"
    assert " ".join(lines[3].split()) == "43 queued 0/8 - - - - -"


def test_time_left_counts_on_as_many_members_at_once_as_run_now() -> None:
    assert time_left_in_all([running(0, 4), running(1, 4)]) == 40.0
    assert time_left_in_all([running(0, 4), running(1, 4), member(2)]) == 80.0
    assert time_left_in_all([running(0, 8), member(1)]) == 80.0
    assert time_left_in_all([member(0)]) is None
    assert time_left_in_all([running(0, 0, seconds_per_epoch=None)]) is None


def test_cancelled_members_do_not_count_as_epochs_to_come() -> None:
    jobs = [running(0, 8, state=State.DONE), member(1, state=State.CANCELLED)]
    assert summary_line("x", jobs) == "x: 1 done, 1 cancelled, 100 % of the epochs"


def test_an_ensemble_without_members_has_a_line_too() -> None:
    assert summary_line("x", []) == "x: no members"


def test_a_low_terminal_gets_the_running_members_and_a_count_of_the_rest() -> None:
    jobs = [running(0, 8, state=State.DONE), *(member(i) for i in range(1, 9)), running(9, 1)]
    lines = progress_lines(ENSEMBLE, jobs, height=6)
    assert len(lines) == 6
    assert any(line.split()[:2] == ["51", "running"] for line in lines)
    assert not any(line.split()[:2] == ["42", "done"] for line in lines)
    assert lines[-1] == "  … and 7 more"
    for height in range(1, 6):
        assert len(progress_lines(ENSEMBLE, jobs, height=height)) <= height


def test_control_characters_in_an_error_do_not_reach_the_terminal() -> None:
    job = member(0, state=State.FAILED, error="bad \x1b]0;name\x07 thing")
    assert "\x1b" not in member_line(job)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_elsewhere_than_in_a_terminal_only_changes_are_printed() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream, interval=10.0, clock=clock)
    said: list[list[str]] = []

    def update(*jobs: Job, at: float) -> None:
        clock.now = at
        start = len(stream.getvalue())
        display.update(ENSEMBLE, jobs)
        said.append(stream.getvalue()[start:].splitlines())

    update(member(0), member(1), at=0)
    update(running(0, 0), member(1), at=1)
    update(running(0, 0), member(1), at=2)
    update(running(0, 1), member(1), at=3)
    update(running(0, 4), member(1), at=12)
    update(running(0, 8, state=State.DONE), running(1, 1), at=13)
    assert [len(lines) for lines in said] == [0, 1, 0, 0, 1, 2]
    assert said[4] == [
        "seed 42: running, epoch 4/8, val loss 3.1235, best 3.1000 (epoch 2), 10 s/epoch, 40 s left"
    ]
    display.close(ENSEMBLE, [running(0, 8, state=State.DONE), running(1, 2)])
    assert stream.getvalue().splitlines()[-1].startswith("chignolin: 1 running, 1 done")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_terminal_is_redrawn_in_place_and_lines_never_wrap() -> None:
    stream = io.StringIO()
    size = os.terminal_size((30, 24))
    display = Display(stream, terminal=True, size=lambda: size)
    display.update(ENSEMBLE, [running(0, 1), running(1, 1)])
    assert "\x1b[4F" not in stream.getvalue()
    display.update(ENSEMBLE, [running(0, 2), running(1, 1)])
    assert stream.getvalue().count("\x1b[4F") == 1  # two members, head and summary: four lines
    for line in stream.getvalue().split("\n"):
        plain = line.replace("\x1b[4F", "").replace("\x1b[K", "").replace("\x1b[J", "")
        assert len(plain) < 30
    display.close(ENSEMBLE, [running(0, 8), running(1, 8)])
    before = len(stream.getvalue())
    display.clear()
    assert len(stream.getvalue()) == before  # the last picture stays


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    stream = Tty()
    Display(stream).update(ENSEMBLE, [running(0, 1)])
    assert "\x1b" not in stream.getvalue()
