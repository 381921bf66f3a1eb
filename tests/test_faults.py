"""Test equipment is tested too: faults happen where and when the rules say, and never else."""

from __future__ import annotations

import errno
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensq import faults

PROGRAM = (
    "from ensq import faults\nfor _ in range(3): faults.point('a.b'); print('passed', flush=True)"
)


@pytest.fixture(autouse=True)
def without_rules_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    monkeypatch.undo()
    importlib.reload(faults)


def with_rules(monkeypatch: pytest.MonkeyPatch, *rules: Any) -> None:
    monkeypatch.setenv("ENSQ_FAULTS", json.dumps(rules))
    importlib.reload(faults)


def program(**rule: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={"ENSQ_FAULTS": json.dumps([{"point": "a.*"} | rule])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def errors(points: int = 6, name: str = "a.b", about: str = "") -> list[int]:
    """The passes, from 1, at which the point raises."""
    raised = []
    for number in range(1, points + 1):
        try:
            faults.point(name, about)
        except OSError:
            raised.append(number)
    return raised


def test_nothing_happens_unless_the_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSQ_FAULTS", "")
    importlib.reload(faults)
    assert errors() == []
    monkeypatch.delenv("ENSQ_FAULTS")
    importlib.reload(faults)
    assert errors() == []
    with_rules(monkeypatch, {"point": "a.b", "do": "error"})
    assert errors() == [1, 2, 3, 4, 5, 6]


def test_a_process_kills_itself_at_the_hit_it_was_told() -> None:
    process = program(do="kill", hit=3)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (-signal.SIGKILL, "passed\npassed\n")


def test_a_process_ends_itself_without_a_word() -> None:
    process = program(do="exit", hit=1)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == faults.EXIT_FAULT


def test_a_process_stops_itself_and_goes_on_when_it_is_let() -> None:
    process = program(do="stop", hit=2)
    until = time.monotonic() + 20
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=20)[0] == 3 * "passed\n"


def test_an_error_has_the_number_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rules(monkeypatch, {"point": "a.b", "do": "error", "errno": "ENOSPC"})
    with pytest.raises(OSError, match=r"No space left on device: 'fault at a\.b'") as caught:
        faults.point("a.b")
    assert caught.value.errno == errno.ENOSPC


def test_names_may_be_globs_and_hits_count_what_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rules(monkeypatch, {"point": "write.*", "do": "error", "hit": 2, "match": "attempt-1/"})
    assert errors(name="commit.before", about="attempt-1/x") == []
    assert errors(name="write.done", about="attempt-2/x") == []
    assert errors(name="write.done", about="attempt-1/x") == [2]
    with_rules(monkeypatch, {"point": "*", "do": "error"})
    assert errors(1, "anything") == [1]


def test_a_share_of_the_passes_is_chosen_and_the_same_one_by_the_same_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rule = {"point": "*", "do": "error", "probability": 0.3, "seed": 7}
    with_rules(monkeypatch, rule)
    first = errors(200)
    with_rules(monkeypatch, rule)
    assert errors(200) == first
    assert 30 < len(first) < 90
    with_rules(monkeypatch, {**rule, "seed": 8})
    assert errors(200) != first


def test_a_delay_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rules(monkeypatch, {"point": "*", "do": "delay", "seconds": 0.05})
    began = time.monotonic()
    faults.point("a")
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Expecting"),
        ("{}", "not a list"),
        ("[1]", "is no object"),
        (10_000 * "[", "ENSQ_FAULTS"),
        ('[{"do": "kill"}]', '"point" and "do"'),
        ('[{"point": "a", "do": "explode"}]', "one of kill, stop, exit, delay, error"),
        ('[{"point": "a", "do": "kill", "hits": 1}]', "unknown key 'hits'"),
        ('[{"point": "a", "do": "kill", "hit": 0}]', "counts from 1"),
        ('[{"point": "a", "do": "kill", "hit": true}]', "wrong type"),
        ('[{"point": "a", "do": "kill", "probability": 2}]', "from 0 to 1"),
        ('[{"point": "a", "do": "delay", "seconds": -1}]', "0 or more"),
        ('[{"point": "a", "do": "delay", "seconds": NaN}]', "0 or more"),
        ('[{"point": "a", "do": "error", "errno": "ENOTHING"}]', "no 'ENOTHING'"),
        ('[{"point": "a", "do": "error", "errno": "errorcode"}]', "no 'errorcode'"),
    ],
)
def test_what_is_no_list_of_rules_is_refused_by_the_variables_name(
    monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.setenv("ENSQ_FAULTS", text)
    with pytest.raises(ValueError, match="ENSQ_FAULTS: ") as caught:
        importlib.reload(faults)
    assert complaint in str(caught.value)
