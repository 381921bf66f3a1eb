"""Boltzmann inversion: known potentials come back, and densities are those of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from priors_tools import (
    CHIGNOLIN,
    KT,
    TRUE,
    angle_energy,
    bond_energy,
    built,
    dihedral_energy,
    fitted,
    known,
)

from ensq import boltzmann, priorfiles
from ensq.boltzmann import Chains, Fit
from ensq.errors import DataError
from ensq.plots import density_of


def error_of(fit: Fit, name: str, truth: Callable[[Any], Any]) -> float:
    """Root mean square difference of a potential over the samples, up to a constant, in kT."""
    term = next(term for term in fit.terms if term.name == name)
    difference = (term.potential(term.samples) - truth(term.samples)) / KT
    return float(difference.std())


@pytest.mark.parametrize("kind", ["fourier", "spline"])
@pytest.mark.parametrize("name", TRUE)
def test_the_potential_that_the_chains_were_drawn_from_comes_back(kind, name):
    assert error_of(fitted(kind), name, TRUE[name]) < 0.08


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bond", lambda r: 2 * bond_energy(r)),
        ("angle", lambda t: angle_energy(t) - KT * np.log(np.sin(t))),  # no volume element
        ("dihedral", lambda p: dihedral_energy(-p)),  # the other hand
    ],
)
def test_another_potential_is_told_from_it(name, wrong):
    assert error_of(fitted("fourier"), name, wrong) > 0.15


def test_numbers_of_a_series_are_those_of_the_potential():
    numbers = {
        key: value for term in fitted("fourier").terms for key, value in term.numbers.items()
    }
    assert numbers["r0"] == pytest.approx(3.8, abs=0.01)
    assert numbers["kr"] == pytest.approx(150.0, rel=0.03)
    assert min(numbers["k_dih"]) >= 0.0
    np.testing.assert_allclose(numbers["k_dih"], [0.6, 0.5, 0.2], atol=0.03)
    np.testing.assert_allclose(numbers["gamma_dih"], [0.7, -1.9, 0.0], atol=0.15)


THETA = np.linspace(0.01, np.pi - 0.01, 500)


def strays(samples: Any, energy: Any) -> float:
    """The share of the density sin(theta) exp(-U/kT) where no samples are."""
    density = np.sin(THETA) * np.exp(-(energy - energy.min()) / 0.69552)
    outside = (samples.min() - 0.05 > THETA) | (samples.max() + 0.05 < THETA)
    return float(density[outside].sum() / density.sum())


def test_no_order_makes_a_minimum_where_the_data_have_none():
    chains = priorfiles.read(CHIGNOLIN)
    for order in (2, 4, 6, 8):
        angle = boltzmann.fit(chains, temperature=350.0, orders=(order, 1)).terms[1]
        assert strays(angle.samples, angle.potential(THETA)) < 1e-2


def test_least_squares_on_the_histogram_would_make_one():
    """Why the series are fitted by maximum likelihood."""
    samples = boltzmann.measure(priorfiles.read(CHIGNOLIN)).angle
    counts, edges = np.histogram(samples, 90, (0, np.pi))
    x, some = 0.5 * (edges[1:] + edges[:-1]), counts > 4
    n = np.arange(1, 5)[:, None]
    waves = [
        np.concatenate([np.cos(n * t), np.sin(n * t), np.ones((1, len(t)))]) for t in (x, THETA)
    ]
    energy = -0.69552 * np.log(counts[some] / np.sin(x[some]))
    weight = np.sqrt(counts[some])
    numbers = np.linalg.lstsq((waves[0][:, some] * weight).T, energy * weight, rcond=None)[0]
    assert strays(samples, numbers @ waves[1]) > 0.5


def test_chignolin_has_the_bond_that_its_readme_tells():
    chains = priorfiles.read(CHIGNOLIN)
    assert chains.temperature == 350.0
    bond = boltzmann.fit(chains, temperature=350.0).terms[0].numbers
    assert bond["r0"] == pytest.approx(3.8730, abs=5e-5)
    assert bond["kr"] == pytest.approx(193.1, abs=0.05)
    in_ev = boltzmann.fit(chains, temperature=350.0, unit="eV").terms[0].numbers
    assert in_ev["kr"] == pytest.approx(193.1 / 23.0605, rel=1e-3)


@pytest.mark.parametrize("kind", ["fourier", "spline"])
def test_the_density_of_a_fit_is_that_of_the_data(kind):
    fit = fitted(kind)
    for term in fit.terms:
        low, high = term.range
        edges = np.linspace(low, high, 41)
        x = 0.5 * (edges[1:] + edges[:-1])
        data = np.histogram(term.samples, edges, density=True)[0]
        width = edges[1] - edges[0]
        apart = [np.abs(density_of(term, x, kT) - data).sum() * width for kT in (fit.kT, 2 * KT)]
        assert apart[0] < 0.06 < 0.1 < apart[1]
        assert density_of(term, x, fit.kT).sum() * width == pytest.approx(1.0)


def test_a_species_with_few_angles_takes_the_spline_of_all(tmp_path):
    chains = known()
    species = np.where(np.arange(9) == 4, (np.arange(4000) < 150)[:, None], 0) * 2
    fit = boltzmann.fit(chains._replace(species=species), temperature=300.0, kind="spline")
    assert [spline is not None for spline in fit.angle_types] == [True, False, False]
    assert fit.angle_counts == (27850, 0, 150)


def test_beads_that_are_alone_are_no_chain():
    chains = known()
    alone = np.broadcast_to(np.arange(9) % 2 == 0, chains.real.shape)
    with pytest.raises(DataError, match="nowhere do two real beads follow each other"):
        boltzmann.fit(chains._replace(real=alone), temperature=300.0)


def test_chains_are_built_as_the_model_measures_them():
    """The test's own geometry, against chains of one dihedral: a right-handed helix is positive."""
    turn = np.deg2rad(100.0) * np.arange(9)
    helix = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(9)], axis=-1)[None]
    ones = np.ones((1, 9), bool)
    samples = boltzmann.measure(Chains(helix, ones, ones.astype(int), 2, None, ""))
    assert np.rad2deg(samples.dihedral).mean() == pytest.approx(50.0, abs=3.0)
    again = built(samples.bond[None], samples.angle[None], samples.dihedral[None])
    distances = [np.linalg.norm(x[0, :, None] - x[0], axis=-1) for x in (helix, again)]
    np.testing.assert_allclose(*distances, atol=1e-9)
    assert jax.config.jax_enable_x64 is False
