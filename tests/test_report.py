"""The page and the files of a report: what they say, whatever is there and whatever is missing."""

from __future__ import annotations

import base64
import re
import sqlite3
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from report_tools import HOSTILE, Page, loss, report_of, rows_of, with_results, with_rows
from store_tools import LEASE, claim_of

from ensq import exports
from ensq.cli import cli
from ensq.errors import EnsqError
from ensq.jobs import Outcome
from ensq.report import build, curves, drawing, known
from ensq.report.numbers import plain, signed


def query(folder: Path, sql: str) -> list[Any]:
    with sqlite3.connect(folder / "ensq.db") as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without a drawing: drawing takes most of a report's time."""
    monkeypatch.setattr(drawing, "_svg", lambda *about: b"<svg/>")
    monkeypatch.setattr(drawing, "_png", lambda *about: b"png")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An ensemble in training, and its report."""
    folder = tmp_path_factory.mktemp("half")
    store, ensemble = with_rows(folder, done=(12, 7, 9))
    return folder, store, ensemble, report_of(store, ensemble)


def test_the_table_and_its_file_have_the_losses_of_the_database(half: Any) -> None:
    folder, _, _, report = half
    page, file = Page(report.html), rows_of(report.files["report-members.csv"])
    sql = "SELECT seed, state, best_loss, best_epoch, epoch, epochs FROM jobs ORDER BY position"
    found = query(folder, sql)
    assert [row["seed"] for row in file] == ["42", "43", "44"]
    lowest = min(row[2] for row in found)
    for row, (seed, state, best, at, epoch, epochs) in zip(file, found, strict=True):
        assert (float(row["best_loss"]), int(row["best_epoch"])) == (best, at)
        assert (row["state"], int(row["epochs_done"])) == (state, epoch)
        above = "–" if best == lowest else signed(best - lowest)
        cells = page.row(str(seed), "running")
        assert cells[2] == plain(best, 5)
        assert cells[3] == above
        assert cells[5:] == [str(at), f"{epoch} of {epochs}", "1"]


def test_the_curves_file_has_each_epoch_of_the_database(half: Any) -> None:
    folder, _, _, report = half
    file = rows_of(report.files["report-loss.csv"])
    found = query(
        folder,
        "SELECT seed, e.epoch, e.train_loss, e.val_loss, e.val_rmse_force, e.learning_rate "
        "FROM epochs e JOIN jobs ON jobs.id = e.job_id ORDER BY position, e.epoch",
    )
    keys = ("seed", "epoch", "train_loss", "val_loss", "val_rmse_force", "learning_rate")
    assert [tuple(float(row[key]) for key in keys) for row in file] == found
    assert len(found) == 12 + 7 + 9


def test_the_band_is_over_the_epochs_that_all_members_have(half: Any) -> None:
    _, store, ensemble, _ = half
    found = curves.band(known.from_store(store, ensemble).members)
    assert found is not None
    assert found.seeds == (42, 43, 44)
    assert found.epochs.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for place, epoch in enumerate(found.epochs):
        losses = [loss(seed, int(epoch)) for seed in (42, 43, 44)]
        assert found.mean[place] == pytest.approx(statistics.fmean(losses))
        assert found.std[place] == pytest.approx(statistics.pstdev(losses))


def test_the_band_leaves_out_members_that_failed(undrawn: None, tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path, done=(12, 7, 2))
    store.fail(claim_of(store.jobs(ensemble.id)[2]), Outcome.FAILURE, "boom", retry=False)
    found = curves.band(known.from_store(store, ensemble).members)
    assert found is not None
    assert (found.seeds, len(found.epochs)) == ((42, 43), 7)


def test_a_member_that_failed_is_plain_to_see(tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path, done=(12, 7, 2))
    before = report_of(store, ensemble).html
    store.fail(claim_of(store.jobs(ensemble.id)[2]), Outcome.FAILURE, "boom", retry=False)
    html = report_of(store, ensemble).html
    for mark in (
        '<strong class="failed">failed</strong>',
        "Crosses are the last epochs of members",
    ):
        assert mark in html
        assert mark not in before
    svg = base64.b64decode(html.partition("image/svg+xml;base64,")[2].partition('"')[0]).decode()
    assert "seed 44, failed" in svg
    assert "seed 42, the best" in svg


def test_paper_has_the_wide_figures_however_narrow_it_is(half: Any) -> None:
    sources = [attributes for name, attributes in Page(half[3].html).elements if name == "source"]
    assert sources
    assert all((one["media"] or "").startswith("screen and ") for one in sources)


def test_files_of_numbers_have_their_units(half: Any) -> None:
    head = half[3].files["report-loss.csv"].decode().splitlines()[0]
    assert "val_loss [(kcal/mol/Angstrom)^2],val_rmse_force [kcal/mol/Angstrom]," in head
    assert "best_loss [(kcal/mol/Angstrom)^2]" in half[3].files["report-members.csv"].decode()


def test_the_same_values_give_the_same_bytes_whatever_the_users_style(half: Any) -> None:
    import matplotlib

    _, store, ensemble, report = half
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None, "axes.grid": True}):
        again = report_of(store, ensemble)
    assert again.html == report.html
    assert again.files == report.files
    assert "2023-11-14 23:14:20 UTC" in report.html  # of the data, not of the clock


def test_the_page_needs_nothing_else(half: Any) -> None:
    page = Page(half[3].html)
    assert not {name for name, _ in page.elements} & {"script", "iframe", "object", "embed"}
    used = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "srcset", "href", "style")
    ]
    beside = [one for one in used if not re.match(r"data:image/svg\+xml;base64,|data:,|#", one)]
    assert sorted(set(beside)) == ["report-loss.csv", "report-speed.csv", "report-timeline.csv"]
    assert set(beside) <= set(half[3].files)
    assert "@import" not in half[3].html
    assert "url(" not in half[3].html


def test_each_figure_has_its_words_and_its_files(half: Any) -> None:
    report = half[3]
    images = [attributes for name, attributes in Page(report.html).elements if name == "img"]
    assert len(images) == 3
    assert all(len(one["alt"] or "") > 20 for one in images)
    for name in ("loss", "timeline", "speed"):
        assert report.files[f"report-{name}.png"].startswith(b"\x89PNG")
        assert report.files[f"report-{name}.csv"].count(b"\n") > 3


def test_who_trained_what_is_told(half: Any) -> None:
    folder, _, _, report = half
    page, file = Page(report.html), rows_of(report.files["report-timeline.csv"])
    found = query(
        folder,
        "SELECT seed, number, worker_id, a.started_at FROM attempts a JOIN jobs ON id = job_id "
        "ORDER BY position",
    )
    keys = ("seed", "attempt", "worker", "started_at")
    assert [tuple(row[key] for key in keys) for row in file] == [
        (str(seed), str(number), worker, repr(began)) for seed, number, worker, began in found
    ]
    assert page.row("A")[5:8] == ["2", "2", "19"]  # members, attempts, epochs 12 + 7
    assert page.row("B")[5:8] == ["1", "1", "9"]
    assert "None: no attempt ended before its member did." in page.text


def test_interruptions_are_told_with_their_reasons(undrawn: None, tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path, done=(12, 7, 2))
    jobs = store.jobs(ensemble.id)
    store.release([claim_of(jobs[0])], Outcome.INTERRUPTED, "time limit of SLURM")
    store.fail(claim_of(jobs[1]), Outcome.CRASH, "out of memory", retry=True)
    (again,) = store.claim("w2", limit=1, lease_seconds=LEASE)
    report = report_of(store, ensemble)
    page = Page(report.html)
    assert page.row("42", "1")[6:] == ["interrupted", "time limit of SLURM"]
    assert page.row("43", "1")[6:] == ["crashed", "out of memory"]
    assert page.row(str(again.seed), "2")[6:] == ["running", ""]
    outcomes = [row["outcome"] for row in rows_of(report.files["report-timeline.csv"])]
    assert sorted(outcomes) == ["", "", "crash", "interrupted"]


def test_no_text_of_others_becomes_markup(undrawn: None, tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path, name=HOSTILE, data_path=HOSTILE, run_path="runs/x")
    jobs = store.jobs(ensemble.id)
    store.fail(claim_of(jobs[0]), Outcome.FAILURE, HOSTILE, retry=False, log_tail=HOSTILE)
    store._database.run(
        lambda c: c.exec_driver_sql("UPDATE workers SET host = ?, device = ?", (HOSTILE, HOSTILE)),
        write=True,
    )
    report = report_of(store, ensemble)
    page = Page(report.html)
    assert HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\u001b") in page.words
    names = {name for name, _ in page.elements}
    assert not names & {"script", "iframe", "object", "embed"}
    assert not [key for _, held in page.elements for key in held if key.startswith("on")]
    assert "\u202e" not in report.html
    assert "\x1b" not in report.html


def test_markup_that_is_not_escaped_would_be_seen() -> None:
    page = Page(f"<p>{HOSTILE}</p>")
    assert "script" in {name for name, _ in page.elements}
    assert [key for _, held in page.elements for key in held if key.startswith("on")]


@pytest.mark.parametrize("count", [1, 45])
def test_ensembles_of_any_size_are_drawn(tmp_path: Path, count: int) -> None:
    store, ensemble = with_rows(tmp_path, seeds=range(42, 42 + count), epochs=2)
    page = Page(report_of(store, ensemble).html)
    assert f"0 of {count} trained" in page.text
    assert page.row("42", "running")[6:] == ["2 of 2", "1"]


def test_before_the_first_epoch_there_is_a_page(undrawn: None, tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path, done=(1, 1, 1))
    store._database.run(lambda c: c.exec_driver_sql("DELETE FROM epochs"), write=True)
    sql = "UPDATE jobs SET epoch = 0, best_loss = NULL, best_epoch = NULL, val_loss = NULL"
    store._database.run(lambda c: c.exec_driver_sql(sql), write=True)
    text = Page(report_of(store, ensemble).html).text
    assert "No epoch is recorded yet" in text
    assert "Members are compared as soon as two are trained." in text


def test_losses_that_are_no_number_are_gaps(tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path, done=(5, 5, 5))  # drawn: NaN is no trouble
    sql = "UPDATE epochs SET val_loss = NULL, train_loss = NULL WHERE epoch = 3 AND job_id = 1"
    store._database.run(lambda c: c.exec_driver_sql(sql), write=True)
    report = report_of(store, ensemble)
    assert "Gaps are epochs whose loss was not a finite number." in Page(report.html).text
    gap = rows_of(report.files["report-loss.csv"])[2]
    assert (gap["seed"], gap["epoch"], gap["val_loss"]) == ("42", "3", "")


# -- members that were trained ----------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trained")
    store, ensemble = with_results(folder)
    return folder, store, ensemble


def test_the_best_is_the_lowest_of_those_that_are_done(undrawn: None, trained: Any) -> None:
    _, store, ensemble = trained
    found = known.from_store(store, ensemble)
    assert found.best is not None
    assert (found.best.seed, found.best.rmse_force) == (43, 1.5)
    assert found.best.best_loss == pytest.approx(2.25)
    text = Page(build.make(found, ["look here"], "report").html).text
    assert "3 of 4 trained" in text
    assert "1 queued" in text
    assert "look here" in text


def test_standard_errors_are_those_of_the_frames(trained: Any) -> None:
    _, store, ensemble = trained
    found = known.from_store(store, ensemble)
    for member in found.finished:
        result = exports.read_member(store, ensemble, store.job_of(ensemble.name, member.seed))
        share = result.force_errors / result.components.mean()
        error = statistics.stdev(share.tolist()) / len(share) ** 0.5
        assert member.loss_error == pytest.approx(error, abs=1e-12)


def test_a_result_that_is_damaged_is_a_note(undrawn: None, tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path)
    job = store.job_of(ensemble.name, 42)
    path = store.root / ensemble.run_path / str(job.result_path)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    text = Page(report_of(store, ensemble).html).text
    assert "seed 42:" in text
    assert "damaged" in text


def test_an_export_folder_alone_has_a_report(undrawn: None, trained: Any, tmp_path: Path) -> None:
    from ensq import trained as members

    _, store, ensemble = trained
    metadata = {
        "ensemble": ensemble.name,
        "members": [{"seed": 43, "index": 1, "attempts": 5}],
        "missing_members": [{"index": 2, "seed": 44, "state": "failed", "error": HOSTILE}],
    }
    found = known.from_members(members.from_store(store, ensemble), metadata, "exported")
    page = Page(build.make(found, [], "report").html)
    assert page.row("43", "done")[-1] == "5"
    assert page.row("44", "failed")[2:] == ["–", "–", "–", "", "–", "–", "0 of 12", "0"]
    assert "An export folder does not tell who trained its members" in page.text
    assert "as its export folder tells" in page.text


# -- the command ----------------------------------------------------------


def ensq(folder: Path, *arguments: str) -> Any:
    from click.testing import CliRunner

    return CliRunner().invoke(cli, ["report", *arguments, "--db", str(folder / "ensq.db")])


def test_the_command_writes_the_page_and_what_goes_beside_it(
    undrawn: None, trained: Any, tmp_path: Path
) -> None:
    folder, _, ensemble = trained
    own = folder / ensemble.run_path / "analysis" / "report"
    own.mkdir(parents=True)
    for name in ("report-old.png", "report-old.csv", "mine.png"):
        (own / name).write_text("old")
    done = ensq(folder, ensemble.name)
    assert done.exit_code == 0, done.output
    assert f"wrote {own / 'report.html'}" in done.output
    assert sorted(path.name for path in own.iterdir()) == [
        "mine.png",
        "report-differences.csv",
        "report-differences.png",
        "report-loss.csv",
        "report-loss.png",
        "report-members.csv",
        "report-speed.csv",
        "report-speed.png",
        "report-timeline.csv",
        "report-timeline.png",
        "report.html",
    ]
    elsewhere = tmp_path / "mine.html"
    assert ensq(folder, "-o", str(elsewhere)).exit_code == 0
    assert elsewhere.read_text() == (own / "report.html").read_text().replace("report-", "mine-")


def test_a_name_that_is_not_there_is_told(trained: Any) -> None:
    done = ensq(trained[0], "nothing")
    assert isinstance(done.exception, EnsqError)
    assert "no ensemble 'nothing'" in str(done.exception)


def test_without_matplotlib_the_error_names_it(trained: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = ensq(trained[0])
    assert "pip install matplotlib" in str(done.exception)


# -- many members ----------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "epochs", "seconds", "megabytes"),
    [
        pytest.param(30, 100, 15, 1.5),
        pytest.param(100, 1000, 40, 3, marks=pytest.mark.slow),
    ],
)
def test_many_members_are_drawn_fast_and_small(
    tmp_path: Path, members: int, epochs: int, seconds: float, megabytes: float
) -> None:
    store, ensemble = with_rows(tmp_path, seeds=range(members), epochs=epochs)
    before = time.process_time()
    report = report_of(store, ensemble)
    assert time.process_time() - before < seconds
    assert len(report.html) < megabytes * 1e6
    assert report.files["report-loss.csv"].count(b"\n") == 1 + members * epochs
