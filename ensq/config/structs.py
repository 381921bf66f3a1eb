"""The run's configuration as frozen, strict structs: every key that ensq knows, with its default.

Lengths are in Angstrom, angles in rad; energies in the unit that ``data.units.energy`` declares.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
# Seeds are 32-bit, so that they mean the same with and without JAX's 64-bit mode.
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]

OptimizerName = Literal[
    "adam", "adamw", "adabelief", "yogi", "lion", "sgd_nesterov", "polyak_sgd", "fromage"
]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
FILE_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A struct that refuses keys it does not know."""


def finite(**values: float | None) -> None:
    """Raise ValueError for NaN or infinity, which YAML can write as .nan and .inf."""
    for key, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number, not {value}")


class EnsembleConfig(Strict, frozen=True):
    """Whether, and over which seeds, an ensemble is trained."""

    enabled: bool = False
    n_models: PositiveInt = 5
    base_seed: Seed = 42
    save_all_models: bool = False


class SplitConfig(Strict, frozen=True):
    """How frames are split: shuffled frames, whole trajectories, or the end of each trajectory."""

    by: Literal["frame", "replica", "tail"] = "frame"
    validation: tuple[int, ...] = ()  # by replica: the validation trajectories

    def __post_init__(self) -> None:
        if self.by == "replica" and not self.validation:
            raise ValueError("split by replica needs `validation`, the list of its trajectories")
        if self.by != "replica" and self.validation:
            raise ValueError(f"`validation` has a meaning only with by: replica, not by: {self.by}")


class UnitsConfig(Strict, frozen=True):
    """Units of the data; forces are energy per Angstrom."""

    energy: Literal["kcal/mol", "eV"] = "kcal/mol"


class DataConfig(Strict, frozen=True):
    """The data set and how its frames are chosen."""

    path: str
    max_frames: PositiveInt | None = None
    seed: Seed = 0  # of the split and of the order of batches: the same for all members
    split: SplitConfig = SplitConfig()
    units: UnitsConfig = UnitsConfig()


class AllegroConfig(Strict, frozen=True):
    """The Allegro network (Musaelian et al., Nat. Commun. 14, 579 (2023))."""

    max_ell: Annotated[int, Meta(ge=0, le=3)] = 1
    num_layers: Annotated[int, Meta(ge=1, le=4)] = 1
    n_channels: PositiveInt = 16
    n_radial_basis: PositiveInt = 8
    envelope_p: Annotated[int, Meta(ge=2)] = 6
    mlp_n_hidden: PositiveInt = 32
    mlp_n_layers: PositiveInt = 1
    avg_num_neighbors: Positive | None = None  # null: from the training frames
    # o3: features have a parity, mirror images get one energy (atomistic potentials);
    # so3: they have none, and chiral coarse-grained molecules can be told from their images.
    symmetry: Literal["o3", "so3"] = "o3"

    def __post_init__(self) -> None:
        finite(avg_num_neighbors=self.avg_num_neighbors)
        if self.symmetry == "so3" and self.max_ell == 0:
            raise ValueError(
                "symmetry: so3 needs max_ell of 1 or more; distances alone have no handedness"
            )


class PriorWeights(Strict, frozen=True):
    """Factors of the terms of the prior."""

    bond: float = 0.5
    angle: float = 0.1
    dihedral: float = 0.15
    repulsive: float = 0.25
    excluded_volume: float = 1.0

    def __post_init__(self) -> None:
        finite(**{key: getattr(self, key) for key in self.__struct_fields__})


class PriorsConfig(Strict, frozen=True):
    """Terms over a linear chain of beads; a term whose parameters are absent is absent.

    bond 1/2 kr (r - r0)^2; angle sum_n a_n cos(n theta) + b_n sin(n theta);
    dihedral sum_n k_n (1 + cos(n phi - gamma_n)), n from 1; repulsion epsilon (sigma/r)^4 for
    |i-j| >= 6; excluded volume epsilon_ex (sigma_ex/r)^4 for 2 <= |i-j| <= 5.
    """

    weights: PriorWeights = PriorWeights()
    r0: Positive | None = None
    kr: NonNegative | None = None
    a: tuple[float, ...] = ()
    b: tuple[float, ...] = ()
    k_dih: tuple[float, ...] = ()
    gamma_dih: tuple[float, ...] = ()
    epsilon: NonNegative | None = None
    sigma: Positive | None = None
    epsilon_ex: NonNegative | None = None
    sigma_ex: Positive | None = None

    def __post_init__(self) -> None:
        for one, two in (("r0", "kr"), ("epsilon", "sigma"), ("epsilon_ex", "sigma_ex")):
            if (getattr(self, one) is None) != (getattr(self, two) is None):
                raise ValueError(f"{one} and {two} go together: give both or neither")
        for one, two in (("a", "b"), ("k_dih", "gamma_dih")):
            if len(getattr(self, one)) != len(getattr(self, two)):
                raise ValueError(f"{one} and {two} must have the same number of entries")
        for key in ("a", "b", "k_dih", "gamma_dih"):
            for value in getattr(self, key):
                finite(**{key: value})


