"""Which frames factors are fitted on, samples of real beads, degenerate spreads, stored factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ensq import data, prediction
from ensq.calibration import quantities, splitting, stored
from ensq.calibration.figures import Figure, Resampling
from ensq.calibration.results import CalibrationReport, Factor, Fitted
from ensq.calibration.samples import Forces, Observed
from ensq.calibration.stored import Calibration
from ensq.config.structs import DataConfig
from ensq.errors import CheckpointError, MismatchError, UsageError
from ensq.observing import observe
from ensq.prediction import Prediction
from ensq.resampling import blocks_of

Array = NDArray[Any]
ROOT = Path(__file__).parent.parent

# -- the split ------------------------------------------------------------------------------------


def _nearest(fitted: Array, judged: Array, trajectory: Array) -> float:
    """The least distance in time between frames of the two sides in one trajectory."""
    time = np.arange(len(trajectory))
    found = [np.inf]
    for number in np.unique(trajectory):
        one = time[fitted[trajectory[fitted] == number]]
        other = time[judged[trajectory[judged] == number]]
        if len(one) and len(other):
            found.append(float(np.abs(one[:, None] - other[None]).min()))
    return min(found)


def test_few_trajectories_are_cut_at_their_beginning_with_a_gap() -> None:
    trajectory = np.repeat([0, 1, 2], [400, 200, 100])
    found = splitting.split(700, 0.2, trajectory, np.zeros(700, int))
    assert len(found.fitted) == 140 and found.gap == 8 + 4 + 2
    assert len(found.fitted) + found.gap + len(found.judged) == 700
    assert _nearest(found.fitted, found.judged, trajectory) > 2
    for number in range(3):
        mine = found.fitted[trajectory[found.fitted] == number]
        assert mine[0] == np.flatnonzero(trajectory == number)[0]
        assert (np.diff(mine) == 1).all()
    # negative control: frames drawn at random are neighbours of what they are judged by
    drawn = np.random.default_rng(0).permutation(700)
    assert _nearest(np.sort(drawn[:140]), np.sort(drawn[140:]), trajectory) == 1


def test_many_trajectories_stay_whole_and_each_protein_gives_its_share() -> None:
    trajectory = np.repeat(np.arange(13), 30)
    protein = (trajectory >= 10).astype(int)  # ten of one, three of the other
    found = splitting.split(390, 0.2, trajectory, protein)
    first = [number for number in range(10) if number in trajectory[found.fitted]]
    assert len(first) == 2
    assert _nearest(found.fitted, found.judged, np.where(protein == 0, trajectory, -1)) >= 1
    for number in first:
        assert number not in trajectory[found.judged]
    assert "2 of 10 trajectories" in found.how and "first 20 %" in found.how
    for number in (10, 11, 12):
        assert (trajectory[found.fitted] == number).sum() == 6


def test_too_few_frames_for_both_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 of each"):
        splitting.split(4, 0.2, np.zeros(4, int), np.zeros(4, int))


# -- samples --------------------------------------------------------------------------------------


class Fake:
    """An ensemble that errs by known numbers on real beads, and predicts rubbish on padding."""

    def __init__(self, frames: data.Source, members: int = 3, masked: bool = True) -> None:
        self.frames, self.seeds, self.masked = frames, tuple(range(members)), masked
        rng = np.random.default_rng(0)
        assert frames.F is not None
        label = np.asarray(frames.F[np.arange(frames.n_frames)], float)
        self.away = rng.normal(size=(members, *label.shape))
        self.away[:, ~frames.mask[np.arange(frames.n_frames)]] = 50.0
        self.forces = label + self.away

    def __len__(self) -> int:
        return len(self.seeds)

    def parts(self, frames: data.Source, **options: Any) -> Iterator[tuple[Array, Prediction]]:
        order = np.random.default_rng(1).permutation(frames.n_frames)
        for index in np.array_split(order, 7):
            mask = np.asarray(frames.mask[index], bool)
            yield (
                index,
                prediction.summarize(
                    np.zeros((len(self), len(index))),
                    self.forces[:, index],
                    mask if self.masked else np.ones_like(mask),
                    seeds=self.seeds,
                    energy_unit="kcal/mol",
                    ddof=options["ddof"],
                    members=True,
                ),
            )


@pytest.fixture(scope="module")
def peptides() -> data.Data:
    """Two proteins of 10 and 15 beads; the padding lies at the origin and looks like ALA."""
    path = ROOT / "data" / "two_peptides.npz"
    whole = data.load(path, DataConfig(path=str(path)), None, "kcal/mol")
    return whole.take(np.arange(0, whole.n_frames, 20))


def observed_of(fake: Fake, ddof: int = 0) -> Observed:
    every = np.arange(fake.frames.n_frames)
    return observe(fake, fake.frames, every, ddof=ddof, energies=False)  # type: ignore[arg-type]


def figures_of(observed: Observed) -> quantities.Found:
    frames = observed.frames
    block = blocks_of(frames.count, replica=frames.replica, protein=frames.protein)
    found = quantities.of_forces(Resampling(block, 200), observed, "kcal/mol/Angstrom")
    assert found is not None
    return found


def test_padding_at_the_origin_does_not_count(peptides: data.Data) -> None:
    fake = Fake(peptides)
    found = figures_of(observed_of(fake)).quantity
    real = fake.away[:, peptides.mask]
    assert found.count == 3 * peptides.mask.sum()
    assert found.rmse.value == pytest.approx(np.sqrt((real.mean(axis=0) ** 2).mean()), rel=1e-5)
    for place, member in enumerate(found.members):
        assert member.rmse.value == pytest.approx(np.sqrt((real[place] ** 2).mean()), rel=1e-5)
    assert found.spread is not None
    sharp = np.sqrt(real.var(axis=0).mean())
    assert found.spread.scores.sharpness.value == pytest.approx(sharp, rel=1e-5)
    [alanine] = [group for group in found.species if group.name == "ALA"]
    is_ala = peptides.mask & (peptides.species == peptides.species_names.index("ALA"))
    assert alanine.count == 3 * is_ala.sum()
    longest = {group.protein: group.position for group in found.positions}
    assert longest == {peptides.protein_names[0]: 9, peptides.protein_names[1]: 14}
    # negative control: padding that counts would be seen
    padded = dataclasses.replace(peptides, mask=np.ones_like(peptides.mask))
    fake.frames = padded
    assert figures_of(observed_of(fake)).quantity.rmse.value > 10 * found.rmse.value


def test_errors_by_position_end_where_there_are_too_many(
    peptides: data.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = observed_of(Fake(peptides))
    every = figures_of(observed).quantity.positions
    assert len(every) == 25
    monkeypatch.setattr("ensq.calibration.accuracy.AT_ONCE", 4)
    for one, other in zip(figures_of(observed).quantity.positions, every, strict=True):
        assert (one.protein, one.position, one.count) == (
            other.protein,
            other.position,
            other.count,
        )
        assert one.rmse.value == other.rmse.value
        assert one.rmse.low == pytest.approx(other.rmse.low)
    monkeypatch.setattr("ensq.calibration.quantities.MOST_POSITIONS", 24)
    assert figures_of(observed).quantity.positions == ()


def test_ddof_1_makes_the_spread_larger_by_its_factor(peptides: data.Data) -> None:
    fake = Fake(peptides)
    zero, one = (figures_of(observed_of(fake, ddof)).quantity.spread for ddof in (0, 1))
    assert zero is not None and one is not None
    ratio = one.scores.sharpness.value / zero.scores.sharpness.value
    assert ratio == pytest.approx(np.sqrt(3 / 2), rel=1e-5)
    assert one.scores.ratio.value == pytest.approx(zero.scores.ratio.value / ratio, rel=1e-5)


def test_frames_that_are_taken_keep_their_beads(peptides: data.Data) -> None:
    fake = Fake(peptides)
    whole = observed_of(fake)
    chosen = np.arange(3, peptides.n_frames, 4)
    part = whole.take(chosen)
    again = observed_of(Fake(peptides))
    assert part.forces is not None and again.forces is not None
    kept = np.isin(again.forces.frame, chosen)
    np.testing.assert_array_equal(part.forces.error, again.forces.error[kept])
    np.testing.assert_array_equal(chosen[part.forces.frame], again.forces.frame[kept])
    assert part.forces.member_squares.shape == (3, len(chosen))


def _with_sigma(observed: Observed, sigma: Array | None) -> Observed:
    assert observed.forces is not None
    return dataclasses.replace(observed, forces=dataclasses.replace(observed.forces, sigma=sigma))


def test_no_spread_is_told_in_words(peptides: data.Data) -> None:
    observed = observed_of(Fake(peptides))
    forces = observed.forces
    assert isinstance(forces, Forces) and forces.sigma is not None
    single = figures_of(_with_sigma(observed, None)).quantity
    assert single.spread is None and single.no_spread == quantities.SINGLE
    assert single.proteins[0].sharpness is None
    same = figures_of(_with_sigma(observed, np.zeros_like(forces.sigma)))
    assert same.quantity.spread is None and same.quantity.no_spread == quantities.IDENTICAL
    assert quantities.force_sample(_with_sigma(observed, np.zeros_like(forces.sigma))) is None
    for values in same.arrays.values():
        assert values.dtype.kind in "US" or np.isfinite(values).all()
    some = forces.sigma.copy()
    some[: len(some) // 3] = 0.0
    found = figures_of(_with_sigma(observed, some))
    assert found.quantity.spread is not None
    assert found.quantity.spread.left_out == 3 * (len(some) // 3)
    assert np.isfinite(found.quantity.spread.scores.nll.value)


# -- stored factors -------------------------------------------------------------------------------

MEMBERS = ("a" * 64, "b" * 64, "c" * 64)


def calibration(**energy: Any) -> Calibration:
    factor = Factor(how="global", ddof=0, alpha=Figure(2.0))
    noisy = Factor(how="noise", ddof=0, alpha=Figure(1.5), noise=Figure(3.0))
    refused = Factor(how="imbalzano", ddof=1, refused="its formula needs more than 3 members")
    forces = Fitted(unit="x", count=9, factors=(factor, refused, noisy), judged=())
    report = CalibrationReport(
        fitted_on="x",
        fitted_digest="d",
        fitted_frames=9,
        fitted_blocks=3,
        gap_frames=0,
        judged_on="y",
        judged_frames=3,
        forces=forces,
        energy=energy.get("energy"),
    )
    return Calibration(
        format=stored.FORMAT,
        ensemble="x",
        members=MEMBERS,
        seeds=(0, 1, 2),
        energy_unit="kcal/mol",
        length_unit="Angstrom",
        report=report,
    )


@pytest.fixture
def predicted(peptides: data.Data) -> Prediction:
    fake = Fake(peptides)
    return prediction.gather(fake.parts(peptides, ddof=0), peptides.n_frames)


def test_factors_scale_spreads_of_any_unit_and_ddof(predicted: Prediction) -> None:
    known, mask = calibration(), predicted.mask
    wide = known.apply(predicted, "global")
    np.testing.assert_allclose(wide.forces_std, 2 * predicted.forces_std)
    np.testing.assert_allclose(wide.epsilon, 2 * predicted.epsilon)
    np.testing.assert_array_equal(wide.energy_std, predicted.energy_std)
    noisy = known.apply(predicted, "noise")
    total = np.sqrt(1.5**2 * predicted.forces_std**2 + 9.0)
    np.testing.assert_allclose(noisy.forces_std[mask], total[mask])
    np.testing.assert_allclose(noisy.epsilon[mask], np.sqrt((total**2).sum(axis=-1))[mask])
    assert (noisy.forces_std[~mask] == 0).all() and (noisy.epsilon[~mask] == 0).all()
    other = dataclasses.replace(predicted, ddof=1, forces_std=predicted.forces_std * np.sqrt(3 / 2))
    np.testing.assert_allclose(known.apply(other, "noise").forces_std, noisy.forces_std)
    converted = known.apply(predicted.converted("eV", "nm"), "noise")
    assert (converted.energy_unit, converted.length_unit) == ("eV", "nm")
    np.testing.assert_allclose(converted.forces_std, noisy.converted("eV", "nm").forces_std)


def test_energies_have_factors_of_their_own(predicted: Prediction) -> None:
    factor = Factor(how="global", ddof=1, alpha=Figure(3.0))
    known = calibration(energy=Fitted(unit="x", count=9, factors=(factor,), judged=()))
    spread = dataclasses.replace(predicted, energy_std=np.ones(predicted.n_frames))
    # of ddof 0; the factor is of ddof 1
    expected = 3.0 * np.sqrt(3 / 2)
    np.testing.assert_allclose(known.apply(spread, "global").energy_std, expected)


def test_factors_come_back_from_their_file_for_the_same_members_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ensq evaluate .* --store"):
        stored.read(tmp_path, MEMBERS)
    path = stored.write(tmp_path, calibration())
    before = path.read_bytes()
    assert stored.read(tmp_path, MEMBERS) == calibration()
    stored.write(tmp_path, calibration())
    assert path.read_bytes() == before
    with pytest.raises(MismatchError, match="of other members"):
        stored.read(tmp_path, ("a" * 64, "b" * 64, "d" * 64))
    path.write_text('{"format": 1')
    with pytest.raises(CheckpointError, match="damaged"):
        stored.read(tmp_path, MEMBERS)


def test_a_factor_that_is_not_there_and_other_members_are_refused(predicted: Prediction) -> None:
    known = calibration()
    assert known.available == ("global", "noise")
    with pytest.raises(UsageError, match="more than 3 members; there are: global, noise"):
        known.apply(predicted, "imbalzano")
    with pytest.raises(UsageError, match="no factor 'best'"):
        known.apply(predicted, "best")
    with pytest.raises(UsageError, match="no factor 'best'"):
        known.check("best")
    known.check("global")
    with pytest.raises(MismatchError, match="the prediction is by"):
        known.apply(dataclasses.replace(predicted, seeds=(7, 8, 9)), "global")
