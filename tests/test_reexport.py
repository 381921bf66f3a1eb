"""``ensq export``: one member again, or what a checkpoint holds, while others still train."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from ensemble_tools import _program, ensq, with_losses
from train_tools import Listener, task

from ensq import config as configuration
from ensq import seal
from ensq.errors import CheckpointError, EnsqError, MismatchError, UsageError
from ensq.jobs import Ensemble
from ensq.reexport import reexport
from ensq.store import Store
from ensq.train import checkpoint
from ensq.train.loading import load_model

Trained = tuple[Store, Ensemble]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two members: seed 42 is done, seed 43 is not."""
    return with_losses(tmp_path_factory.mktemp("half"), [2.0, None])


@pytest.fixture(scope="module")
def checkpoints(half: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real checkpoints of seed 43, the oldest first."""
    from ensq.train.trainer import Trainer

    store, ensemble = half
    program = _program(ensemble.config, (store.root / ensemble.data_path).read_bytes())
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer = Trainer(program, configuration.loads(ensemble.config), ensemble.data_digest)
    trainer.train([task(folder, 43)], Listener())
    return sorted(folder.glob("seed-43/attempt-1/epoch-*.safetensors"))


def test_finished_member_is_exported_while_another_is_not_done(
    half: Trained, tmp_path: Path
) -> None:
    done = reexport(*half, index=0, folder=tmp_path / "out")
    wanted = {"tiny_seed42.mlir", "tiny_seed42_params.pkl", "tiny_seed42.safetensors"}
    assert set(os.listdir(tmp_path / "out")) == set(done.files) == wanted
    assert (done.seed, done.loss) == (42, pytest.approx(2.0))
    assert done.comparison["relative_force_difference"] < 1e-4
    assert done.comparison["frames_split_over_two_domains"] == 1
    reexport(*half, seed=42, folder=tmp_path / "again")
    for name in done.files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_checkpoint_of_an_unfinished_member_is_exported_with_the_loss_it_had_then(
    half: Trained, checkpoints: list[Path], tmp_path: Path
) -> None:
    assert len(checkpoints) >= 2
    losses = []
    for path in checkpoints[-2:]:
        epoch, _ = checkpoint.read_position(path.read_bytes())
        done = reexport(*half, checkpoint=path, folder=tmp_path)
        assert (done.seed, done.epoch) == (43, epoch)
        assert f"tiny_seed43_epoch{epoch}.mlir" in done.files
        stored = checkpoint.read_result(
            (tmp_path / f"tiny_seed43_epoch{epoch}.safetensors").read_bytes()
        )
        assert done.loss == pytest.approx(stored.history[epoch - 1, 1], rel=1e-6)
        losses.append(done.loss)
    assert losses[0] != losses[1]


def test_export_into_the_folder_of_finalize_leaves_its_files(
    half: Trained, checkpoints: list[Path], tmp_path: Path
) -> None:
    from ensq.finalize import finalize

    store, ensemble = half
    finalize(store, ensemble, allow_missing=True, export_dir=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    reexport(store, ensemble, index=0, folder=tmp_path / "out")
    finalize(store, ensemble, allow_missing=True, export_dir=tmp_path / "out")
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(after) - set(before) == {
        "tiny_seed42.mlir",
        "tiny_seed42_params.pkl",
        "tiny_seed42.safetensors",
    }
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, UsageError, "which member of tiny.*--member 0 to 1, --seed, or --checkpoint"),
        ({"index": 7}, UsageError, r"no member 7; its members are 0 \(seed 42\), 1 \(seed 43\)"),
        ({"seed": 1}, UsageError, "no seed 1"),
        ({"index": 0, "seed": 42}, UsageError, "not both"),
        ({"index": 1}, EnsqError, "seed 43 is queued, not done; it has no checkpoint yet"),
        ({"index": 0, "checkpoint": Path("x")}, UsageError, "leave out --member"),
        ({"checkpoint": Path("nowhere")}, CheckpointError, "can't be read"),
        ({"checkpoint": Path(__file__)}, UsageError, "not a checkpoint of ensq"),
        ({"index": 0, "folder": Path()}, UsageError, "can't be the folder that you are in"),
    ],
)
def test_what_is_not_clear_or_not_there_is_refused(
    half: Trained, options: dict[str, object], error: type[Exception], text: str
) -> None:
    if isinstance(options.get("folder"), Path):
        options = {**options, "folder": Path.cwd()}
    with pytest.raises(error, match=text):
        reexport(*half, **options)  # type: ignore[arg-type]


def test_damaged_or_foreign_checkpoint_is_refused(
    half: Trained, checkpoints: list[Path], tmp_path: Path
) -> None:
    content = checkpoints[-1].read_bytes()
    for wrong in (content[:100], b"", content[: len(content) // 2]):
        (tmp_path / "c.safetensors").write_bytes(wrong)
        with pytest.raises((CheckpointError, UsageError), match=r"c\.safetensors"):
            reexport(*half, checkpoint=tmp_path / "c.safetensors", folder=tmp_path / "out")
    digest = half[1].config_digest.encode()
    assert digest in content
    other = content.replace(digest, b"0" * len(digest))
    unsealed = re.sub(rb"(?<=ensq-seal-sha256:)[0-9a-f]{64}", b"0" * 64, other, count=1)
    (tmp_path / "c.safetensors").write_bytes(seal.seal(unsealed))
    text = "of another run than tiny: the configuration differs"
    with pytest.raises(MismatchError, match=text):
        reexport(*half, checkpoint=tmp_path / "c.safetensors", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_cant_be_written_is_found_before_anything_is_computed(
    half: Trained, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    with pytest.raises(UsageError, match=r"can't be written .*file: Not a directory"):
        reexport(*half, index=0, folder=tmp_path / "file" / "out", say=said.append)
    assert said == []


def test_result_that_is_given_as_a_checkpoint_is_told_from_one(
    half: Trained, tmp_path: Path
) -> None:
    store, _ = half
    (path,) = store.root.glob("runs/tiny/seed-42/attempt-1/result.safetensors")
    found = ensq("export", "tiny", "--checkpoint", path, "-o", tmp_path / "out", cwd=store.root)
    assert found.returncode == 2
    assert "a result, not a checkpoint: use --member, or --seed 42" in found.stderr


def test_a_checkpoint_with_a_flipped_bit_is_not_exported(
    half: Trained, checkpoints: list[Path], tmp_path: Path
) -> None:
    store, _ = half
    data = bytearray(checkpoints[-1].read_bytes())
    data[-1] ^= 1
    bad = tmp_path / "epoch-000001-step-000000.safetensors"
    bad.write_bytes(data)
    found = ensq("export", "tiny", "--checkpoint", bad, "-o", tmp_path / "out", cwd=store.root)
    assert found.returncode == 1
    assert "it does not match its own seal" in found.stderr
    assert not (tmp_path / "out").exists()


def test_documented_way_from_python_gives_the_reported_loss(
    half: Trained,
    checkpoints: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, _ = half
    done = reexport(*half, checkpoint=checkpoints[-1], folder=tmp_path)
    (stored,) = (name for name in done.files if name.endswith(".safetensors"))
    text = (Path(__file__).parent.parent / "docs" / "outputs.md").read_text(encoding="utf-8")
    snippet = text.split("```python\n")[1].split("```")[0]
    snippet = snippet.replace("NAME_best.safetensors", stored)
    snippet = snippet.replace("data.npz", str(store.root / "tiny.npz"))
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    assert done.rmse_force is not None
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(done.rmse_force, rel=1e-5)
    with pytest.raises(CheckpointError, match=r"nowhere: can't be read"):
        load_model("nowhere")


def test_changed_data_are_refused(tmp_path: Path) -> None:
    store, ensemble = with_losses(tmp_path, [2.0])
    with (tmp_path / "tiny.npz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(MismatchError, match="the data have changed"):
        reexport(store, ensemble)


def test_command_line_exports_and_says_so(half: Trained) -> None:
    store, _ = half
    done = ensq("export", "tiny", "--member", "0", "-o", "alone", "--json", cwd=store.root)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["seed"] == 42
    assert (store.root / "alone" / "tiny_seed42.mlir").exists()
    assert np.isfinite(told["loss"])
    unclear = ensq("export", cwd=store.root)
    assert (unclear.returncode, unclear.stderr.count("\n")) == (2, 1)
