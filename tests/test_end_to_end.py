"""The whole way through the command line, with real training of a tiny model."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import parallel
import pytest
from ensemble_tools import clean_environment, ensq, write_config

from ensq.store import Store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of `ensq run` with two members."""
    folder = tmp_path_factory.mktemp("run")
    write_config(folder, 2)
    done = ensq("run", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def members(folder: Path, name: str = "tiny") -> list[dict[str, Any]]:
    status = json.loads(ensq("status", name, "--json", cwd=folder).stdout)
    found: list[dict[str, Any]] = status["ensembles"][0]["members"]
    return found


def losses_are_dense(folder: Path) -> None:
    """Every epoch of every member is recorded once."""
    with Store.open(folder / "ensq.db", read_only=True) as store:
        for ensemble in store.ensembles():
            for job in store.jobs(ensemble.id):
                assert [row.epoch for row in store.epochs(job.id)] == [*range(1, job.epochs + 1)]


def test_two_members_from_configuration_to_exports(finished: tuple[Path, str]) -> None:
    folder, output = finished
    found = members(folder)
    assert [(member["seed"], member["state"]) for member in found] == [(42, "done"), (43, "done")]
    losses_are_dense(folder)
    exported = folder / "runs/tiny/exported_models"
    metadata = json.loads((exported / "ensemble_metadata.json").read_text())
    assert metadata["seeds"] == [42, 43]
    best = metadata["best_model_index"]
    assert metadata["validation_losses"][best] == min(metadata["validation_losses"])
    assert metadata["mean_loss"] == pytest.approx(np.mean(metadata["validation_losses"]), rel=1e-12)
    assert (exported / "tiny_best.mlir").stat().st_size > 10_000
    assert "best: seed" in output
    assert "exports, read back and run, differ by" in output
    assert "its F rmse by species: A " in output and "by protein" not in output
    assert "\x1b" not in output, "control characters in a log"
    assert max(len(line) for line in output.splitlines() if "/" not in line) <= 80


def test_reported_losses_are_those_of_the_exported_parameters(finished: tuple[Path, str]) -> None:
    """Computed anew from the files, by other means than the trainer's: NumPy and one frame at a
    time."""
    from ensq import config, data
    from ensq.config.structs import DataConfig
    from ensq.train.checkpoint import read_result
    from ensq.train.domains import whole_system
    from ensq.train.module import LoadedModel

    folder, _ = finished
    exported = folder / "runs/tiny/exported_models"
    metadata = json.loads((exported / "ensemble_metadata.json").read_text())
    for index, loss in enumerate(metadata["validation_losses"]):
        result = read_result((exported / f"tiny_ensemble_{index}.safetensors").read_bytes())
        gammas = config.loads(result.config).training.gammas
        frames = data.load(folder / "tiny.npz", DataConfig(path=""), gammas, "kcal/mol").take(
            result.validation_index
        )
        model = LoadedModel((exported / f"tiny_ensemble_{index}.mlir").read_bytes())
        squares, components, energies = 0.0, 0, []
        for frame in range(frames.n_frames):
            real = frames.mask[frame]
            system = whole_system(frames.R[frame][real], frames.species[frame][real])
            energy, force = model.energy_and_forces([system], newton=True)
            squares += float(((force - frames.F[frame][real]) ** 2).sum())
            components += 3 * int(real.sum())
            energies.append((energy - frames.U[frame]) ** 2)
        expected = gammas.F * squares / components + gammas.U * float(np.mean(energies))
        assert loss == pytest.approx(expected, rel=1e-4)


def test_run_again_trains_nothing_and_gives_the_same_files(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    exported = folder / "runs/tiny/exported_models"
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    again = ensq("run", "tiny.yaml", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "training with" not in again.stdout
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_one_model_is_trained_with_the_top_level_seed_when_no_ensemble_is_asked_for(
    tmp_path: Path,
) -> None:
    write_config(tmp_path)
    done = ensq(
        "run", "tiny.yaml", "--set", "ensemble.enabled=false", "--set", "seed=7", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (only,) = members(tmp_path)
    assert (only["seed"], only["state"]) == (7, "done")
    assert (tmp_path / "runs/tiny/exported_models/tiny_best.mlir").exists()


@pytest.mark.slow
def test_five_members_from_configuration_to_exports(tmp_path: Path) -> None:
    write_config(tmp_path, 5)
    done = ensq("run", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses_are_dense(tmp_path)
    metadata = json.loads(
        (tmp_path / "runs/tiny/exported_models/ensemble_metadata.json").read_text()
    )
    assert metadata["n_models"] == 5
    assert len(set(metadata["validation_losses"])) == 5


# -- workers by hand ---------------------------------------------------------------------------


class Workers:
    """Worker processes, none of which outlives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"worker-{len(self.started)}.log"
        with log.open("wb") as file:
            worker = subprocess.Popen(
                [sys.executable, "-m", "ensq.cli", "worker", *options],
                cwd=self.folder,
                env=clean_environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.started.append(worker)
        return worker

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path)
    yield made
    for worker in made.started:
        worker.kill()
        worker.wait()


def until(condition: Callable[[], bool], what: Workers, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s; the workers say:\n{what.logs()}"
        time.sleep(0.05)


def epochs_recorded(folder: Path) -> int:
    connection = sqlite3.connect(f"file:{folder}/ensq.db?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COALESCE(SUM(epoch), 0) FROM jobs").fetchone()[0])
    finally:
        connection.close()


def test_killed_worker_is_replaced_and_the_results_are_those_of_an_undisturbed_run(
    tmp_path: Path, workers: Workers
) -> None:
    write_config(tmp_path, 3)
    longer = ("--set", "training.stages.0.epochs=12")
    assert ensq("enqueue", "tiny.yaml", *longer, cwd=tmp_path).returncode == 0
    # Both are still at their first members when they are looked at and one is killed.
    slow = json.dumps([{"point": "trainer.validated", "do": "delay", "seconds": 0.4}])
    first, second = (workers.start(ENSQ_FAULTS=slow) for _ in range(2))
    until(lambda: epochs_recorded(tmp_path) >= 3, workers)
    status = ensq("status", cwd=tmp_path).stdout
    for worker in (first, second):
        assert f"process {worker.pid}; seen" in status, status
    assert max(map(len, status.splitlines())) <= 80
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    status = ensq("status", cwd=tmp_path).stdout
    assert f"process {first.pid}; gone" in status or f"process {first.pid}" not in status, status
    third = workers.start()
    for worker in (second, third):
        assert worker.wait(timeout=180) == 0, workers.logs()
    found = members(tmp_path)
    assert [member["state"] for member in found] == ["done"] * 3
    losses_are_dense(tmp_path)
    assert ensq("db", "check", cwd=tmp_path).returncode == 0
    done = ensq("finalize", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    disturbed = json.loads(done.stdout)["validation_losses"]

    calm = ensq(
        "run", "tiny.yaml", *longer, "--db", "calm.db", "--name", "calm", "--json", cwd=tmp_path
    )
    assert calm.returncode == 0, calm.stderr
    assert json.loads(calm.stdout)["validation_losses"] == disturbed, "not the same bits"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_stopped_worker_gives_its_member_back_and_the_next_goes_on_from_there(
    tmp_path: Path, workers: Workers, number: signal.Signals
) -> None:
    write_config(tmp_path, 1)
    longer = ("--set", "training.stages.0.epochs=4000")
    assert ensq("enqueue", "tiny.yaml", *longer, cwd=tmp_path).returncode == 0
    worker = workers.start()
    until(lambda: epochs_recorded(tmp_path) >= 2, workers)
    worker.send_signal(number)
    assert worker.wait(timeout=60) == 75, workers.logs()
    (member,) = members(tmp_path)
    assert member["state"] == "queued"
    assert (member["failures"], member["crashes"]) == (0, 0)
    stopped_at = member["epoch"]
    again = workers.start()
    until(lambda: epochs_recorded(tmp_path) > stopped_at, workers)
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=60) == 75
    with Store.open(tmp_path / "ensq.db", read_only=True) as store:
        rows = store.epochs(store.jobs(store.ensembles()[0].id)[0].id)
        attempts = store.attempts(1)
    assert [row.epoch for row in rows] == [*range(1, len(rows) + 1)]
    assert [attempt.start_epoch for attempt in attempts] == [0, stopped_at]


def test_worker_that_finds_other_data_refuses_with_78(tmp_path: Path) -> None:
    write_config(tmp_path, 2)
    assert ensq("enqueue", "tiny.yaml", cwd=tmp_path).returncode == 0
    with (tmp_path / "tiny.npz").open("ab") as file:
        file.write(b"x")
    done = ensq("worker", cwd=tmp_path)
    assert done.returncode == 78, done.stderr
    assert "the data have changed" in done.stderr


def test_pack_of_two_trains_both_members_in_one_attempt_each(tmp_path: Path) -> None:
    write_config(tmp_path, 2)
    done = ensq("run", "tiny.yaml", "--pack", "2", "--workers", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [member["attempts"] for member in found["members"]] == [1, 1]
    log = next((tmp_path / "runs/tiny/logs").glob("local-1.log")).read_text()
    assert "claimed of tiny: seed 42 (attempt 1), 43 (attempt 1)" in log


@pytest.mark.skipif(len(parallel.CORES) < 2, reason="needs two cores")
def test_number_of_cores_does_not_change_a_bit(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ensq run` pins its workers to a core each; a resume by hand does not. The control shows
    that XLA's threads would change the losses."""
    chignolin = Path(__file__).parent.parent / "configs" / "chignolin.yaml"
    smaller = ("data.max_frames=400", "training.stages.0.epochs=1", "ensemble.n_models=1")
    options = [part for override in smaller for part in ("--set", override)]
    losses = {}
    for name, cores, threads in (
        ("one", parallel.CORES[:1], None),
        ("all", parallel.CORES, None),
        ("control", parallel.CORES, "2"),
    ):
        queued = ensq(
            "enqueue", chignolin, "--name", name, *options, cwd=tmp_path, ENSQ_DB="ensq.db"
        )
        assert queued.returncode == 0, queued.stderr
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        if threads:
            monkeypatch.setenv("NPROC", threads)
        try:
            worker = workers.start("--name", name)
        finally:
            os.sched_setaffinity(0, before)
        assert worker.wait(timeout=180) == 0, workers.logs()
        (member,) = members(tmp_path, name)
        losses[name] = (member["train_loss"], member["val_loss"])
    assert losses["one"] == losses["all"]
    assert losses["control"] != losses["all"]
