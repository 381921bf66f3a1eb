"""What is found out about an ensemble's predictions, as values."""

from __future__ import annotations

from dataclasses import dataclass

from ensq.calibration.figures import Figure


@dataclass(frozen=True, kw_only=True)
class Member:
    """The errors of one member alone."""

    seed: int
    rmse: Figure
    mae: Figure


@dataclass(frozen=True, kw_only=True)
class Group:
    """The errors of the mean over members, for some of the beads or frames."""

    name: str  # of a protein, or of a species
    count: int  # components, or frames
    rmse: Figure
    mae: Figure
    sharpness: Figure | None  # rms of sigma; None where there is no spread
    protein: str | None = None  # of a position
    position: int | None = None  # index of the bead in its molecule, from 0


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The share of errors with |error| <= ``sigmas`` * sigma."""

    nominal: float  # the share where errors are normal with this sigma
    sigmas: float
    observed: Figure
    # the share where the truth is one more draw like the members: few members have a noisy sigma
    like_members: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well sigma describes the errors, which are taken as normal with mean 0."""

    nll: Figure  # mean of ln(2 pi sigma^2)/2 + error^2/(2 sigma^2); the unit is in the logarithm
    miscalibration_area: Figure  # between calibration curve and diagonal; 0 to 0.5
    coverage: tuple[Coverage, ...]
    sharpness: Figure  # rms of sigma
    ratio: Figure  # rms of the errors by rms of sigma


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The spread over the members as an uncertainty."""

    used: int  # samples
    left_out: int  # samples with no spread at all, which none of these figures holds
    scores: Scores
    spearman: dict[str, Figure]  # of sigma and |error|, by what a sample is


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Errors and spread of forces (samples are components) or energies (samples are frames)."""

    unit: str
    samples: str  # what one is
    count: int
    reference_rms: float  # of the labels: the error of predicting zero; of energies their std
    rmse: Figure  # of the mean over members
    mae: Figure
    members: tuple[Member, ...]
    proteins: tuple[Group, ...]
    species: tuple[Group, ...]
    positions: tuple[Group, ...]
    spread: Spread | None
    no_spread: str | None  # why there is none


@dataclass(frozen=True, kw_only=True)
class PerBead:
    """Energies by the number of beads."""

    unit: str
    rmse: Figure
    mae: Figure
    sharpness: Figure | None
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True)
class BySpecies:
    """The fit ``noise`` with one alpha and a noise for each species."""

    alpha: Figure
    noise: dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """sigma_calibrated^2 = alpha^2 sigma^2 + noise^2, fitted in one of three ways."""

    how: str  # global, imbalzano or noise
    ddof: int  # of the sigma that alpha multiplies
    alpha: Figure | None = None  # None: it can't be had
    noise: Figure | None = None  # of "noise" alone; in the quantity's unit
    by_species: BySpecies | None = None
    refused: str | None = None  # why there is no factor


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a factor is worth on frames that it was not fitted on; ``how`` none: sigma as it is."""

    how: str
    scores: Scores
    nll_change: Figure | None = None  # against sigma as it is, of the same draws; None for none
    area_change: Figure | None = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Factors of one quantity, and what they are worth."""

    unit: str
    count: int  # samples that they were fitted on
    factors: tuple[Factor, ...]
    judged: tuple[Judged, ...]  # empty if no frames were left to judge on


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """Where factors come from, and the factors of forces and energies."""

    fitted_on: str  # in words
    fitted_digest: str  # of that data file
    fitted_frames: int
    fitted_blocks: int
    gap_frames: int  # between the two parts, in neither
    judged_on: str
    judged_frames: int
    forces: Fitted | None
    energy: Fitted | None
