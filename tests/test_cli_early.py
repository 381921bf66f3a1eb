"""What people see of early stopping, and what they do about it: status, show, resume, enqueue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ensemble_tools import ensq, with_losses, write_config
from test_worker_early import PAIRED, PLATEAU, SLOWLY, queue_with
from worker_tools import NAME, Queue

from ensq import config as configuration
from ensq import stopped, trained
from ensq.cli import cli
from ensq.config.early import EarlyStoppingConfig, dumps, loads
from ensq.errors import ConfigError, EnsqError
from ensq.finalize import finalize
from ensq.store import Store, check, check_files


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    """Seeds 3 and 4 of four were stopped."""
    queue = queue_with(tmp_path_factory.mktemp("early"), PAIRED)
    queue.work(pack=4, settings=SLOWLY)
    return queue


def test_status_says_who_ended_early(queue: Queue) -> None:
    lines = run("status", NAME, "--db", queue.url).output.splitlines()
    assert lines[0] == f"{NAME}: 4 done (2 early), 100 % of the epochs"
    assert [line.split()[1:3] for line in lines[2:6]] == [
        ["done", "12/12"], ["done", "12/12"], ["done", "(early)"], ["done", "(early)"]
    ]  # fmt: skip
    assert "  early stopping: stopped: seeds 3-4" in lines
    assert "  early stopping: kept, since too few would be left: seed 2" in lines
    assert max(len(line) for line in lines if queue.url not in line) <= 80
    (found,) = json.loads(run("status", NAME, "--db", queue.url, "--json").output)["ensembles"]
    assert [one["early"] for one in found["members"]] == [None, None, "paired", "paired"]
    assert {one["verdict"] for one in found["decisions"]} == {"stop", "kept"}


def test_show_tells_the_evidence_in_words_and_as_json(queue: Queue) -> None:
    said = run("show", f"{NAME}/4", "--db", queue.url).output
    flat = " ".join(said.split())
    assert "seed 4: done (early), epoch" in flat
    assert "early stopping, attempt 1, epoch" in flat
    assert "it is stopped by the rule paired: at epoch" in flat
    assert "more than 0.5 % worse with p = " in flat and "over 16 blocks" in flat
    assert "attempt 1: stopped early by the rule paired, after epoch" in flat
    told = [line for line in said.splitlines() if "stopp" in line]
    assert max(map(len, told)) <= 80
    found = json.loads(run("show", f"{NAME}/4", "--db", queue.url, "--json").output)
    assert found["decisions"][0]["evidence"]["best_seed"] == 1


def test_resume_queues_them_again_and_says_so(tmp_path: Path) -> None:
    queue = queue_with(tmp_path, EarlyStoppingConfig(mode="stop", plateau=PLATEAU), 2)
    queue.work(pack=2, settings={})
    assert run("resume", NAME, "--seed", "2", "--db", queue.url).output == (
        "queued to be trained on: seeds 2\n"
    )
    assert run("resume", NAME, "--seed", "2", "--db", queue.url).output == "nothing to resume\n"
    said = run("status", NAME, "--db", queue.url).output
    assert "  early stopping: stopped: seed 1\n" in said
    assert "  early stopping: stopped, then resumed by a person: seed 2\n" in said
    assert "exempt from early stopping" in run("show", f"{NAME}/2", "--db", queue.url).output
    assert queue.work(pack=2, settings={})[0] == 0
    assert [job.early for job in queue.jobs] == ["plateau", None]


# -- configuration -----------------------------------------------------------------------------


def parsed(*overrides: str) -> configuration.RunConfig:
    text = "data: {path: x}\nmodel: {cutoff: 5.0}\n"
    text += "training: {stages: [{optimizer: adam, epochs: 100}]}\n"
    return configuration.parse(text, "a file", overrides)


def test_section_is_no_part_of_the_identity() -> None:
    """So that it can be changed in mid-run; and digests from before the section stay valid."""
    plain, other = parsed(), parsed("early_stopping.mode=stop", "early_stopping.sigma=3.0")
    assert configuration.digest(plain) == configuration.digest(other)
    assert configuration.changed_keys(plain, other) == []
    old = json.loads(configuration.dumps(plain))
    del old["early_stopping"]
    assert configuration.loads(json.dumps(old)) == plain


def test_bare_off_is_off() -> None:
    """Though YAML 1.1 reads it as false."""
    section = "early_stopping: {mode: off, sigma: 3.0}\n"
    text = "data: {path: x}\nmodel: {cutoff: 5.0}\n" + section
    text += "training: {stages: [{optimizer: adam, epochs: 100}]}\n"
    for overrides in ([], ["early_stopping.mode=off"]):
        found = configuration.parse(text, "a file", overrides).early_stopping
        assert (found.mode, found.sigma) == ("off", 3.0)


def test_section_comes_back_from_the_queue() -> None:
    for section in (EarlyStoppingConfig(), PAIRED, EarlyStoppingConfig(plateau=PLATEAU)):
        assert loads(dumps(section)) == section
    assert loads(None).mode == "off"
    with pytest.raises(ConfigError, match="early_stopping can't be read"):
        loads('{"mode":"now"}')


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mode=maybe", "expected one of off, report, stop"),
        ("confidence=1.0", "confidence"),
        ("confidence=0.3", "confidence must be at least 0.5, not 0.3"),
        ("min_members=1", "min_members"),
        ("margin=.inf", "margin must be a finite number"),
        ("plateau={patience: 0}", "patience"),
        ("plateau={min_delta: 1.0}", "min_delta"),
        ("patiense=3", "did you mean patience?"),
    ],
)
def test_wrong_settings_are_named(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        parsed(f"early_stopping.{override}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sigma=3.0"], "no effect: mode is off"),
        (["mode=stop"], "of 1 members are never stopped"),
        (["mode=stop", "min_epochs=95"], "beyond the 100 epochs"),
        (["mode=report", "rule=sigma"], "nearly always, even of equal ones"),
    ],
)
def test_settings_that_do_nothing_are_hinted_at(overrides: list[str], words: str) -> None:
    found = configuration.lint(parsed(*(f"early_stopping.{one}" for one in overrides)))
    assert any(words in note.text for note in found), found
    assert not any("early_stopping" in note.key for note in configuration.lint(parsed()))


# -- results -----------------------------------------------------------------------------------


@pytest.fixture(params=[pytest.param("include", marks=pytest.mark.slow), "exclude"])
def ended(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Four trained members, of which the worst, seed 45, was stopped after its first epoch."""
    store, ensemble = with_losses(tmp_path, (3.0, 4.0, 5.0, 9.0))
    section = EarlyStoppingConfig(mode="stop", statistics=request.param)
    stop_last(store, section)
    (ensemble,) = store.ensembles()
    return request.param, store, ensemble


