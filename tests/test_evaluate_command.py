"""The command `ensq evaluate` on a run and on an export folder: factors kept and used, refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ensemble_tools import with_losses
from train_tools import tiny_arrays

from ensq import evaluating, exports, load_ensemble, modelfiles
from ensq.calibrating import read_stored
from ensq.calibrating import store as keep
from ensq.calibration import stored
from ensq.cli import cli
from ensq.config.structs import KeysConfig, UnitsConfig
from ensq.data.converting import convert_set
from ensq.ensemble import LoadedEnsemble
from ensq.errors import DataError, MismatchError, UsageError
from ensq.observing import Options
from ensq.publish import publish
from ensq.rundir import sha256
from ensq.units import ENERGY

MEMBERS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database with four untrained members (forces alone), and their export folder."""
    folder = tmp_path_factory.mktemp("command")
    store, _ = with_losses(folder, [0.5] * MEMBERS)
    export(folder)
    yield folder
    store.close()


def export(folder: Path) -> Path:
    """What finalize writes of the members, without the models for LAMMPS."""
    members = load_ensemble("tiny", db=str(folder / "ensq.db")).members
    files = modelfiles.all_members(members.config, members.results, range(MEMBERS))
    about = {
        "ensemble": members.name,
        "member_files": list(files),
        "files": {name: sha256(content) for name, content in files.items()},
    }
    target = next((folder / "runs").iterdir()) / "exported_models"
    text = json.dumps(about).encode()
    publish(target, {**files, exports.METADATA: text}, exports.previous_files(target))
    return target


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    return next((run / "runs").iterdir()) / "exported_models"


@pytest.fixture(scope="module")
def ensemble(run: Path) -> LoadedEnsemble:
    return load_ensemble("tiny", db=str(run / "ensq.db"))


