"""Commands: help, errors in one line with their exit codes, and what may be done twice."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from ensemble_tools import ensq, write_config

COMMANDS = (
    *("run", "enqueue", "worker", "status", "finalize", "export", "retry", "cancel", "config"),
    *("hold", "release", "show", "drain", "reap", "priors", "db", "doctor", "predict"),
    *("evaluate", "simulate"),
)


@pytest.fixture
def queued(tmp_path: Path) -> Path:
    """A folder with three queued members."""
    write_config(tmp_path, 3)
    done = ensq("enqueue", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_within_80_columns(command: str, tmp_path: Path) -> None:
    done = ensq(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version_is_told(tmp_path: Path) -> None:
    from ensq import __version__

    assert __version__ in ensq("--version", cwd=tmp_path).stdout


def one_line(text: str) -> str:
    """The text of an error, which must be one line and no traceback."""
    assert "Traceback" not in text
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


WRONG = {
    "unknown key": (("model.cutof=4",), "model.cutof"),
    "wrong type": (("training.stages.0.epochs=two",), "training.stages.0.epochs"),
    "number read as text": (("optimizer.adam.lr=1e-3",), "1.0e-03"),
    "negative epochs": (("training.stages.0.epochs=-1",), "training.stages.0.epochs"),
    "no models": (("ensemble.n_models=0",), "ensemble.n_models"),
    "missing data": (("data.path=nowhere.npz",), "data.path"),
    "cutoff in nm": (("model.cutoff=0.01",), "no pair of beads is nearer (nearest "),
    "unknown optimizer": (("training.stages.0.optimizer=adm",), "adabelief"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configuration_is_one_clear_line_naming_the_key(case: str, tmp_path: Path) -> None:
    write_config(tmp_path)
    overrides, named = WRONG[case]
    options = [part for override in overrides for part in ("--set", override)]
    done = ensq("enqueue", "tiny.yaml", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert named in one_line(done.stderr)
    assert not (tmp_path / "ensq.db").exists(), "a wrong configuration made a database"


def test_a_factory_in_the_working_folder_is_found_without_being_imported(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.py").write_text("raise SystemExit('imported')")
    for module, code in (("pack.mine", 0), ("pack.other", 2), ("pack.mine.deeper", 2)):
        done = ensq("enqueue", "tiny.yaml", "--set", f"model.ml_model={module}:build", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert "imported" not in done.stdout
    painn = ensq("enqueue", "tiny.yaml", "--set", "model.ml_model=painn", cwd=tmp_path)
    assert painn.returncode == 2
    assert "painn is a model of the package chemutils, which can't be imported" in painn.stderr
    assert "pack.mine.deeper can't be imported: No module named 'pack.mine.deeper'" in done.stderr


def test_enqueue_tells_species_and_size_of_forces(tmp_path: Path) -> None:
    write_config(tmp_path)
    said = ensq("enqueue", "tiny.yaml", cwd=tmp_path).stdout
    # max_ell is 0 there
    assert "species: A, B, C (no elements: mirror images have one energy)\n" in said
    assert "kcal/mol/Angstrom (the error of predicting zero)\n" in said
    assert max(map(len, said.splitlines())) <= 80


def test_missing_configuration_is_one_line(tmp_path: Path) -> None:
    done = ensq("enqueue", "no.yaml", cwd=tmp_path)
    assert (done.returncode, one_line(done.stderr)) == (2, "ensq: no.yaml: no such file")


@pytest.mark.parametrize("command", ["status", "finalize", "worker", "retry"])
def test_missing_database_says_how_to_make_one(command: str, tmp_path: Path) -> None:
    done = ensq(command, cwd=tmp_path)
    assert done.returncode == 69
    assert "no database at" in one_line(done.stderr).replace("\n", " ")
    assert "ensq enqueue" in done.stderr
    assert not (tmp_path / "ensq.db").exists()


@pytest.mark.parametrize("command", ["status", "finalize"])
def test_empty_foreign_and_newer_databases_are_clear_errors(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE trials (id INTEGER)")
    foreign.commit()
    foreign.close()
    write_config(tmp_path)
    assert ensq("enqueue", "tiny.yaml", "--db", "newer.db", cwd=tmp_path).returncode == 0
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("UPDATE alembic_version SET version_num = '0999'")
    newer.commit()
    newer.close()
    for name, code, said in (
        ("empty.db", 69, "is empty"),
        ("foreign.db", 69, "another program"),
        ("newer.db", 78, "newer ensq"),
    ):
        done = ensq(command, "--db", name, cwd=tmp_path)
        assert done.returncode == code
        assert said in one_line(done.stderr)


def test_enqueue_twice_is_the_same_as_once_and_more_seeds_may_be_added(queued: Path) -> None:
    again = ensq("enqueue", "tiny.yaml", cwd=queued)
    assert again.returncode == 0
    assert "there already: 3 members, seeds 42-44" in again.stdout
    assert "new:" not in again.stdout
    more = ensq("enqueue", "tiny.yaml", "--n-models", 5, cwd=queued)
    assert "new: 2 members, seeds 45-46" in more.stdout


def test_same_name_with_another_configuration_is_refused_with_the_changed_keys(
    queued: Path,
) -> None:
    done = ensq("enqueue", "tiny.yaml", "--set", "optimizer.adam.lr=0.5", cwd=queued)
    assert done.returncode == 78
    assert "optimizer.adam.lr: 0.01 -> 0.5" in done.stderr
    other = ensq(
        "enqueue", "tiny.yaml", "--set", "optimizer.adam.lr=0.5", "--name", "b", cwd=queued
    )
    assert other.returncode == 0


def test_changed_data_are_refused_at_enqueue(queued: Path) -> None:
    import numpy as np
    from train_tools import tiny_arrays

    arrays = tiny_arrays()
    arrays["F"] = arrays["F"] * np.float32(2)
    np.savez(queued / "tiny.npz", **arrays)
    done = ensq("enqueue", "tiny.yaml", cwd=queued)
    assert done.returncode == 78
    assert "other data" in done.stderr


def test_status_names_the_next_step_and_fits_a_terminal(queued: Path) -> None:
    done = ensq("status", cwd=queued)
    assert done.returncode == 0
    assert "tiny: 3 queued" in done.stdout
    assert "next: `ensq worker`" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_cancel_and_retry_change_members_and_say_which(queued: Path) -> None:
    assert "cancelled: seeds 43" in ensq("cancel", "--seed", 43, cwd=queued).stdout
    assert "1 cancelled" in ensq("status", cwd=queued).stdout
    assert "queued again: seeds 43" in ensq("retry", cwd=queued).stdout
    assert "nothing to retry" in ensq("retry", cwd=queued).stdout
    unknown = ensq("retry", "--seed", 1, cwd=queued)
    assert unknown.returncode == 2
    assert "no seed 1" in one_line(unknown.stderr)


def test_unknown_ensemble_lists_those_there_are(queued: Path) -> None:
    done = ensq("status", "tinny", cwd=queued)
    assert done.returncode == 2
    assert "there are: tiny" in one_line(done.stderr)


def test_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    done = ensq("enqueue", "tiny.yaml", "--name", "../x", cwd=tmp_path)
    assert done.returncode == 2
    assert "can't be used" in one_line(done.stderr)


def test_traceback_comes_only_when_asked_for(tmp_path: Path) -> None:
    assert "Traceback" not in ensq("status", cwd=tmp_path).stderr
    assert "Traceback" in ensq("status", "-v", cwd=tmp_path).stderr


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "runs").write_text("a file where a folder must be")
    done = ensq("enqueue", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "runs" in one_line(done.stderr)
    assert "fault of ensq" not in done.stderr


def test_environment_names_the_database(queued: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = ensq("status", cwd=elsewhere, ENSQ_DB=str(queued / "ensq.db"))
    assert "3 queued" in done.stdout
