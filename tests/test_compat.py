"""Pinned and current JAX: what is put back, whether it is needed, and that the numbers agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from packaging.version import Version
from train_tools import Listener, settings, task, write_tiny

from ensq import data
from ensq.train import compat, environment
from ensq.train.dataset import prepare
from ensq.train.pack import Program
from ensq.train.trainer import Trainer

GOLDEN = Path(__file__).parent / "golden" / "trajectories.json"
# Two releases of JAX compile the same formula to other sums: in float64 the losses differ in the
# last digits, which a few epochs of training carry up. Some constants of jax_md_mod's DimeNet++
# are float32, whatever the precision.
RTOL = {"allegro": 1e-9, "dimenetpp": 1e-7, "priors": 1e-9}
MODELS: dict[str, tuple[str, ...]] = {
    "allegro": ("model.allegro.max_ell=1",),
    "dimenetpp": (
        "model.ml_model=dimenetpp",
        "model.dimenetpp={embed_size: 4, n_interaction_blocks: 1, num_sbf: 2, num_rbf: 3}",
    ),
    "priors": ("model.prior_only=true", "model.use_priors=true", "model.train_priors=true"),
}

# Applies all patches but one, then imports what that one is for.
_WITHOUT = """
import sys
import ensq.train as package, importlib.util, types
spec = importlib.util.find_spec("ensq.train.compat")
source = open(spec.origin).read()
module = types.ModuleType("ensq.train.compat")
sys.modules["ensq.train.compat"] = package.compat = module
head, _, _ = source.rpartition("apply()")
exec(compile(head, spec.origin, "exec"), module.__dict__)
module.PATCHES = tuple(patch for patch in module.PATCHES if patch.name != sys.argv[1])
module.apply()
from chemtrain.learn import force_matching
from chemtrain.deploy import exporter
from chemtrain.trainers import ForceMatching
from jax_md_mod.model.neural_networks import DimeNetPP
from jax_md_mod.model import dimenet_basis_util as util
util.sph_harm_prefactor(1, 0)
print("imported")
"""


def import_without(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT, name], capture_output=True, text=True, timeout=120
    )


def test_everything_is_imported_with_all_patches() -> None:
    done = import_without("none of them")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "imported"


@pytest.mark.parametrize("name", compat.applied())
def test_a_patch_that_is_applied_is_needed(name: str) -> None:
    done = import_without(name)
    assert done.returncode != 0, f"{name} is not needed any more"
    assert "Error" in done.stderr


def test_the_patches_are_those_for_this_jax() -> None:
    current = Version(jax.__version__) >= Version("0.10")
    expected = ("tree", "bridge", "math", "messages") if current else ()
    assert compat.applied() == expected


def test_no_patch_does_anything_twice() -> None:
    before = compat.applied()
    compat.apply()
    assert compat.applied() == before
    assert not [patch.name for patch in compat.PATCHES if patch.needed()] or before


def test_products_of_float32_are_not_rounded_in_training_or_in_exported_models() -> None:
    """On a CPU they are exact anyway: what XLA is asked for is looked at."""
    from ensq.train.models.dense import linear

    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 3), (3, 5))]
    text = jax.jit(linear).lower(*shapes).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in text
    rounded = jax.jit(lambda w, x: linear(w, x, True)).lower(*shapes).as_text()
    assert "bf16" in rounded and "bf16" not in text


def test_a_model_file_reads_back_what_was_written() -> None:
    from chemtrain.deploy._protobuf import model_pb2

    model = model_pb2.Model()
    model.mlir_module, model.unit_style = "module {}", "real"
    model.neighbor_list.cutoff = 2.5
    model.neighbor_list.nbr_order.extend([1, 2])
    model.neighbor_list.type = model.NeighborListType.SIMPLE_DENSE
    written = model.SerializeToString(deterministic=True)
    # What protobuf 3.20 wrote of the same message.
    assert written == (b'\n\tmodule {}"\x0b\x08\x02\x15\x00\x00 @\x18\x01\x18\x02*\x04real')
    assert model_pb2.Model.FromString(written) == model


def trajectory(folder: Path, *overrides: str) -> dict[str, Any]:
    """Losses by epoch of two members, in float64."""
    once = "training.stages=[{optimizer: adam, epochs: 3}]"
    config = settings("training.precision=float64", once, *overrides)
    path = write_tiny(folder / "tiny.npz")
    environment.set_precision("float64")
    try:
        dataset = prepare(path, data.digest(path), config, lambda text: None)
        listener = Listener()
        tasks = [task(folder, seed) for seed in (1, 2)]
        Trainer(Program(config, dataset), config, "d" * 64).train(tasks, listener)
    finally:
        environment.set_precision("float32")
    return {
        str(seed): [[epoch.train_loss, epoch.val_loss] for epoch in listener.epochs(seed)]
        for seed in (1, 2)
    }


@pytest.mark.parametrize("model", MODELS)
def test_losses_agree_with_those_of_the_pinned_jax(model: str, tmp_path: Path) -> None:
    found = trajectory(tmp_path, *MODELS[model])
    expected = json.loads(GOLDEN.read_text())["losses"][model]
    assert found.keys() == expected.keys()
    for seed, losses in expected.items():
        assert len(losses) == 3
        np.testing.assert_allclose(found[seed], losses, rtol=RTOL[model])


def write_golden() -> None:
    """The file of losses, from the JAX that is installed."""
    import tempfile

    losses = {}
    for model, overrides in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            losses[model] = trajectory(Path(folder), *overrides)
    made = {"versions": environment.versions(), "losses": losses}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