def command(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[str, str]:
    """What the command prints (out, err)."""
    cli.main(["evaluate", *map(str, arguments)], standalone_mode=False)
    said = capsys.readouterr()
    return said.out, said.err


def test_factors_are_fitted_on_a_part_kept_and_used(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run / "tiny.npz"
    out, err = command(capsys, folder, data, "--calibration-fraction", 0.3, "--store", "--json")
    told = json.loads(out)
    assert "predicting: 40 of 40 frames" in err
    assert told["calibration"]["fitted_frames"] == 12
    assert [Path(name).name for name in told["files"]] == [
        *("evaluation-tiny.json", "evaluation-tiny.npz", "calibration.json"),
    ]
    assert all(Path(name).exists() for name in told["files"])
    alpha = {f["how"]: f["alpha"]["value"] for f in told["calibration"]["forces"]["factors"]}
    kept = stored.read(folder, tuple(told["members"]))
    assert kept.report.forces is not None
    assert {f.how: f.alpha.value for f in kept.report.forces.factors if f.alpha} == alpha
    # the run's members are the folder's: their factors are found by its name too
    out, _ = command(capsys, "tiny", "--db", run / "ensq.db", "--use-stored")
    assert max(map(len, out.split("files:")[0].splitlines())) <= 80
    assert "best epochs were chosen on these frames" in out
    assert "no energies: they were not trained" in out
    assert "kcal/mol/Angstrom per component" in out
    assert "judged on 10 frames" in out
    assert "with noise" in out and "within 1 sigma, % (normal 68.27, like members " in out
    analysis = next((run / "runs").iterdir()) / "analysis"
    assert (analysis / "evaluation-validation.json").exists()


def test_a_file_with_other_names_and_units(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same frames in eV and nm, forces under another name: the same figures."""
    arrays = tiny_arrays()
    per_ev = 1 / ENERGY["eV"] * ENERGY["kcal/mol"]
    other = dict(arrays) | {"R": arrays["R"].astype(np.float64) / 10}
    del other["F"], other["U"]
    other["dft"] = arrays["F"].astype(np.float64) * per_ev * 10
    np.savez(tmp_path / "tiny.npz", **other)
    asked = ("--units", "eV,nm", "--key", "F=dft")
    out, _ = command(capsys, folder, run / "tiny.npz", "--json", "-o", tmp_path / "a")
    expected = json.loads(out)["forces"]
    out, _ = command(capsys, folder, tmp_path / "tiny.npz", *asked, "--json", "-o", tmp_path / "b")
    found = json.loads(out)
    assert found["forces"]["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)
    assert found["forces"]["unit"] == expected["unit"] == "kcal/mol/Angstrom"
    told = "read as was asked for, in eV and nm; F from the array 'dft'"
    assert f"{tmp_path / 'tiny.npz'}: {told}" in found["notes"]
    # the controls: without one of the two
    with pytest.raises(DataError, match="no labels"):
        command(capsys, folder, tmp_path / "tiny.npz", "--units", "eV,nm", "-o", tmp_path / "c")
    with pytest.raises(DataError, match="give --units ENERGY,nm"):
        command(capsys, folder, tmp_path / "tiny.npz", "--key", "F=dft", "-o", tmp_path / "c")
    with pytest.raises(DataError, match="--key F=NAME is 'dfg'"):
        command(capsys, folder, tmp_path / "tiny.npz", "--units", "eV,nm", "--key", "F=dfg")
    with pytest.raises(UsageError, match="are of a data file"):
        command(capsys, "tiny", "--db", run / "ensq.db", *asked)
    # the file for the fit is read so too, and a converted set as it says
    made = convert_set(run / "tiny.npz", tmp_path / "set", units=UnitsConfig(), keys=KeysConfig())
    fit = ("--calibration", tmp_path / "tiny.npz")
    out, _ = command(capsys, "tiny", "--db", run / "ensq.db", *fit, *asked, "--json")
    found = json.loads(out)
    assert found["calibration"]["fitted_frames"] == 40
    assert f"{tmp_path / 'tiny.npz'}: {told}" in found["notes"]
    out, _ = command(capsys, folder, made.path, *fit, *asked, "--json", "-o", tmp_path / "d")
    assert json.loads(out)["forces"]["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)


def test_a_converted_set_is_read_as_it_says(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = convert_set(run / "tiny.npz", tmp_path / "set", units=UnitsConfig(), keys=KeysConfig())
    for asked in (("--key", "F=x"), ("--units", "eV,nm")):
        with pytest.raises(UsageError, match="a converted set knows its own"):
            command(capsys, folder, made.path, *asked)
    with pytest.raises(UsageError, match="names of its own: leave --key out"):
        load_ensemble(folder).read(made.path, keys={"F": "x"})
    wrong = ["predict", str(folder), str(made.path), "--units", "eV,nm"]
    with pytest.raises(DataError, match="--units says eV and nm: leave --units out"):
        cli.main(wrong, standalone_mode=False)


def test_factors_outlive_another_export_and_not_other_members(
    run: Path, folder: Path, ensemble: LoadedEnsemble
) -> None:
    report = evaluating.evaluate(ensemble, Options(data=run / "tiny.npz", fit=True, draws=200))
    path = keep(ensemble, report)
    before = path.read_bytes()
    assert export(run) == folder and path.read_bytes() == before
    assert read_stored(ensemble.members).members == ensemble.members.digests
    # negative control: one that finalize takes for its own file would be gone
    publish(folder, {}, {stored.FILE})
    assert not path.exists()
    keep(ensemble, report)
    swapped = dataclasses.replace(ensemble.members, digests=ensemble.members.digests[::-1])
    with pytest.raises(MismatchError, match="of other members"):
        read_stored(swapped)


def test_a_file_of_its_own_for_the_fit(run: Path, ensemble: LoadedEnsemble, tmp_path: Path) -> None:
    arrays = tiny_arrays()
    parts = {"fit": np.arange(0, 30), "rest": np.arange(30, 40)}
    for name, chosen in parts.items():
        whole = {"R", "F", "U", "mask"}
        np.savez(
            tmp_path / f"{name}.npz",
            **{key: a[chosen] if key in whole else a for key, a in arrays.items()},
        )
    options = Options(data=tmp_path / "rest.npz", calibration=tmp_path / "fit.npz", draws=200)
    found = evaluating.evaluate(ensemble, options).evaluation
    assert found.calibration is not None and found.calibration.forces is not None
    assert (found.calibration.fitted_frames, found.calibration.judged_frames) == (30, 10)
    fitted = evaluating.evaluate(ensemble, Options(data=tmp_path / "fit.npz", draws=200)).evaluation
    assert found.calibration.forces.count == 3 * int(arrays["mask"][:30].sum())
    assert fitted.forces is not None
    same = dataclasses.replace(options, calibration=tmp_path / "rest.npz")
    with pytest.raises(UsageError, match="judged on"):
        evaluating.evaluate(ensemble, same)


def test_what_cannot_be_evaluated_is_refused_in_words(
    run: Path, folder: Path, ensemble: LoadedEnsemble, tmp_path: Path
) -> None:
    alone = LoadedEnsemble(load_ensemble(folder).members)
    with pytest.raises(UsageError, match="name a data file"):
        evaluating.evaluate(alone, Options())
    with pytest.raises(UsageError, match="has one member, and so no spread"):
        evaluating.evaluate(ensemble.member(0), Options(fit=True))
    with pytest.raises(UsageError, match="not both"):
        evaluating.evaluate(ensemble, Options(fit=True, use_stored=True))
    with pytest.raises(UsageError, match="no factors were fitted"):
        keep(ensemble, evaluating.evaluate(ensemble, Options(data=run / "tiny.npz", draws=200)))
    arrays = {key: value for key, value in tiny_arrays().items() if key not in "FU"}
    np.savez(tmp_path / "bare.npz", **arrays)
    with pytest.raises(DataError, match=r"no labels .* no forces: the data have none"):
        evaluating.evaluate(ensemble, Options(data=tmp_path / "bare.npz"))
    moved = dataclasses.replace(ensemble.members, data=tmp_path / "bare.npz")
    with pytest.raises(MismatchError, match="the data have changed since the training"):
        evaluating.evaluate(LoadedEnsemble(moved), Options())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--use-stored", "--store"), "leave --store out"),
        (("--calibration", "{run}/tiny.npz", "--fit"), "which is it"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: tuple[str, ...], named: str, run: Path
) -> None:
    given = [option.format(run=run) for option in options]
    with pytest.raises(UsageError, match=named):
        cli.main(["evaluate", "tiny", "--db", f"{run}/ensq.db", *given], standalone_mode=False)


def test_one_member_has_errors_and_no_uncertainty(run: Path, ensemble: LoadedEnsemble) -> None:
    one = evaluating.evaluate(ensemble.member(2), Options(data=run / "tiny.npz", draws=200))
    whole = evaluating.evaluate(ensemble, Options(data=run / "tiny.npz", draws=200)).evaluation
    found = one.evaluation
    assert found.forces is not None and whole.forces is not None
    assert found.forces.spread is None
    assert any("a single member has no spread" in note for note in found.notes)
    assert found.forces.rmse.value == pytest.approx(whole.forces.members[2].rmse.value, rel=1e-5)
    assert "NaN" not in json.dumps(dataclasses.asdict(found))


@pytest.mark.slow
def test_factors_outlive_finalize_itself(tmp_path: Path) -> None:
    from ensq.finalize import finalize

    store, ensemble = with_losses(tmp_path, [0.5] * MEMBERS)
    done = finalize(store, ensemble)
    loaded = load_ensemble("tiny", db=str(tmp_path / "ensq.db"))
    assert loaded.members.digests == load_ensemble(done.folder).members.digests
    options = Options(data=tmp_path / "tiny.npz", fit=True, draws=200)
    path = keep(loaded, evaluating.evaluate(loaded, options))
    before = path.read_bytes()
    shutil.rmtree(done.folder / "analysis", ignore_errors=True)
    assert finalize(store, ensemble).folder == done.folder
    assert path.read_bytes() == before
    store.close()
