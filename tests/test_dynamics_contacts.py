"""Contacts in a dynamics check: which pairs count, how near they are, and what is too near."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_simulation_file import made

from ensq import simulation
from ensq.dynamics import contacts
from ensq.dynamics.measures import bonded_beads
from ensq.simulation import Contacts, judged
from ensq.train.dynamics import contacts as device
from ensq.train.dynamics.step import Layout
from ensq.train.neighbours import build_neighbours

CELL = np.array([[9.0, 0, 0], [1.5, 8.0, 0], [0, 0, 10.0]])
ALL = np.ones((12, 12), bool) & ~np.eye(12, dtype=bool)


def chain(frames: int = 5) -> Any:
    """Frames of a chain of 12 beads that goes its way through the cell and back into it."""
    rng = np.random.default_rng(3)
    steps = rng.normal(size=(frames, 12, 3))
    way = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=-1, keepdims=True), axis=1)
    wrapped = (way @ np.linalg.inv(CELL)) % 1.0 @ CELL
    return way, wrapped, np.tile(CELL, (frames, 1, 1))


def by_hand(R: Any, free: Any, cell: Any) -> Any:
    """The smallest distance, over all pairs and 5 x 5 x 5 images."""
    shifts = (
        [np.zeros(3)]
        if cell is None
        else [np.array(k) @ cell for k in itertools.product(range(-2, 3), repeat=3)]
    )
    return min(
        np.linalg.norm(R[j] + shift - R[i]) for i, j in np.argwhere(free) for shift in shifts
    )


def test_bonds_and_angles_of_a_chain_are_left_out_also_through_a_boundary() -> None:
    way, wrapped, cell = chain()
    real = np.arange(12) < 10
    wanted = np.abs(np.subtract.outer(np.arange(12), np.arange(12))) > 2
    wanted &= real[:, None] & real
    kinds = np.zeros(12, int)
    for R, box in ((way, None), (wrapped, cell)):
        bonded = bonded_beads(R, real, kinds, ("A",), elements=False, cell=box)
        assert (contacts.free_pairs(real, bonded) == wanted).all()
    # the negative control: without images the wrapped chain is none
    assert not bonded_beads(wrapped, real, kinds, ("A",), elements=False).any()


def test_bonds_and_angles_of_atoms_are_left_out() -> None:
    from ase.build import molecule

    water = molecule("CH3CH2OH")
    R, symbols = water.positions[None], sorted(set(water.symbols))
    kinds = np.array([symbols.index(one) for one in water.symbols])
    bonded = bonded_beads(R, np.ones(9, bool), kinds, symbols, elements=True)
    assert bonded.sum() == 2 * 8
    free = contacts.free_pairs(np.ones(9, bool), bonded)
    # ethanol: 36 pairs, 8 bonds, 6 + 6 + 1 angles
    assert free.sum() == 2 * (36 - 8 - 13)


@pytest.mark.parametrize("periodic", [False, True])
def test_the_nearest_pair_is_that_of_all_images_on_host_and_device(periodic: bool) -> None:
    way, wrapped, cell = chain()
    R, box = (wrapped, cell) if periodic else (way, None)
    free = np.triu(np.ones((12, 12), bool), 3)
    free |= free.T
    wanted = np.array([by_hand(R[t], free, CELL if periodic else None) for t in range(5)])
    found = contacts.nearest(R, free, 8.0, box)
    np.testing.assert_allclose(found.distance, np.minimum(wanted, 8.0), rtol=1e-12)
    assert all(free[i, j] for i, j in found.pair)
    near = build_neighbours(R, np.ones((5, 12)), 8.0, box)
    layout = Layout(
        nbr=jnp.asarray(near.index),
        rev=jnp.asarray(near.reverse),
        mask=jnp.asarray(near.mask),
        offset=None if near.offset is None else jnp.asarray(near.offset),
        origin=jnp.asarray(R),
        reach=jnp.asarray(1.0),
        free=jnp.asarray(near.mask & free[np.arange(12)[:, None], near.index]),
    )
    distance, pair = jax.jit(device.nearest)(jnp.asarray(R), layout)
    np.testing.assert_allclose(np.minimum(distance, 8.0), found.distance, rtol=1e-5)
    ends = np.sort(np.stack(np.divmod(np.asarray(pair), 12), axis=1), axis=1)
    assert (ends == found.pair).all()
    # the negative control: with bonds and angles among them something nearer is found
    assert (contacts.nearest(R, ALL, 8.0, box).distance < found.distance).any()


def test_frames_are_held_against_frames_however_many_the_data_have() -> None:
    rng = np.random.default_rng(0)
    replica, shares = np.repeat(np.arange(16), 200), []
    for frames in (400, 20_000):
        data = rng.normal(5.0, 0.3, frames)
        block = np.arange(frames) * 8 // frames
        same = contacts.compared(rng.normal(5.0, 0.3, 3200), replica, data, block)
        shares.append(same["closer"])
        assert not as_contacts(same).differs
        near = contacts.compared(rng.normal(4.6, 0.3, 3200), replica, data, block)
        assert as_contacts(near).differs and near["replicas_closer"] == 16
    np.testing.assert_allclose(shares, 0.01, atol=0.01)


def test_one_replica_alone_does_not_tell() -> None:
    data, near = np.linspace(4, 6, 800), np.full(800, 5.0)
    near[:100] = 3.0  # all of the first of eight replicas
    found = contacts.compared(near, np.repeat(np.arange(8), 100), data, np.arange(800) % 8)
    assert found["closer"] == found["never"] == 0.125 and found["replicas_closer"] == 1
    assert as_contacts(found).differs is False


def as_contacts(values: dict[str, Any]) -> Contacts:
    return Contacts(
        **{
            "molecule": "",
            "ceiling": 12.0,
            "limit": 1.9,
            "smallest": 3.2,
            "pair": (3, 7),
            "names": ("ALA", "GLY"),
            "replica": 1,
            "time": 0.1,
            "data_smallest": 3.9,
            "data_pair": (0, 4),
            "data_names": ("ALA", "ALA"),
            "data_frames": 800,
            "data_level": 4.0,
        }
        | values
    )


TOLD = {"closer": 0.4, "closer_interval": (0.2, 0.6), "closer_noise": (0.01, 0.05)}


def test_the_verdict_tells_of_contacts_where_there_are_too_many() -> None:
    words = judged(made(contacts=(as_contacts(TOLD),))).verdict
    assert "Contacts: in 40 % of the frames beads are closer" in words
    assert "3.2 Angstrom (beads 3 ALA and 7 GLY; 3.9 in the data)" in words
    usual = TOLD | {"closer_interval": (0.04, 0.6)}
    assert "Contacts" not in judged(made(contacts=(as_contacts(usual),))).verdict


def test_a_file_holds_contacts_and_one_of_before_is_read_without(tmp_path: Path) -> None:
    wanted = made(contacts=(as_contacts(TOLD),), nearest=np.ones((3, 2)), closest=np.ones((3, 2)))
    path, _ = simulation.write(tmp_path / "simulation-a.npz", wanted)
    found = simulation.read(path)
    assert found.contacts == wanted.contacts and (found.closest == 1.0).all()
    with np.load(path) as whole:
        arrays = {name: whole[name] for name in whole.files}
    import json

    about = json.loads(str(arrays["summary"]))
    del about["contacts"], arrays["nearest"], arrays["closest"]
    np.savez(path, **arrays | {"summary": np.array(json.dumps(about))})
    old = simulation.read(path)
    assert old.contacts == () and old.nearest is None
    assert dataclasses.replace(old, time=wanted.time).verdict == wanted.verdict


def test_half_of_the_data_s_distance_or_of_a_bond_is_an_overlap() -> None:
    assert contacts.limit(3.0, None) == 1.5
    assert contacts.limit(9.0, 3.8) == 1.9