class ModelConfig(Strict, frozen=True):
    """The potential: a network, plus priors if wanted."""

    cutoff: Positive
    ml_model: Literal["allegro"] = "allegro"
    allegro: AllegroConfig = AllegroConfig()
    use_priors: bool = False
    priors: PriorsConfig = PriorsConfig()

    def __post_init__(self) -> None:
        finite(cutoff=self.cutoff)


class StageConfig(Strict, frozen=True):
    """Epochs with one optimiser; the next stage goes on from this one's last parameters."""

    optimizer: OptimizerName
    epochs: PositiveInt


class GammasConfig(Strict, frozen=True):
    """Weights of the parts of the loss: F mean squared error per force component over real
    beads, U mean squared error of the total energy per frame. 0 leaves a part out."""

    F: NonNegative = 1.0
    U: NonNegative = 0.0

    def __post_init__(self) -> None:
        finite(F=self.F, U=self.U)
        if self.F == 0 and self.U == 0:
            raise ValueError("gammas: F and U are both 0, so there is nothing to train on")


class TrainingConfig(Strict, frozen=True):
    """How a member is trained."""

    stages: Annotated[tuple[StageConfig, ...], Meta(min_length=1)]
    val_fraction: Fraction = 0.1
    batch_per_device: PositiveInt = 32
    gammas: GammasConfig = GammasConfig()
    checkpoint_freq: PositiveInt = 1  # epochs between checkpoints
    ema_decay: Fraction | None = None  # if set, averaged parameters are evaluated and exported
    precision: Literal["float32", "float64"] = "float32"
    export_path: str | None = None  # null: exported_models in the run folder


class OptimizerSettings(Strict, frozen=True):
    """One optimiser: linear warm-up from lr to peak_lr over warmup_steps gradient steps, then a
    cosine to end_lr that is reached total_steps after the stage's start (null: at its end)."""

    lr: Positive = 1e-3
    peak_lr: Positive | None = None  # null: lr
    end_lr: NonNegative | None = None  # null: lr / 10
    warmup_steps: NonNegativeInt = 0
    total_steps: PositiveInt | None = None
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    eps: Positive | None = None  # null: the optimiser's own
    weight_decay: NonNegative = 0.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9

    def __post_init__(self) -> None:
        finite(lr=self.lr, peak_lr=self.peak_lr, end_lr=self.end_lr, eps=self.eps)
        finite(weight_decay=self.weight_decay)
        if self.total_steps is not None and self.total_steps <= self.warmup_steps:
            raise ValueError("total_steps must be larger than warmup_steps, which it includes")


class OptimizerConfig(Strict, frozen=True):
    """Gradient clipping (per member, by global norm; null: none) and the optimisers' settings."""

    grad_clip: Positive | None = 1.0
    adam: OptimizerSettings = OptimizerSettings()
    adamw: OptimizerSettings = OptimizerSettings()
    adabelief: OptimizerSettings = OptimizerSettings()
    yogi: OptimizerSettings = OptimizerSettings()
    lion: OptimizerSettings = OptimizerSettings()
    sgd_nesterov: OptimizerSettings = OptimizerSettings()
    polyak_sgd: OptimizerSettings = OptimizerSettings()
    fromage: OptimizerSettings = OptimizerSettings()


class RunConfig(Strict, frozen=True):
    """One run: everything that decides what is trained."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    model_context: str = "model"  # the stem of the exported files' names
    seed: Seed = 42  # of the one model, when no ensemble is trained
    protein_name: str | None = None
    model_id: str | None = None

    def __post_init__(self) -> None:
        if not FILE_STEM.fullmatch(self.model_context):
            raise ValueError(
                "model_context becomes part of file names: use letters, digits and _ . + - only, "
                f"at most 100, starting with a letter or digit; got {self.model_context!r}"
            )
        last = self.ensemble.base_seed + self.ensemble.n_models - 1
        if self.ensemble.enabled and last > 2**31 - 1:
            raise ValueError(f"ensemble: the last seed would be {last}, over {2**31 - 1}")

    def get_ensemble_config(self) -> EnsembleConfig:
        """The ensemble section with the plan's defaults for what the file leaves out."""
        return self.ensemble

    def is_ensemble_enabled(self) -> bool:
        """Whether several seeds are trained; otherwise one model with the top-level seed."""
        return self.ensemble.enabled

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all members, in order."""
        if not self.ensemble.enabled:
            return (self.seed,)
        start = self.ensemble.base_seed
        return tuple(range(start, start + self.ensemble.n_models))

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.training.stages)
