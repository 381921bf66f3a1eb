"""Two beads in one place are no molecule: they are found, and refused wherever frames come in."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from convert_tools import convert
from data_tools import BOTH, T, arrays, load, save
from hypothesis import given, settings
from hypothesis import strategies as st

from ensq import frames as framing
from ensq.data import places
from ensq.data.examining import examine
from ensq.data.index import Index
from ensq.data.places import TOGETHER, together
from ensq.errors import DataError


def by_all_pairs(R: np.ndarray, mask: np.ndarray, nearer: float) -> set[int]:
    """The frames that have such beads, by looking at every pair."""
    found = set()
    for frame, (positions, real) in enumerate(zip(R, mask, strict=True)):
        for one, other in itertools.combinations(np.flatnonzero(real), 2):
            if np.linalg.norm(positions[one] - positions[other]) < nearer:
                found.add(frame)
    return found


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), lattice=st.booleans(), at_a_time=st.sampled_from([1, 40]))
def test_they_are_those_that_all_pairs_have(seed: int, lattice: bool, at_a_time: int) -> None:
    """In random frames and in lattices, whose beads have many coordinates in common."""
    rng = np.random.default_rng(seed)
    frames, beads = 9, int(rng.integers(1, 12))
    R = rng.normal(size=(frames, beads, 3)) * 3
    if lattice:
        R = np.round(R)  # some of them fall together
    for frame in rng.integers(0, frames, 3):
        one, other = rng.integers(0, beads, 2)
        R[frame, one] = R[frame, other] + rng.normal(size=3) * rng.choice([0.0, 1e-5, 1e-2])
    mask = rng.random((frames, beads)) < 0.8
    expected = by_all_pairs(R, mask, TOGETHER)
    before, places._BEADS_AT_A_TIME = places._BEADS_AT_A_TIME, at_a_time
    try:
        found = together(R, mask, first=100)
    finally:
        places._BEADS_AT_A_TIME = before
    if not expected:
        assert found is None
        return
    assert found is not None
    assert (found.frame - 100, found.frames) == (min(expected), len(expected))
    one, other = found.beads
    assert one < other and mask[found.frame - 100, [one, other]].all()
    assert np.linalg.norm(np.subtract(*R[found.frame - 100, [one, other]])) < TOGETHER


def test_beads_side_by_side_on_the_line_need_not_be_neighbours_there() -> None:
    """Others between the two, in the same plane across the line, do not hide them."""
    across = np.linalg.svd(places._DIRECTION[None])[2][1]
    R = np.stack([np.zeros(3), across, 2 * across, 3 * across, np.zeros(3) + 1e-9])[None]
    assert (found := together(R, np.ones((1, 5), bool))) is not None
    assert found.beads == (0, 4)
    assert together(R[:, :4], np.ones((1, 4), bool)) is None


def test_of_several_the_first_pair_is_told_and_padding_may_hold_anything() -> None:
    R = np.random.default_rng(0).normal(size=(2, 40, 3)) * 5
    R[1, 20:] = 0
    found = together(R, np.ones((2, 40), bool))
    assert found is not None and (found.frame, found.beads) == (1, (20, 21))
    mask = np.ones((2, 40), bool)
    mask[1, 20:] = False
    R[1, 30] = np.inf, -np.inf, 0
    framing.from_arrays(R, np.zeros((2, 40), int), names=("A",), mask=mask)


SAME = "frame 7, beads 1 and 2 are in the same place: damaged, or padding that no mask"


def test_a_file_with_such_a_frame_is_refused(tmp_path: Path) -> None:
    raw = arrays()
    raw["R"][7, 2] = raw["R"][7, 1]
    with pytest.raises(DataError, match=SAME):
        load(save(tmp_path / "d.npz", raw), BOTH)
    with pytest.raises(DataError, match=SAME):
        convert(save(tmp_path / "d.npz", raw))


def test_padding_without_a_mask_is_called_so(tmp_path: Path) -> None:
    raw = arrays()
    raw["R"][:, 2:], raw["mask"][:, 2:] = 0, 0
    assert load(save(tmp_path / "d.npz", raw), BOTH).mask.sum() == 2 * T
    del raw["mask"]
    with pytest.raises(DataError, match=rf"frame 0, beads 2 and 3 .* \({T} such frames\).* mask"):
        load(save(tmp_path / "d.npz", raw), BOTH)


@pytest.mark.parametrize(("apart", "refused"), [(0.0005, True), (0.005, False)])
@pytest.mark.parametrize(("unit", "length"), [("Angstrom", 1.0), ("nm", 10.0)])
def test_how_near_they_may_be_is_in_angstrom(
    tmp_path: Path, unit: str, length: float, apart: float, refused: bool
) -> None:
    raw = arrays()
    raw["R"] = (raw["R"] / length).astype(np.float64)
    raw["R"][3, 0] = raw["R"][3, 1] + [apart / length, 0, 0]
    path = save(tmp_path / "d.npz", raw)
    if refused:
        with pytest.raises(DataError, match="frame 3, beads 0 and 1 are in the same place"):
            load(path, BOTH, units={"length": unit})
    else:
        load(path, BOTH, units={"length": unit})


def test_a_converted_set_from_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set that another program wrote, or an earlier version."""
    raw = arrays()
    raw["R"][7, 2] = raw["R"][7, 1]
    source = save(tmp_path / "d.npz", raw)
    with monkeypatch.context() as before:
        before.setattr("ensq.data.checks.together", lambda *args, **more: None)
        made = convert(source)
    with pytest.raises(DataError, match=SAME):
        examine(made.path, lambda *args: None)
    monkeypatch.setattr("ensq.data.examining.together", lambda *args, **more: None)
    assert isinstance(examine(made.path, lambda *args: None), Index)  # the control


def test_frames_to_predict_are_refused() -> None:
    """The model would leave the pair out, and all members would agree on the rest."""
    R = np.random.default_rng(0).normal(size=(3, 4, 3))
    R[1, 3] = R[1, 0]
    with pytest.raises(DataError, match="frame 1, beads 0 and 3 are in the same place"):
        framing.from_arrays(R, np.zeros((3, 4), int), names=("A",))
    mask = np.ones((3, 4), bool)
    mask[1, 3] = False
    framing.from_arrays(R, np.zeros((3, 4), int), names=("A",), mask=mask)
