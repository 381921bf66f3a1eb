"""What a report says of errors, uncertainty, comparisons, decisions and dynamics."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import report_tools
from click.testing import CliRunner
from report_tools import (
    Page,
    a_simulation,
    observed,
    report_of,
    with_results,
    with_rows,
    without_models,
)
from scipy import stats
from store_tools import claim_of

from ensq import evaluation, exports, simulation, trained
from ensq.cli import cli
from ensq.errors import DataError
from ensq.report import build, drawing, evaluated, known
from ensq.report.numbers import plain


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without a drawing, which would take most of the time."""
    monkeypatch.setattr(drawing, "_svg", lambda *about: b"<svg/>")
    monkeypatch.setattr(drawing, "_png", lambda *about: b"png")


@pytest.fixture
def store_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An ensemble of three members that was evaluated."""
    store, ensemble = with_results(tmp_path, (4.0, 2.25, 3.0))
    without_models(monkeypatch)
    evaluated.make(trained.from_store(store, ensemble))
    return store, ensemble


def rows_of(report: build.Report, name: str) -> list[dict[str, str]]:
    return report_tools.rows_of(report.files[f"report-{name}.csv"])


def test_errors_are_those_of_all_components(store_of: Any) -> None:
    store, ensemble = store_of
    made = observed(trained.from_store(store, ensemble))
    assert made.forces is not None
    report = report_of(store, ensemble)
    page = Page(report.html)
    error = made.forces.error.astype(np.float64)
    row = page.row("mean of the members")
    assert row[1].startswith(three(np.sqrt((error**2).mean())))
    assert row[2].startswith(three(np.abs(error).mean()))
    for place, seed in enumerate(made.seeds):
        mse = made.forces.member_squares[place].sum() / error.size
        assert page.row(f"seed {seed}")[1].startswith(three(np.sqrt(mse)))
    assert f"{error.size:,} components of forces on beads" in page.text


def three(value: float) -> str:
    """Three digits, which is what intervals of 40 frames leave at least."""
    return plain(value, 3)[:3]


def test_parity_has_labels_and_predictions(store_of: Any) -> None:
    store, ensemble = store_of
    made = observed(trained.from_store(store, ensemble))
    assert made.forces is not None and made.energies is not None
    rows = rows_of(report_of(store, ensemble), "parity-validation")
    forces = [row for row in rows if row["quantity"] == "force"]
    assert [float(row["predicted"]) for row in forces] == made.forces.mean.reshape(-1).tolist()
    label = made.forces.mean.astype(np.float64) - made.forces.error
    assert np.allclose([float(row["label"]) for row in forces], label.reshape(-1), atol=1e-5)
    energies = [row for row in rows if row["quantity"] == "energy"]
    assert [float(row["predicted"]) for row in energies] == made.energies.mean.tolist()


def test_the_curve_is_the_share_of_errors_within_each_interval(store_of: Any) -> None:
    store, ensemble = store_of
    made = observed(trained.from_store(store, ensemble))
    assert made.forces is not None and made.forces.sigma is not None
    report = report_of(store, ensemble)
    z = np.abs(made.forces.error.astype(np.float64) / made.forces.sigma).reshape(-1)
    rows = [row for row in rows_of(report, "sigma-forces-validation") if row["what"] == "curve"]
    assert len(rows) == 101
    for row in rows[1:-1]:
        inside = (z <= stats.norm.ppf(0.5 + float(row["x"]) / 2)).mean()
        assert float(row["y"]) == pytest.approx(inside, abs=1 / len(z) + 1e-12)
    page = Page(report.html)
    share = round(100 * (z <= 1).mean())
    assert f"{share} %" in page.words
    assert "the spread is too small for the errors" in page.text


def test_errors_by_species_and_place_are_those_of_their_beads(store_of: Any) -> None:
    store, ensemble = store_of
    made = observed(trained.from_store(store, ensemble))
    assert made.forces is not None
    report = report_of(store, ensemble)
    error = made.forces.error.astype(np.float64)
    for place, row in enumerate(rows_of(report, "species-validation")):
        mine = error[made.forces.species == place]
        assert row["name"] == ("ALA", "GLY", "TRP")[place]
        assert float(row["rmse"]) == pytest.approx(np.sqrt((mine**2).mean()))
    rows = rows_of(report, "beads-validation")
    assert [(row["protein"], row["position"]) for row in rows] == [
        (protein, str(place)) for protein in ("one", "two") for place in range(5)
    ]
    second = made.forces.frame >= 20
    mine = error[second & (made.forces.place == 3)]
    assert float(rows[8]["rmse"]) == pytest.approx(np.sqrt((mine**2).mean()))


def test_each_evaluation_has_figures_of_its_own(store_of: Any) -> None:
    store, ensemble = store_of
    analysis = known.from_store(store, ensemble).analysis
    found = evaluation.read(evaluation.of_folder(analysis)[0])
    data = replace(found.evaluation.data, path='a b#1%"<i>.npz', validation=False)
    evaluation.write(analysis, replace(found, evaluation=replace(found.evaluation, data=data)))
    report = report_of(store, ensemble)
    page = Page(report.html)
    assert 'Frames of a b#1%"<i>.npz: 40' in page.words
    links = [held["href"] for name, held in page.elements if name == "a" and "href" in held]
    beside = [unquote(link) for link in links if link is not None and not link.startswith("#")]
    assert 'report-parity-a b#1%"<i>.csv' in beside
    assert set(beside) <= set(report.files)
    assert len(set(beside)) == len(beside)


def test_an_evaluation_of_other_members_is_not_used(store_of: Any) -> None:
    store, ensemble = store_of
    analysis = known.from_store(store, ensemble).analysis
    (path,) = evaluation.of_folder(analysis)
    found = evaluation.read(path)
    other = replace(found.evaluation, members=("x" * 64,) * 3)
    evaluation.write(analysis, replace(found, evaluation=other))
    text = Page(report_of(store, ensemble).html).text
    assert "is an evaluation of other members than those that are trained now" in text
    assert "components of forces on beads" not in text


def test_a_damaged_evaluation_is_a_note(store_of: Any) -> None:
    store, ensemble = store_of
    (path,) = evaluation.of_folder(known.from_store(store, ensemble).analysis)
    path.write_text("{")
    assert "no evaluation of" in Page(report_of(store, ensemble).html).text


def test_what_is_missing_is_named_with_its_command(tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 3.0))
    page = Page(report_of(store, ensemble).html)
    for command in ("ensq evaluate rows", "ensq simulate rows"):
        assert command in page.words


# -- the command evaluates what is missing -------------------------------------------------------


def run(folder: Path, *options: str) -> Any:
    return CliRunner().invoke(cli, ["report", "--db", str(folder / "ensq.db"), *options])


def test_the_command_evaluates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_results(tmp_path, (4.0, 2.25, None))
    done = without_models(monkeypatch)
    assert run(tmp_path, "--no-evaluate").exit_code == 0
    assert done == []
    first = run(tmp_path)
    assert first.exit_code == 0, first.output
    assert run(tmp_path).exit_code == 0
    assert done == ["rows"]


def test_an_evaluation_that_fails_is_a_note(tmp_path: Path, monkeypatch: Any) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 3.0))

    def fail(members: Any) -> None:
        raise DataError("set.npz: has no labels")

    monkeypatch.setattr(evaluated, "make", fail)
    assert run(tmp_path).exit_code == 0
    path = build.default_path(known.from_store(store, ensemble))
    assert "could not be evaluated: set.npz: has no labels" in Page(path.read_text()).text


# -- the comparison ------------------------------------------------------------------------------


def comparison(*seeds: int) -> dict[str, Any]:
    """As the metadata have it: the last member can be told apart."""
    return {
        "level": 0.95,
        "blocks": {"number": 20, "fewest_frames": 2, "most_frames": 2, "trajectories": 1},
        "best_seed": seeds[0],
        "corrected_loss": 2.4,
        "members": [
            {
                "seed": seed,
                "loss_error": 0.2,
                "difference": 0.25 * place,
                "difference_error": 0.11 if place else 0.0,
                "interval": [0.25 * place - 0.2, 0.25 * place + 0.2],
                "probability_best": (0.75, 0.2496, 0.0004)[place],
                "indistinguishable": place < 2,
            }
            for place, seed in enumerate(seeds)
        ],
    }


def test_which_may_be_the_best_is_told(tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 2.25, 3.0))
    found = replace(
        known.from_store(store, ensemble), metadata={"comparison": comparison(43, 44, 42)}
    )
    report = build.make(found, [], "report")
    page = Page(report.html)
    assert page.row("44", "+0.25 ± 0.11")[2:] == ["0.05 to 0.45", "25 %", "no"]
    assert page.row("42", "+0.50 ± 0.11")[3:] == ["< 0.1 %", "yes"]
    assert "Seed 44 can't be told apart from seed 43" in page.text
    assert "expect 2.4000 (kcal/mol/Å)² of the best on new frames" in page.text
    assert page.row("44", "done")[2:6] == ["3.00 ± 0.20", "+0.75 ± 0.11", "25 %", "="]
    assert "± the standard error over 20 blocks of 2 consecutive frames" in page.text
    head = report.files["report-differences.csv"].decode().splitlines()[0]
    assert "seed,difference [(kcal/mol/Angstrom)^2],error [(kcal/mol/Angstrom)^2],low [(" in head
    rows = rows_of(report, "differences")
    assert [float(row["probability_best"]) for row in rows] == [0.75, 0.2496, 0.0004]


def test_members_are_compared_before_they_are_finalized(tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 2.25, None, 3.0))
    results = trained.from_store(store, ensemble).results
    report = report_of(store, ensemble)
    rows = {row["seed"]: row for row in rows_of(report, "differences")}
    assert list(rows) == ["42", "43", "45"]
    for result in results:
        mean = result.force_errors.sum() / result.components.sum()
        assert float(rows[str(result.seed)]["difference"]) == pytest.approx(mean - 2.25)
    stale = {"comparison": comparison(43, 44, 42)}  # of an export with other members
    found = replace(known.from_store(store, ensemble), metadata=stale)
    assert rows_of(build.make(found, [], "report"), "differences") == list(rows.values())


# -- early stopping ------------------------------------------------------------------------------


def test_decisions_and_their_evidence_are_told(tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path, done=(12, 7, 3))
    claim, other = (claim_of(job) for job in store.jobs(ensemble.id)[1:])
    plateau = {"rule": "plateau", "epoch": 9, "since": 4, "reference": 83.2}
    told = json.dumps(plateau | {"settings": {"min_delta": 0.01}})
    store.decide(other, rule="plateau", evidence=told, stop=False, min_members=2)
    evidence = json.dumps({"rule": "own", "loss": 1.23456, "others": [1, 2], "<b>": None})
    store.decide(claim, rule="own", evidence=evidence, stop=True, min_members=2)
    report = report_of(store, ensemble)
    page = Page(report.html)
    row = page.row("43", "7")
    assert row[2:4] == ["own", "stopped"]
    assert page.row("42", "running")[0] == "42"
    assert page.row("44", "3")[2:4] == ["plateau", "would have been stopped"]
    assert "no loss below 83.2 by 1 % since epoch 4, 5 epochs before" in page.row("44", "3")[5]
    line = next(row for row in rows_of(report, "early") if row["rule"] == "own")
    assert (line["seed"], line["epoch"], line["rule"], line["evidence"]) == (
        *("43", "7", "own"),
        evidence,
    )


def test_members_that_do_not_count_are_left_out_of_the_choice(tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 2.25, 3.0))
    for sql in (
        "UPDATE jobs SET early = 'sigma' WHERE seed = 43",
        """UPDATE ensembles SET early_stopping = '{"statistics": "exclude"}'""",
    ):
        store._database.run(lambda c, sql=sql: c.exec_driver_sql(sql), write=True)
    ensemble = store.ensembles()[0]
    found = known.from_store(store, ensemble)
    assert found.best is not None
    assert found.best.seed == 44
    assert found.digests == trained.from_store(store, ensemble).digests
    report = build.make(found, [], "report")
    page = Page(report.html)
    assert page.row("43")[1] == "done (early: sigma), not counted"
    assert [row["seed"] for row in rows_of(report, "differences")] == ["42", "44"]


def test_without_early_stopping_it_is_said_to_be_off(tmp_path: Path) -> None:
    store, ensemble = with_rows(tmp_path)
    assert (
        "Off: every member is trained to its last epoch"
        in Page(report_of(store, ensemble).html).text
    )


# -- dynamics ------------------------------------------------------------------------------------


def test_a_simulation_is_told_with_its_verdict_and_its_distances(tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 3.0))
    analysis = known.from_store(store, ensemble).analysis
    analysis.mkdir(parents=True)
    simulation.write(analysis / "simulation-set.npz", a_simulation())
    report = report_of(store, ensemble)
    page = Page(report.html)
    assert "2 of 3 replicas came through <b>." in page.words
    assert "301.2 ± 2.5 K" in page.words
    assert page.row("1", "0.120")[2] == "a bond of 9 Angstrom"
    assert page.row("dihedral")[1:] == [
        *("0.123", "0.100 to 0.150", "0.010, at most 0.020", "12.5 degrees", "yes"),
    ]
    rows = rows_of(report, "dynamics-set")
    assert len(rows) == 5 * 3 - 2  # no look at a replica that was stopped
    assert [float(row["epsilon_max"]) for row in rows[:3]] == [1.0, 2.0, 3.0]
    assert len(rows_of(report, "distributions-set")) == 6


def test_a_simulation_by_other_members_is_a_note(tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 3.0))
    state = known.from_store(store, ensemble)
    state.analysis.mkdir(parents=True)
    path = state.analysis / "simulation-set.npz"
    simulation.write(path, a_simulation(members=("x" * 64,) * 2))
    text = Page(report_of(store, ensemble).html).text
    assert "simulation-set.npz is a simulation by other members than those that are" in text
    assert "came through" not in text
    simulation.write(path, a_simulation(members=state.digests))  # the control
    text = Page(report_of(store, ensemble).html).text
    assert "came through" in text and "by other members" not in text


def test_what_was_found_out_from_the_export_folder_is_told_by_name_too(store_of: Any) -> None:
    """Of two with one name that of the run counts."""
    store, ensemble = store_of
    state = known.from_store(store, ensemble)
    folder = exports.export_folder(store, ensemble, state.config, None)
    folder.mkdir(parents=True)
    (path,) = evaluation.of_folder(state.analysis)
    own = evaluation.read(path)
    for name in ("theirs.npz", "own.npz"):
        data = replace(own.evaluation.data, path=name, validation=False)
        report = replace(own, evaluation=replace(own.evaluation, data=data))
        evaluation.write(folder / "analysis", report)
    again = replace(own.evaluation, notes=("not the run's",))
    evaluation.write(folder / "analysis", replace(own, evaluation=again))
    simulation.write(folder / "analysis" / "simulation-set.npz", a_simulation(source="theirs"))
    simulation.write(state.analysis / "simulation-both.npz", a_simulation(source="the run's"))
    simulation.write(folder / "analysis" / "simulation-both.npz", a_simulation(source="not this"))
    assert "theirs" not in Page(report_of(store, ensemble).html).text  # no export: the control
    (folder / exports.METADATA).write_text(json.dumps({"ensemble": ensemble.name}))
    text = Page(report_of(store, ensemble).html).text
    assert "Frames of theirs.npz: 40" in text and "Frames of own.npz: 40" in text
    assert text.index("Validation frames: 40") < text.index("Frames of own.npz: 40")
    assert "From frames of theirs" in text and "From frames of the run's" in text
    assert "not this" not in text and "not the run's" not in text
    # another file of the same name; and what is of other members elsewhere is no loss
    data = replace(own.evaluation.data, path="own.npz", validation=False, digest="e" * 64)
    evaluation.write(state.analysis, replace(own, evaluation=replace(own.evaluation, data=data)))
    other = replace(own.evaluation, members=("x" * 64,) * 3)
    evaluation.write(folder / "analysis", replace(own, evaluation=other))
    text = Page(report_of(store, ensemble).html).text
    assert text.count("Frames of own.npz: 40") == 2 * text.count("Frames of theirs.npz: 40")
    assert "other members than" not in text


def test_a_damaged_simulation_is_a_note(tmp_path: Path) -> None:
    store, ensemble = with_results(tmp_path, (4.0, 3.0))
    analysis = known.from_store(store, ensemble).analysis
    analysis.mkdir(parents=True)
    (analysis / "simulation-x.npz").write_bytes(b"nothing")
    assert "no file of" in Page(report_of(store, ensemble).html).text


def test_a_report_of_rows_alone_loads_no_jax(tmp_path: Path) -> None:
    with_rows(tmp_path)
    code = (
        "import sys; from ensq.report import build, known; from ensq.store import Store\n"
        f"store = Store.open({str(tmp_path / 'ensq.db')!r}, read_only=True)\n"
        "known.from_store(store, store.ensembles()[0]); assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
