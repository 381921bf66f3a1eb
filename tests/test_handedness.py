"""By default residues tell a helix from its mirror image, and elements do not."""

from __future__ import annotations

from typing import Any

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax.numpy as jnp
import numpy as np
import pytest
from instrument_tools import exact_float64
from model_tools import (
    BEADS,
    CUTOFF,
    SHIFTS,
    STATISTICS,
    compile_fast,
    frames_of,
    helix,
    parameters,
)

from ensq.config.model import AllegroConfig, ModelConfig
from ensq.train.models import EnergyModel, allegro, build_model

float64 = pytest.fixture(scope="module", autouse=True)(exact_float64)


def by_default(layers: int, elements: bool) -> EnergyModel:
    config = ModelConfig(
        cutoff=CUTOFF,
        allegro=AllegroConfig(num_layers=layers, n_channels=2, mlp_n_hidden=6, n_radial_basis=4),
    )
    return build_model(config, STATISTICS._replace(elements=elements))


def handedness(model: EnergyModel) -> tuple[float, float]:
    """How far energy and forces of a helix and of its mirror image are apart, relative to the
    network's energy and to the forces."""
    flip = np.array([1.0, 1.0, -1.0])
    both = frames_of(np.stack([helix(), helix() * flip]), np.zeros(BEADS, int))
    params = parameters(model)
    # a new function: the model's own may have been compiled before a test changed the code
    energy, forces = compile_fast(lambda p, f: model.energy_and_forces(p, f))(params, both)
    energy, forces = np.asarray(energy) - BEADS * SHIFTS[0], np.asarray(forces)
    apart = np.linalg.norm(forces[1] * flip - forces[0]) / np.linalg.norm(forces[0])
    return abs(energy[1] - energy[0]) / abs(energy[0]), float(apart)


# At random first weights; a stack of layers begins with small products, so that it shows it less.
@pytest.mark.parametrize(("layers", "energies", "forces"), [(1, 1e-3, 1e-2), (2, 1e-5, 1e-3)])
def test_by_default_residues_tell_a_helix_from_its_mirror_image_and_elements_do_not(
    layers: int, energies: float, forces: float
) -> None:
    residues, elements = by_default(layers, False), by_default(layers, True)
    assert residues.network != elements.network
    assert (np.array(handedness(residues)) > [energies, forces]).all()
    assert max(handedness(elements)) < 1e-12


def test_distances_alone_keep_parity_by_default() -> None:
    config = ModelConfig(cutoff=CUTOFF, allegro=AllegroConfig(max_ell=0))
    network = build_model(config, STATISTICS).network
    assert isinstance(network, allegro.Allegro) and network.parity


def test_one_layer_without_the_triple_product_would_not_tell_them_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = by_default(1, False)

    def nothing(weights: Any, vector: Any, *others: Any) -> Any:
        return jnp.zeros_like(vector[0])

    monkeypatch.setattr(allegro, "_triple_product", nothing)
    assert max(handedness(model)) < 1e-12
