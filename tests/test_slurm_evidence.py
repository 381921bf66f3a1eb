"""Questions to squeue and sacct: what they print is read with suspicion, and never waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_stub import printing, row, sacct_row, stub

from ensq.slurm import evidence
from ensq.slurm.evidence import Question, Row, parse_sacct, parse_squeue

# As SLURM 22.05 printed it on the test cluster, but for the word that ended the fields: an array
# of which 1_0 and 1_1 were requeued and one of them is held; a name with a line break in it.
SQUEUE = """\
1_4@1@0@0@lab@PENDING@JobArrayTaskLimit@@1795625608@ensq-chig@
1_5@1@0@0@lab@PENDING@JobArrayTaskLimit@@1795625608@ensq-chig@
1_1@7@1@0@lab@PENDING@JobArrayTaskLimit@@1795625691@ensq-chig@
4@4@0@0@lab@PENDING@Resources@@1795625608@ensq-big@
5@5@0@0@lab@PENDING@JobHeldUser@@1795625608@ensq-held@
1_0@6@1@0@lab@PENDING@JobHeldAdmin@@1795625687@ensq-chig@
1_3@9@0@0@lab@RUNNING@None@n1@1795625608@ensq-chig@
2@2@0@0@lab@RUNNING@None@n2@1795625608@other we"ird|x@
3@3@0@0@lab@RUNNING@None@n2@1795625608@ensq-nl
xx\x1fyy@
"""
SACCT = """\
2@2@0@lab@COMPLETED@n1@1795625720@ensq-b@
1_0@4@0@lab@REQUEUED@n1@1795625720@ensq-a@
1_0@4@0@lab@COMPLETED@n1@1795625725@ensq-a@
6_1@8@0@lab@CANCELLED by 0@n1@1795626517@ensq-chig@
6_2@9@0@lab@PENDING@None assigned@1795626540@ensq-chig@
"""


def seen(rows: list[Row]) -> list[tuple[object, ...]]:
    return [(found.label, found.restarts, found.state, found.reason) for found in rows]


def test_real_answer_of_squeue_is_read() -> None:
    rows = parse_squeue(SQUEUE, "@", 0, {"2"})
    assert seen(rows) == [
        ("1_4", 0, "PENDING", "JobArrayTaskLimit"),
        ("1_5", 0, "PENDING", "JobArrayTaskLimit"),
        ("1_1", 1, "PENDING", "JobArrayTaskLimit"),
        ("4", 0, "PENDING", "Resources"),
        ("5", 0, "PENDING", "JobHeldUser"),
        ("1_0", 1, "PENDING", "JobHeldAdmin"),
        ("1_3", 0, "RUNNING", None),
        ("2", 0, "RUNNING", None),
        ("3", 0, "RUNNING", None),
    ]
    assert rows[-1].name == "ensq-nl?xx?yy"
    assert (rows[6].node, rows[6].cluster, rows[6].job_id) == ("n1", "lab", "9")
    assert rows[0].submitted_at == 1795625608.0


def test_only_jobs_of_interest_are_kept() -> None:
    labels = {found.label for found in parse_squeue(SQUEUE, "@", 0, ())}
    assert "2" not in labels and "3" in labels
    assert parse_squeue(SQUEUE, "@", 1000, {"2"}) == []  # another user's, all of them


def test_real_answer_of_sacct_is_read_run_by_run() -> None:
    assert seen(parse_sacct(SACCT, "@", 0)) == [
        ("2", 0, "COMPLETED", None),
        ("1_0", 0, "REQUEUED", None),
        ("1_0", 1, "COMPLETED", None),
        ("6_1", 0, "CANCELLED", None),
        ("6_2", 0, "PENDING", None),
    ]
    assert parse_sacct(SACCT, "@", 0)[-1].node is None


@pytest.mark.parametrize(
    "line",
    [
        row(label="120_[3-7%4]"),
        row(label="x"),
        row(label="1" * 13),
        row(job_id=""),
        row(restarts=-1),
        row(restarts="N/A"),
        row(state="running"),
        row(state="RUN\x1b[2JNING"),
        row(state=""),
        row(uid="4711"),
        row(uid=""),
        row()[:-2],
        "@" * 5,
        "\n" * 10,
        "slurm_load_jobs error: Unable to contact slurm controller\n",
    ],
)
def test_row_that_is_not_as_it_should_be_is_left_out(line: str) -> None:
    found = parse_squeue(line, "@", os.getuid(), {"120_3", "123"})
    assert found == []


def test_row_as_it_should_be_is_not() -> None:
    """Negative control of the test before."""
    assert len(parse_squeue(row(), "@", os.getuid(), {"120_3"})) == 1


def test_values_are_made_fit_to_be_shown() -> None:
    (found,) = parse_squeue(
        row(reason="\x1b]0;owned\x07" + "x" * 500, submitted="soon", cluster="(null)"),
        "@",
        os.getuid(),
        (),
    )
    assert found.reason is not None and found.reason.isprintable() and len(found.reason) == 120
    assert found.submitted_at is None and found.cluster is None


def test_component_of_a_heterogeneous_job_goes_by_its_own_number() -> None:
    (found,) = parse_squeue(row(label="130+1", job_id="131"), "@", os.getuid(), {"131"})
    assert (found.label, found.job_id) == ("131", "131")


def runs(*labels: str, restarts: int | None = 0) -> list[tuple[str, int | None]]:
    return [(label, restarts) for label in labels]


def finish(question: Question, patience: float = 20.0) -> list[Row]:
    end = time.monotonic() + patience
    while (rows := question.poll()) is None:
        assert time.monotonic() < end, "no end of it"
        time.sleep(0.005)
    question.close()
    return rows


def test_question_brings_the_jobs_asked_for_first(tmp_path: Path) -> None:
    text = row("7", job_id="7", state="PENDING") + row("120_3") + row("9", name="other")
    question = Question(runs("120_3"), printing(text, tmp_path), accounting=False)
    rows = finish(question)
    assert [found.label for found in rows] == ["120_3", "7"]
    assert question.answered


def test_name_of_a_job_can_not_pass_for_another_row(tmp_path: Path) -> None:
    """Whatever the name is, the word that ends fields is not in it: it is made up each time."""
    forged = row("120_3", state="CANCELLED").replace("@", "~00000000~")
    text = row("7", job_id="7", name=f"ensq-x\n{forged}")
    rows = finish(Question(runs("120_3"), printing(text, tmp_path), accounting=False))
    assert [found.label for found in rows] == ["7"]
    naive = row("7", job_id="7", name=f"ensq-x@\n{row('120_3', state='CANCELLED')}")
    rows = finish(Question(runs("120_3"), printing(naive, tmp_path), accounting=False))
    assert "120_3" in {found.label for found in rows}  # who knew the word could


def test_sacct_is_asked_for_what_squeue_does_not_know(tmp_path: Path) -> None:
    printing(row("120_3"), tmp_path)
    text = sacct_row("99", job_id="99", state="NODE_FAIL")
    environment = printing(text, tmp_path, "sacct")
    question = Question(runs("120_3", "99"), environment)
    assert seen(finish(question)) == [("120_3", 0, "RUNNING", None), ("99", 0, "NODE_FAIL", None)]
    assert question.has_accounting


def test_sacct_is_asked_for_a_run_before_a_requeue(tmp_path: Path) -> None:
    """As after a power cut of a node: squeue knows the next run only."""
    printing(row("12_2", restarts=1, state="PENDING", reason="Resources"), tmp_path)
    text = sacct_row("12_2", state="NODE_FAIL") + sacct_row("12_2", state="PENDING")
    environment = printing(text, tmp_path, "sacct")
    assert seen(finish(Question(runs("12_2"), environment))) == [
        ("12_2", 1, "PENDING", "Resources"),
        ("12_2", 0, "NODE_FAIL", None),
    ]
    for known in (1, None):
        question = Question(runs("12_2", restarts=known), environment)
        assert seen(finish(question)) == [("12_2", 1, "PENDING", "Resources")]


def test_sacct_is_not_asked_where_squeue_failed_or_knows_all(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    stub(tmp_path, f"touch {asked}", "sacct")
    finish(Question(runs("120_3"), printing(row("120_3"), tmp_path)))
    question = Question(runs("120_3"), stub(tmp_path, "exit 1"))
    assert finish(question) == [] and not question.answered
    assert not asked.exists()
    finish(Question(runs("120_3"), printing("", tmp_path)))
    assert asked.exists()


@pytest.mark.parametrize("script", ["echo disabled >&2; exit 1", None])
def test_accounting_that_does_not_answer_is_noted(tmp_path: Path, script: str | None) -> None:
    environment = printing("", tmp_path) | {"PATH": f"{tmp_path}:/bin"}
    if script:
        stub(tmp_path, script, "sacct")
    else:
        environment["PATH"] = str(tmp_path)
        for tool in ("sed", "sh"):
            (tmp_path / tool).symlink_to(f"/bin/{tool}")
    question = Question(runs("1"), environment)
    assert finish(question) == []
    assert question.answered and not question.has_accounting


def test_squeue_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    question = Question(runs("1"), {"PATH": str(tmp_path)})
    assert question.poll() == [] and not question.answered


def test_what_squeue_says_as_it_fails_is_not_believed(tmp_path: Path) -> None:
    environment = printing(row(), tmp_path)
    stub(tmp_path, f'sed "s/@/$word/g" {tmp_path}/squeue.txt; exit 1')
    question = Question(runs("120_3"), environment)
    assert finish(question) == [] and not question.answered


def gone(pid: int, within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


HANGS = 'trap "" TERM; (trap "" TERM; sleep 300) & echo $! > "$TMPDIR/pid"; sleep 300'


def started(folder: Path) -> int:
    path = folder / "pid"
    end = time.monotonic() + 10
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return int(path.read_text())


def test_squeue_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    question = Question(runs("1"), stub(tmp_path, HANGS), timeout=0.5)
    pid = started(tmp_path)
    began = time.monotonic()
    assert finish(question) == [] and not question.answered
    assert time.monotonic() - began < 5
    assert gone(pid)


def test_question_that_is_closed_leaves_nothing_behind(tmp_path: Path) -> None:
    question = Question(runs("1"), stub(tmp_path, HANGS))
    pid = started(tmp_path)
    assert not gone(pid, within=0.1)  # negative control: it is there
    question.close()
    assert gone(pid)
    question.close()  # twice is the same


def test_squeue_ends_even_if_nobody_looks_after_it(tmp_path: Path) -> None:
    question = Question(runs("1"), stub(tmp_path, HANGS), timeout=0.3)
    assert gone(started(tmp_path), within=10.0)
    question.close()


def timed(question: Question) -> float:
    """The longest call of ``poll`` until the answer is there, in seconds of processor time."""
    worst = 0.0
    while True:
        before = time.process_time()
        rows = question.poll()
        worst = max(worst, time.process_time() - before)
        if rows is not None:
            question.close()
            return worst
        time.sleep(0.005)


FLOOD = 'yes "$word$word$word$word$word$word$word$word$word$word" | head -n 100000000'


def test_flood_ends_early_and_fills_no_disk(tmp_path: Path) -> None:
    began = time.monotonic()
    question = Question(runs("1"), stub(tmp_path, FLOOD), accounting=False, timeout=30.0)
    assert timed(question) < 0.5
    assert time.monotonic() - began < 15
    assert question.rows == []


def million(folder: Path) -> dict[str, str]:
    (folder / "line").write_text(row("55_1", name="somebody's"))
    return stub(
        folder,
        f'line="$(sed "s/@/$word/g" {folder}/line)"; yes "$line" | head -n 1000000',
    )


def test_million_jobs_are_read_as_far_as_there_is_room(tmp_path: Path) -> None:
    question = Question(runs("120_3"), million(tmp_path), accounting=False, timeout=30.0)
    assert timed(question) < 0.5
    assert question.rows == [] and question.answered


def test_file_of_an_answer_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_MOST_BYTES", 1000)
    text = "".join(row(f"120_{number}") for number in range(100))
    question = Question(runs("120_0"), printing(text, tmp_path), accounting=False)
    rows = finish(question)
    assert 1 < len(rows) < 10 and rows[0].label == "120_0"


@pytest.mark.parametrize("bytes_", [b"\xff\xfe\x00\x01" * 5000, bytes(range(256)) * 50, b""])
def test_rubbish_is_nothing(tmp_path: Path, bytes_: bytes) -> None:
    (tmp_path / "rubbish").write_bytes(bytes_)
    question = Question(runs("1"), stub(tmp_path, f"cat {tmp_path}/rubbish"), accounting=False)
    assert finish(question) == []


def test_labels_that_are_none_are_not_put_on_a_command_line(tmp_path: Path) -> None:
    printing("", tmp_path)
    environment = stub(tmp_path, f'echo "$@" > {tmp_path}/arguments', "sacct")
    finish(Question(runs("7", "--help", "1;rm", "120_3"), environment))
    arguments = (tmp_path / "arguments").read_text()
    assert "--jobs=120_3,7 " in arguments and "--help" not in arguments


def test_settings_of_people_for_their_own_squeue_are_not_passed_on() -> None:
    environment = {"SQUEUE_FORMAT": "%i", "SLURM_CLUSTERS": "all", "SLURM_CONF": "x", "PATH": "y"}
    kept = evidence.plain(environment)
    assert set(kept) == {"SLURM_CONF", "PATH", "SLURM_TIME_FORMAT", "LC_ALL"}


def test_most_rows_are_a_bounded_number(tmp_path: Path) -> None:
    text = "".join(row(f"55_{number}") for number in range(1000)) + row("120_3")
    rows = finish(Question(runs("120_3"), printing(text, tmp_path), accounting=False))
    assert rows[0].label == "120_3"
    assert len(rows) == 1 + evidence._MOST_OTHERS


def test_question_takes_no_descriptors(tmp_path: Path, leak: Callable[[], int]) -> None:
    before = leak()
    for script in ("exit 0", "exit 1", "kill -9 $$"):
        finish(Question(runs("1"), stub(tmp_path, script)))
    assert leak() == before


@pytest.fixture
def leak() -> Callable[[], int]:
    return lambda: len(os.listdir("/proc/self/fd"))