def stop_last(store: Store, section: EarlyStoppingConfig) -> None:
    """Make of the last member one that a rule stopped, as a worker would have left it."""
    from ensq.store.engine import Database

    job = store.jobs(1)[-1]
    database = Database(store.target)
    with database.write() as connection:
        for statement in (
            f"UPDATE ensembles SET early_stopping = '{dumps(section)}'",
            f"UPDATE jobs SET early = 'paired', epochs = epochs + 5 WHERE id = {job.id}",
            f"UPDATE attempts SET outcome = 'early' WHERE job_id = {job.id}",
            "INSERT INTO decisions (job_id, rule, verdict, ensemble_id, attempt, epoch, evidence, "
            f"worker_id, time) VALUES ({job.id}, 'paired', 'stop', 1, 1, 1, "
            "'{\"rule\": \"paired\"}', 'w', 1.0)",
        ):
            connection.exec_driver_sql(statement)
    database.close()


def test_finalize_tells_both_statistics_and_counts_as_the_configuration_says(
    ended: Any, tmp_path: Path
) -> None:
    from ensq.cli.finalize import lines

    statistics, store, ensemble = ended
    done = finalize(store, ensemble, export_dir=tmp_path / "out", ensemble_mean=False)
    seeds = [job.seed for job in store.jobs(1)]
    counted = seeds if statistics == "include" else seeds[:3]
    losses = [3.0, 4.0, 5.0, 9.0][: len(counted)]
    assert done.metadata["seeds"] == counted
    assert done.metadata["mean_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    found = done.metadata["early_stopping"]
    assert found["with_stopped"]["mean"] == pytest.approx(21 / 4, rel=1e-6)
    assert found["without_stopped"]["mean"] == pytest.approx(4.0, rel=1e-6)
    assert found["without_stopped"]["std"] == pytest.approx((2 / 3) ** 0.5, rel=1e-6)
    (one,) = found["stopped_members"]
    assert (one["seed"], one["rule"], one["evidence"]) == (seeds[3], "paired", {"rule": "paired"})
    assert one["counted"] == (statistics == "include")
    said = " ".join(" ".join(lines(done)).split())
    assert f"stopped early: seed {seeds[3]} by the rule paired after epoch" in said
    other = "without it: 3 members, mean 4" if one["counted"] else "with it: 4 members, mean 5.25"
    assert other in said and ("; not counted" in said) != one["counted"]
    assert trained.from_store(store, ensemble).seeds == tuple(counted)


def test_ensemble_of_stopped_members_alone_has_nothing_to_count(ended: Any) -> None:
    statistics, store, ensemble = ended
    last = [job for job in store.jobs(1) if job.early]
    if statistics == "include":
        assert stopped.counted(ensemble, last) == last
    else:
        with pytest.raises(EnsqError, match=r"was stopped early.*`ensq resume` trains them on"):
            stopped.counted(ensemble, last)


def test_nothing_is_told_where_nobody_was_stopped(tmp_path: Path) -> None:
    store, ensemble = with_losses(tmp_path, (3.0, 4.0))
    found = stopped.told(store, ensemble, store.jobs(1))
    assert (found["mode"], found["stopped_members"]) == ("off", [])
    assert found["with_stopped"] == found["without_stopped"]
    assert stopped.lines(found) == []


def test_lines_of_stopped_members_stand_in_80_columns_and_name_those_that_were_resumed() -> None:
    one = {"seed": 123456, "rule": "plateau", "epoch": 12345, "epochs": 20000, "counted": False}
    found = {
        "stopped_members": [one | {"best_loss": 123.4567}],
        "statistics": "exclude",
        "with_stopped": None,
        "resumed_members": [42, 44],
    }
    said = stopped.lines(found)
    assert max(map(len, said)) <= 80 and said[1] == "  loss 123.457; not counted"
    assert said[-1] == "stopped early, then resumed and trained on: seeds 42, 44"


@pytest.mark.slow
def test_real_members_end_on_a_plateau_and_train_on_when_resumed(tmp_path: Path) -> None:
    """With the real trainer, by the command line alone."""
    section = (
        "early_stopping: {mode: stop, min_members: 2, "
        "plateau: {patience: 1, min_delta: 0.9, min_epochs: 1}}\n"
    )
    write_config(tmp_path, 2, section)
    for arguments in ("enqueue tiny.yaml", "worker --pack 2", "resume tiny --seed 43", "worker"):
        done = ensq(*arguments.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with Store.open(tmp_path / "ensq.db") as store:
        first, second = store.jobs(1)
        blocks = store.blocks_between([first.id, second.id], 1, 3)
        losses = store.losses_between([first.id, second.id], 1, 3)
    assert (first.early, first.epoch, first.exempt) == ("plateau", 2, False)
    assert (second.early, second.epoch, second.exempt) == (None, 3, True)
    assert len(losses) == 5 and losses.keys() == blocks.keys()
    for place, values in blocks.items():
        assert sum(values) / len(values) == pytest.approx(losses[place], rel=1e-12)
    assert check_files(str(tmp_path / "ensq.db")) == check(str(tmp_path / "ensq.db")) == []
