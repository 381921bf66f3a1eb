"""The run's configuration as frozen, strict structs: every key that ensq knows, with its default.

Lengths are in Angstrom, angles in rad, energies in the run's unit (``RunConfig.unit``); data may
come in other units (``data.units``) and are converted when they are read.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from msgspec import Meta

from ensq.config.base import (
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Seed,
    Strict,
    finite,
)
from ensq.config.early import EarlyStoppingConfig
from ensq.config.model import ModelConfig
from ensq.config.slurm import SlurmConfig

OptimizerName = Literal[
    "adam", "adamw", "adabelief", "yogi", "lion", "sgd_nesterov", "polyak_sgd", "fromage"
]
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
FILE_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


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
    """Units of the data; forces are energy per length."""

    energy: Literal["kcal/mol", "kJ/mol", "eV", "Hartree"] = "kcal/mol"
    length: Literal["Angstrom", "nm", "Bohr"] = "Angstrom"


class KeysConfig(Strict, frozen=True):
    """Names of the arrays in the data file; null: the usual ones (docs/data.md)."""

    R: str | None = None
    F: str | None = None
    U: str | None = None
    species: str | None = None


class DataConfig(Strict, frozen=True):
    """The data set and how its frames are chosen."""

    path: str
    max_frames: PositiveInt | None = None
    seed: Seed = 0  # of the split and of the order of batches: the same for all members
    split: SplitConfig = SplitConfig()
    units: UnitsConfig = UnitsConfig()
    keys: KeysConfig = KeysConfig()
    # Frames of different sizes are grouped, so that little is computed on padding; each group
    # compiles a program of its own.
    max_buckets: Annotated[int, Meta(ge=1, le=16)] = 4
    # Where the frames lie while a member trains. auto: on the device where they fit, else they stay
    # on the host and are fed to it in pieces. The losses are the same.
    placement: Literal["auto", "device", "host"] = "auto"


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
    # mixed: float32, but gradient steps multiply matrices in bfloat16
    precision: Literal["float32", "float64", "mixed"] = "float32"
    # Frames whose gradient is worked out at once; null: a whole batch. The steps are the same up to
    # rounding, and need less memory.
    micro_batch: PositiveInt | None = None
    export_path: str | None = None  # null: exported_models in the run folder
    # Fit the priors' parameters alone (L-BFGS, the loss above) before the first stage.
    pretrain_prior: bool = False
    pretrain_prior_min_steps: NonNegativeInt = 10
    pretrain_prior_max_steps: PositiveInt = 200
    pretrain_prior_tol_grad: Positive = 1e-6  # stop at this norm of the gradient

    @property
    def dtype(self) -> str:
        """The type of parameters, data and losses."""
        return "float64" if self.precision == "float64" else "float32"

    def __post_init__(self) -> None:
        if self.pretrain_prior_min_steps > self.pretrain_prior_max_steps:
            raise ValueError("pretrain_prior_min_steps is larger than pretrain_prior_max_steps")


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
    # true: the decay is added to the gradient before the optimiser (L2), as older files mean it;
    # false: taken off the parameters beside it (decoupled, as in AdamW).
    decay_by_gradient: bool = False
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


class ExportConfig(Strict, frozen=True):
    """What finalize writes besides the best model."""

    # embedded: the priors are part of the .mlir (one rank, no sorting of atoms);
    # native: the .mlir holds the network alone, the priors are LAMMPS input beside it.
    priors: Literal["embedded", "native"] = "embedded"
    ensemble_mean: bool = True  # the mean of all members' energies as one more model
    # Whether energies by the .mlir hold the energies of single beads (of atoms in DFT), which
    # training leaves out; beside large ones its float32 energies come in coarse steps.
    reference_energies: bool = True


class RunConfig(Strict, frozen=True):
    """One run: everything that decides what is trained."""

    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    export: ExportConfig = ExportConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    slurm: SlurmConfig = SlurmConfig()
    # Of the model, its priors, losses and exports; null: kcal/mol for data in kcal/mol or kJ/mol,
    # eV for data in eV or Hartree.
    energy_unit: Literal["kcal/mol", "eV"] | None = None
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
        if self.training.pretrain_prior and not self.model.use_priors:
            raise ValueError("training.pretrain_prior needs model.use_priors: true")
        if self.training.pretrain_prior and not self.model.priors.has_parameters:
            raise ValueError(
                "training.pretrain_prior: no term of model.priors has parameters to fit (splines "
                "have none)"
            )
        last = self.ensemble.base_seed + self.ensemble.n_models - 1
        if self.ensemble.enabled and last > 2**31 - 1:
            raise ValueError(f"ensemble: the last seed would be {last}, over {2**31 - 1}")

    @property
    def unit(self) -> Literal["kcal/mol", "eV"]:
        """The unit of all energies of this run; lengths are in Angstrom."""
        if self.energy_unit is not None:
            return self.energy_unit
        return "kcal/mol" if self.data.units.energy in ("kcal/mol", "kJ/mol") else "eV"

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
