"""Frames that stay on the host train to the same bits as frames that lie on the device."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray
from train_tools import DATA, Listener, settings, task, tiny_arrays, train_command

from ensq import config as configuration
from ensq import data
from ensq.config import RunConfig
from ensq.config.structs import KeysConfig, UnitsConfig
from ensq.data.converting import convert_set
from ensq.errors import ConfigError, DataError, MismatchError
from ensq.train import checkpoint, child, environment, feeding, placement, survey
from ensq.train.batches import batches_of_epoch
from ensq.train.dataset import Dataset, prepare
from ensq.train.feeding import Fed
from ensq.train.labelled import Labelled
from ensq.train.neighbours import build_neighbours, count_neighbours
from ensq.train.pack import Program
from ensq.train.trainer import Trainer


def write(folder: Path, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "tiny.npz", **{**tiny_arrays(fewest=2), **changed})
    return folder / "tiny.npz"


def converted(source: Path) -> Path:
    dest = source.parent / "set"
    convert_set(source, dest, units=UnitsConfig(), keys=KeysConfig())
    return dest


def prepared(path: Path, config: RunConfig, cache: Path | None = None) -> Dataset:
    return prepare(path, data.digest(path), config, lambda text: None, cache)


def trained(dataset: Dataset, config: RunConfig, folder: Path) -> Listener:
    listener = Listener()
    program = Program(config, dataset)
    Trainer(program, config, DATA).train([task(folder, 1), task(folder, 2)], listener)
    return listener


def told(listener: Listener, seed: int) -> list[tuple[Any, ...]]:
    return [
        (one.epoch, one.train_loss, one.val_loss, one.val_rmse_force, one.val_rmse_energy)
        for one in listener.epochs(seed)
    ]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of two batches, so that sets of 40 frames take several."""
    monkeypatch.setattr(feeding, "PIECE_BYTES", 4_000)


OWN = ("model.ml_model=own_model:build", "model.options={hidden: 5}")  # quick to compile
SHORT = "training.stages=[{optimizer: adam, epochs: 1}]"


def trainings(
    sources: dict[str, list[Path]], folder: Path, *more: str
) -> list[tuple[Dataset, Listener]]:
    """The same training by each place in turn, of each of its sources."""
    found: list[tuple[Dataset, Listener]] = []
    for place, paths in sources.items():
        for path in paths:
            config = settings(f"data.placement={place}", *more)
            dataset = prepared(path, config)
            assert (dataset.hosted is None) == (place == "device")
            found.append((dataset, trained(dataset, config, folder / str(len(found)))))
    return found


