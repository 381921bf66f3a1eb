"""``ensq config``: check, show, schema; and what ``enqueue`` says about an older file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from legacy_tools import NAMES, write_samples

from ensq import config
from ensq.cli import cli
from ensq.config.output import schema_text
from ensq.errors import ConfigError


def ensq(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_samples(tmp_path)


@pytest.fixture
def own(folder: Path) -> Path:
    """A file in ensq's form."""
    text = """
data: {path: dataset.npz}
model: {cutoff: 5.0}
training: {stages: [{optimizer: adam, epochs: 3}], val_fraction: 0.25}
"""
    (folder / "own.yaml").write_text(text)
    return folder / "own.yaml"


def test_check_says_that_a_file_is_valid(own: Path) -> None:
    done = ensq("config", "check", own)
    assert (done.exit_code, done.output) == (0, f"{own}: valid\n")


def test_check_lists_what_became_of_an_older_file(folder: Path) -> None:
    done = ensq("config", "check", folder / "two_stage.yaml")
    lines = done.output.splitlines()
    assert done.exit_code == 0
    assert lines[0].endswith("valid after translation from an older form")
    for line in (
        "translated:",
        "  optimizer.adabelief.decay_steps: 500 -> total_steps: 1000",
        "no effect here:",
        "traps of the older code, not inherited here:",
    ):
        assert line in lines
    assert all(len(line) <= 80 for line in lines[1:])


@pytest.mark.parametrize("name", NAMES)
def test_check_prints_the_notes_as_json(folder: Path, name: str) -> None:
    done = ensq("config", "check", folder / f"{name}.yaml", "--json")
    value = json.loads(done.stdout)
    assert value["older_form"] is True
    expected = config.load_with_notes(folder / f"{name}.yaml").notes
    assert value["notes"] == [
        {"kind": note.kind, "key": note.key, "text": note.text} for note in expected
    ]


def test_check_takes_overrides(own: Path) -> None:
    done = ensq("config", "check", own, "--set", "optimizer.yogi.lr=0.1")
    assert "optimizer.yogi: no effect: no stage names it" in done.output
    with pytest.raises(ConfigError, match=r"unknown key model\.cutof; did you mean cutoff\?"):
        CliRunner().invoke(
            cli, ["config", "check", str(own), "--set", "model.cutof=1"], catch_exceptions=False
        )


def test_check_with_data_counts_frames_and_steps(own: Path) -> None:
    """30 frames in batches of 32: one step an epoch."""
    done = ensq("config", "check", own, "--data", "--set", "optimizer.adam.warmup_steps=5")
    assert done.exit_code == 0, done.exception
    assert "data: 40 frames of 6 beads, 30 to train and 10 to validate" in done.output
    assert "training.stages.0: about 3 gradient steps, 5 of warm-up" in done.output
    (own.parent / "dataset.npz").unlink()
    assert ensq("config", "check", own, "--data").exit_code != 0
    assert ensq("config", "check", own).exit_code == 0


def test_check_with_data_tells_what_they_are(own: Path) -> None:
    done = ensq("config", "check", own, "--data", "--set", "training.gammas.U=1.0")
    said = done.output.splitlines()[2:8]
    assert said[0] == "species: A, B, C (no elements: mirror images may differ in energy)"
    assert re.fullmatch(
        r"rms of the forces: [\d.]+ kcal/mol/Angstrom \(the error of predicting zero\)", said[1]
    )
    assert re.fullmatch(r"energies: [-\d.]+ to [-\d.]+ kcal/mol", said[2])
    assert said[3] == "beads: 4 to 6, open boundaries"
    assert re.fullmatch(r"neighbours within 5 Angstrom: \d\.\d per bead \(a sample\)", said[4])
    assert said[5] == "gradient steps per epoch: about 1"
    assert all(len(line) <= 80 for line in said)
    value = json.loads(ensq("config", "check", own, "--data", "--json").stdout)["data"]
    assert (value["training_frames"], value["species"]) == (30, ["A", "B", "C"])
    assert (value["energy_min"], value["periodic"], value["proteins"]) == (None, False, {})
    assert json.loads(ensq("config", "check", own, "--json").stdout)["data"] is None
    energies = ("--set", "training.gammas={F: 0, U: 1}")
    assert "forces" not in ensq("config", "check", own, "--data", *energies).output


@pytest.mark.parametrize("name", NAMES)
def test_the_data_of_an_older_file_are_found_beside_it(folder: Path, name: str) -> None:
    network = "model.ml_model=allegro"  # MACE needs a package that is not here
    done = ensq("config", "check", folder / f"{name}.yaml", "--data", "--set", network)
    assert done.exit_code == 0, done.exception
    assert "data: 40 frames of 6 beads" in done.output


@pytest.mark.parametrize("name", NAMES)
def test_what_show_prints_is_the_same_configuration(folder: Path, name: str) -> None:
    before = config.load(folder / f"{name}.yaml")
    shown = ensq("config", "show", folder / f"{name}.yaml")
    (folder / "shown.yaml").write_text(shown.stdout)
    (folder / "splines.npz").unlink()  # they stand in the full form
    loaded = config.load_with_notes(folder / "shown.yaml")
    assert loaded.config == before
    assert config.digest(loaded.config) == config.digest(before)
    assert {note.kind for note in loaded.notes} <= {"hint"}


def test_show_has_the_order_of_the_structs_and_every_default(own: Path) -> None:
    tree = yaml.safe_load(ensq("config", "show", own, "--set", "seed=3").stdout)
    assert list(tree) == list(config.RunConfig.__struct_fields__)
    assert tree["seed"] == 3
    assert tree["optimizer"]["adam"]["lr"] == 1e-3
    assert json.loads(ensq("config", "show", own, "--set", "seed=3", "--json").stdout) == tree


def test_show_writes_a_row_of_a_spline_in_a_line(folder: Path) -> None:
    shown = ensq("config", "show", folder / "everything.yaml").stdout.splitlines()
    rows = [line for line in shown if line.strip().startswith("- [") and line.count(",") == 3]
    assert len(rows) == 3 * 4 + 2 * 4
    assert not any(line.lstrip().startswith(("&", "*")) for line in shown)


def test_schema_prints_the_schema() -> None:
    assert ensq("config", "schema").stdout == schema_text()


def test_enqueue_says_on_stderr_that_a_file_was_translated(folder: Path) -> None:
    path = folder / "two_stage.yaml"
    done = ensq("enqueue", path, "--db", folder / "ensq.db")
    assert done.exit_code == 0, done.exception
    said = done.stderr.splitlines()[0]
    assert said.startswith(f"{path} is in an older form: ")
    assert said.endswith(f"see `ensq config check {path}`")
    assert "older form" not in done.stdout
    written = folder / "runs" / "allegro_cg_protein" / "config.yaml"
    assert config.load(written) == config.load(path)


def test_enqueue_says_nothing_about_a_file_without_notes(own: Path) -> None:
    assert ensq("enqueue", own, "--db", own.parent / "ensq.db").stderr == ""