@pytest.mark.parametrize(
    "more",
    [(SHORT,), (*OWN, SHORT, "data.max_buckets=2", "training.batch_per_device=4")],
    ids=["allegro", "groups"],
)
def test_losses_and_results_are_the_same_wherever_the_frames_lie(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    path = write(tmp_path)
    (one, first), (two, second) = trainings(
        {"device": [path], "host": [converted(path)]}, tmp_path, *more
    )
    assert two.sizes == one.sizes
    assert len(one.sizes) == (2 if OWN[0] in more else 1)
    for seed in (1, 2):
        assert len(told(first, seed)) == 1
        assert told(second, seed) == told(first, seed)
    assert two.statistics.avg_num_neighbors == one.statistics.avg_num_neighbors
    assert two.statistics.energy_scale == one.statistics.energy_scale
    expected, found = (
        checkpoint.read_result(
            (tmp_path / place / "seed-1" / "attempt-1" / "result.safetensors").read_bytes()
        )
        for place in "01"
    )
    mine, theirs = checkpoint.flatten(found.params), checkpoint.flatten(expected.params)
    assert {k: v.tobytes() for k, v in mine.items()} == {k: v.tobytes() for k, v in theirs.items()}
    for name in ("force_errors", "energy_errors", "species_errors", "species_components"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.validation_index, expected.validation_index)


def test_periodic_frames_among_open_ones_are_the_same(tmp_path: Path) -> None:
    """Also of a file that was not converted, whose frames are in memory anyway."""
    cell = np.zeros((40, 3, 3))
    cell[::3] = np.diag([7.0, 8.0, 0.0])
    path = write(tmp_path, cell=cell)
    sources = {"device": [path], "host": [converted(path), path]}
    (_, first), *others = trainings(sources, tmp_path, *OWN, SHORT)
    for _, listener in others:
        assert told(listener, 1) == told(first, 1)


def test_a_difference_would_be_seen(tmp_path: Path) -> None:
    """One force that is another, of one training frame."""
    path, raw = write(tmp_path), tiny_arrays(fewest=2)
    hosted = prepared(path, settings("data.placement=host")).hosted
    assert hosted is not None
    raw["F"][hosted.training[0].frames[3], 0, 0] += 0.01
    changed = write(tmp_path / "changed", F=raw["F"])
    (_, one), (_, two) = trainings({"host": [path, changed]}, tmp_path, *OWN, SHORT)
    assert told(one, 1) != told(two, 1)


def test_with_energies_alone_they_are_the_same(tmp_path: Path) -> None:
    gammas, path = "{F: 0.0, U: 1.0}", write(tmp_path)
    sources = {"device": [path], "host": [path]}
    (_, one), (_, two) = trainings(sources, tmp_path, *OWN, SHORT, f"training.gammas={gammas}")
    assert told(one, 1) == told(two, 1)


# -- pieces ------------------------------------------------------------------------------------


@pytest.fixture
def fed(tmp_path: Path) -> tuple[Dataset, Program]:
    config = settings(
        "data.placement=host", "data.max_buckets=3", "training.batch_per_device=2", *OWN
    )
    dataset = prepared(converted(write(tmp_path)), config)
    return dataset, Program(config, dataset)


def test_pieces_hold_the_frames_of_their_steps(fed: tuple[Dataset, Program]) -> None:
    dataset, program = fed
    assert dataset.hosted is not None
    batches = batches_of_epoch(dataset.sizes, program.batch, 0, 0)
    shapes, firsts, at = set(), [], 0
    while at < len(batches.group):
        piece = program.feed.steps(batches, at)
        assert piece.first == at < piece.stop
        firsts.append(at)
        shapes.add(tuple(part.F.shape for part in piece.training))
        for step in range(piece.first, piece.stop):
            group = int(piece.order.group[step - piece.first])
            assert group == batches.group[step]
            rows = np.asarray(piece.order.index[step - piece.first])
            whole = dataset.hosted.training[group].read(batches.index[step])
            for mine, theirs in zip(
                jax.tree.leaves(piece.training[group]), jax.tree.leaves(whole), strict=True
            ):
                np.testing.assert_array_equal(np.asarray(mine)[rows], theirs)
        at = piece.stop
    assert len(firsts) > 2
    assert len(shapes) == 1  # one compiled program


def test_an_epoch_may_go_on_in_the_middle_of_a_piece(fed: tuple[Dataset, Program]) -> None:
    dataset, program = fed
    batches = batches_of_epoch(dataset.sizes, program.batch, 0, 1)
    last = len(batches.group) - 1
    piece = program.feed.steps(batches, last)
    assert piece.first <= last < piece.stop
    assert program.feed.steps(batches, 0).first == 0


def test_the_next_piece_is_made_by_another_thread_while_this_one_is_used(
    fed: tuple[Dataset, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, program = fed
    assert isinstance(program.feed, Fed)
    made: list[tuple[str, int]] = []
    whole = Fed._make

    def make(self: Fed, batches: Any, number: int) -> Any:
        made.append((threading.current_thread().name.split("_")[0], number))
        return whole(self, batches, number)

    monkeypatch.setattr(Fed, "_make", make)
    batches = batches_of_epoch(dataset.sizes, program.batch, 0, 0)
    first = program.feed.steps(batches, 0)
    assert program.feed._next is not None
    program.feed._next[1].result()
    assert made == [("MainThread", 0), ("feeding", 1)]
    program.feed.steps(batches, first.stop)
    assert made[:2] == [("MainThread", 0), ("feeding", 1)]


def test_what_goes_wrong_while_frames_are_read_ends_the_training(tmp_path: Path) -> None:
    config = settings("data.placement=host", *OWN)
    path = converted(write(tmp_path))
    dataset = prepared(path, config)
    program = Program(config, dataset)
    with (path / "F.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match=r"F\.npy: the file has become shorter"):
        trained_program(program, config, tmp_path)


def trained_program(program: Program, config: RunConfig, folder: Path) -> None:
    Trainer(program, config, DATA).train([task(folder, 1)], Listener())


# -- preparation -------------------------------------------------------------------------------


def test_placement_is_no_part_of_what_an_ensemble_is() -> None:
    digests = {
        configuration.digest(settings(f"data.placement={place}"))
        for place in ("auto", "device", "host")
    }
    assert len(digests) == 1
    assert configuration.digest(settings("data.seed=1")) not in digests


def test_the_pass_over_the_data_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path, cache = settings("data.placement=host"), write(tmp_path), tmp_path / "run"
    looked: list[int] = []
    look = survey._look

    def counted(*arguments: Any) -> Any:
        looked.append(1)
        return look(*arguments)

    monkeypatch.setattr(survey, "_look", counted)
    one, two = prepared(path, config, cache), prepared(path, config, cache)
    assert len(looked) == 1
    assert one.statistics.energy_scale == two.statistics.energy_scale
    assert one.hosted is not None and two.hosted is not None
    for mine, theirs in zip(one.hosted.validation, two.hosted.validation, strict=True):
        np.testing.assert_array_equal(mine.frames, theirs.frames)
    [file] = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-100])  # damaged: made again, not believed
    prepared(path, config, cache)
    assert len(looked) == 2
    prepared(path, settings("data.placement=host", "model.cutoff=3.5"), cache)
    assert len(looked) == 3


def test_a_trainers_process_keeps_it_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says that it looks at all frames, which can take minutes."""
    monkeypatch.setattr(environment, "use_compile_cache", lambda folder: None)
    heard: Any = Listener()
    made = settings("data.placement=host", *OWN)
    command = train_command(tmp_path / "run", converted(write(tmp_path)), made, task(tmp_path, 1))
    trainer: Any = child.Workshop(heard)._trainer_for(command)
    assert trainer.program.dataset.hosted is not None
    assert [file.name.split("-")[0] for file in (tmp_path / "run").iterdir()] == ["survey"]
    assert "looking through the data, which stay on the host" in [m.text for m in heard.messages]


def test_changed_arrays_are_not_trained_on(tmp_path: Path) -> None:
    config, path = settings("data.placement=host"), converted(write(tmp_path))
    digest = data.digest(path)
    content = bytearray((path / "R.npy").read_bytes())
    content[200] ^= 1
    (path / "R.npy").write_bytes(content)
    with pytest.raises(MismatchError, match="has changed"):
        prepare(path, digest, config, lambda text: None)


def test_frames_without_neighbours_are_refused_on_the_host_too(tmp_path: Path) -> None:
    config = settings("data.placement=host", "model.cutoff=0.1")
    with pytest.raises(DataError, match="no pair of beads is nearer"):
        prepared(write(tmp_path), config)


def test_reference_energies_of_many_frames_are_those_of_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = write(tmp_path), settings()
    whole = data.load(path, config.data, config.training.gammas, config.unit)
    frames: NDArray[Any] = np.arange(40)
    few = survey.reference_energies(whole, frames)
    monkeypatch.setattr(survey, "_COUNTS", 0)
    many = survey.reference_energies(whole, frames)
    np.testing.assert_allclose(many, few, rtol=1e-10)
    assert np.abs(few).min() > 0.1


# -- where they lie ----------------------------------------------------------------------------


def test_frames_go_to_the_device_where_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    assert prepared(path, settings()).hosted is None
    needed = sum(
        leaf.nbytes
        for part in (lambda d: (*d.training, *d.validation))(prepared(path, settings()))
        for leaf in jax.tree.leaves(part)
    )
    monkeypatch.setattr(placement, "budget", lambda: needed // 2)
    assert prepared(path, settings()).hosted is not None
    assert prepared(path, settings("data.placement=device")).hosted is None
    monkeypatch.setattr(placement, "budget", lambda: 2 * needed)
    assert prepared(path, settings()).hosted is None


def test_the_estimate_is_about_what_the_frames_take(tmp_path: Path) -> None:
    path, config = write(tmp_path), settings()
    whole = data.load(path, config.data, config.training.gammas, config.unit)
    found = prepared(path, config)
    parts: tuple[Labelled, ...] = (*found.training, *found.validation)
    taken = sum(leaf.nbytes for part in parts for leaf in jax.tree.leaves(part))
    estimate = placement.estimate(whole, data.split(whole, config, "x"), config)
    assert taken <= estimate <= 2 * taken


def test_priors_that_are_fitted_to_all_frames_need_the_device(tmp_path: Path) -> None:
    config = settings(
        "data.placement=host",
        "model.use_priors=true",
        "model.priors={r0: 1.8, kr: 1.0, weights: {bond: 1.0}}",
        "training.pretrain_prior=true",
    )
    with pytest.raises(ConfigError, match="pretrain_prior looks at all frames at once"):
        prepared(write(tmp_path), config)


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    machine = placement.host_memory(tmp_path)
    assert machine > 1e8
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_1/step\n")
    group = tmp_path / "sys/fs/cgroup/slurm/job_1"
    (group / "step").mkdir(parents=True)
    (group / "step/memory.max").write_text("max\n")
    assert placement.host_memory(tmp_path) == machine
    (group / "memory.max").write_text("12345678\n")
    assert placement.host_memory(tmp_path) == 12345678
    (tmp_path / "proc/self/cgroup").write_text("5:cpu:/a\n7:memory:/old\n")
    (tmp_path / "sys/fs/cgroup/memory/old").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/old/memory.limit_in_bytes").write_text("777\n")
    assert placement.host_memory(tmp_path) == 777


# -- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("periodic", [False, True])
def test_frames_alone_are_laid_out_as_they_are_among_others(periodic: bool) -> None:
    rng = np.random.default_rng(3)
    R, mask = 3 * rng.normal(size=(9, 7, 3)), np.ones((9, 7), bool)
    mask[4, 5:] = False
    cell = np.zeros((9, 3, 3))
    cell[1] = np.diag([5.0, 6.0, 7.0])
    whole = build_neighbours(R, mask, 3.0, cell if periodic else None)
    width = whole.index.shape[2]
    assert (whole.offset is not None) == periodic
    counts = count_neighbours(R, mask, 3.0, cell if periodic else None, periodic=periodic)
    np.testing.assert_array_equal(counts, whole.mask.sum(axis=-1))
    for frame in range(9):
        one = slice(frame, frame + 1)
        alone = build_neighbours(
            R[one], mask[one], 3.0, cell[one] if periodic else None, width=width, periodic=periodic
        )
        for mine, theirs in zip(alone, whole, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                np.testing.assert_array_equal(mine, theirs[one])
