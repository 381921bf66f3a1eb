"""The model section of the configuration: networks and priors.

Lengths are in Angstrom, angles in rad, energies in the run's unit (``RunConfig.unit``).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from ensq.config.base import (
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Strict,
    finite,
)


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
    # so3: they have none, and chiral coarse-grained molecules can be told from their images;
    # auto: o3 where the species are chemical elements, else so3.
    symmetry: Literal["auto", "o3", "so3"] = "auto"

    def __post_init__(self) -> None:
        finite(avg_num_neighbors=self.avg_num_neighbors)
        if self.symmetry == "so3" and self.max_ell == 0:
            raise ValueError(
                "symmetry: so3 needs max_ell of 1 or more; distances alone have no handedness"
            )


class DimeNetConfig(Strict, frozen=True):
    """DimeNet++ of jax_md_mod (Gasteiger et al., arXiv:2011.14115)."""

    embed_size: PositiveInt = 32
    n_interaction_blocks: Annotated[int, Meta(ge=1, le=8)] = 2
    num_residual_before_skip: NonNegativeInt = 1
    num_residual_after_skip: NonNegativeInt = 2
    out_embed_size: PositiveInt | None = None  # null: 2 * embed_size
    type_embed_size: PositiveInt | None = None  # null: embed_size / 2
    angle_int_embed_size: PositiveInt | None = None  # null: embed_size / 2
    basis_int_embed_size: PositiveInt = 8
    num_dense_out: PositiveInt = 3
    num_rbf: PositiveInt = 6
    num_sbf: PositiveInt = 7
    envelope_p: Annotated[int, Meta(ge=2)] = 6


class MaceConfig(Strict, frozen=True):
    """MACE of the package chemutils, which must be installed apart."""

    max_ell: Annotated[int, Meta(ge=0, le=3)] = 2
    num_interactions: PositiveInt = 2
    correlation: PositiveInt = 2
    embed_dim: PositiveInt = 32
    hidden_irreps: str = "32x0e + 32x1o"
    readout_irreps: str = "16x0e"
    n_radial_basis: PositiveInt = 8
    envelope_p: Annotated[int, Meta(ge=2)] = 6
    mlp_n_hidden: PositiveInt = 64
    mlp_n_layers: PositiveInt = 2
    avg_num_neighbors: Positive | None = None  # null: from the training frames


class PainnConfig(Strict, frozen=True):
    """PaiNN of the package chemutils, which must be installed apart."""

    hidden_size: PositiveInt = 64
    n_layers: PositiveInt = 3
    n_rbf: PositiveInt = 20
    shared_filters: bool = False
    shared_interactions: bool = False
    eps: Positive = 1e-8


class PriorWeights(Strict, frozen=True):
    """Factors of the terms of the prior."""

    bond: float = 0.5
    angle: float = 0.1
    dihedral: float = 0.15
    repulsive: float = 0.25
    excluded_volume: float = 1.0

    def __post_init__(self) -> None:
        finite(**{key: getattr(self, key) for key in self.__struct_fields__})


class SplineConfig(Strict, frozen=True):
    """A cubic spline: between knots k and k+1 c0 + c1 d + c2 d^2 + c3 d^3 with d = x - knot k."""

    knots: tuple[float, ...]  # [K], rising
    coeffs: tuple[tuple[float, float, float, float], ...]  # [K-1]

    def __post_init__(self) -> None:
        if len(self.knots) < 2 or len(self.coeffs) != len(self.knots) - 1:
            raise ValueError("a spline of K knots has K - 1 rows of coefficients, K at least 2")
        for value in (*self.knots, *(c for row in self.coeffs for c in row)):
            finite(spline=value)
        if any(b <= a for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise ValueError("the knots of a spline must rise")


class SplinesConfig(Strict, frozen=True):
    """The contents of a spline file: potentials of bonds (Angstrom), angles and dihedrals (rad).

    Outside its knots x is clamped; the dihedral's spline repeats with 2 pi.
    """

    bond: SplineConfig | None = None
    angle: SplineConfig | None = None
    dih: SplineConfig | None = None
    # By the species of the central bead; null: the angle's spline above.
    angle_types: tuple[SplineConfig | None, ...] = ()


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
    # 1: phi after IUPAC, a right-handed helix of C-alpha beads has about +50 degrees, as in LAMMPS;
    # -1: the other way round, as the code of older files measures it.
    dihedral_sign: Literal[1, -1] = 1
    epsilon: NonNegative | None = None
    sigma: Positive | None = None
    epsilon_ex: NonNegative | None = None
    sigma_ex: Positive | None = None
    # Splines in place of the bond, angle and dihedral terms above; their weights count as well.
    use_spline_priors: bool = False
    spline_file: str | None = None  # NPZ, beside the configuration or in the working folder
    residue_specific_angles: bool = False  # angle splines by the species of the central bead
    splines: SplinesConfig | None = None  # what the file held; filled in when it is read

    @property
    def has_parameters(self) -> bool:
        """Whether any term has numbers that could be trained; splines have none."""
        return bool(
            self.a
            or self.k_dih
            or any(x is not None for x in (self.r0, self.epsilon, self.epsilon_ex))
        )

    def __post_init__(self) -> None:
        if self.use_spline_priors and self.spline_file is None and self.splines is None:
            raise ValueError("use_spline_priors needs spline_file, the NPZ file with the splines")
        for one, two in (("r0", "kr"), ("epsilon", "sigma"), ("epsilon_ex", "sigma_ex")):
            if (getattr(self, one) is None) != (getattr(self, two) is None):
                raise ValueError(f"{one} and {two} go together: give both or neither")
        for one, two in (("a", "b"), ("k_dih", "gamma_dih")):
            if len(getattr(self, one)) != len(getattr(self, two)):
                raise ValueError(f"{one} and {two} must have the same number of entries")
        for key in ("a", "b", "k_dih", "gamma_dih"):
            for value in getattr(self, key):
                finite(**{key: value})


NETWORKS = ("allegro", "dimenetpp", "mace", "painn")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def not_importable(ml_model: str, error: object) -> str:
    """What is said where the module that ``ml_model`` needs can't be imported."""
    if ":" in ml_model:
        return f"model.ml_model: {ml_model.partition(':')[0]} can't be imported: {error}"
    return (
        f"model.ml_model: {ml_model} is a model of the package chemutils, which can't be imported "
        f"here ({error}); install it beside ensq, or use allegro or dimenetpp"
    )


class ModelConfig(Strict, frozen=True):
    """The potential: a network, plus priors if wanted."""

    cutoff: Positive
    # allegro, dimenetpp; mace and painn by the package chemutils; "package.module:factory" for
    # one of your own, which is called with (ModelConfig, DataStatistics).
    ml_model: str = "allegro"
    allegro: AllegroConfig = AllegroConfig()
    dimenetpp: DimeNetConfig = DimeNetConfig()
    mace: MaceConfig = MaceConfig()
    painn: PainnConfig = PainnConfig()
    options: dict[str, Any] = field(default_factory=dict)  # free values for a factory of your own
    prior_only: bool = False  # no network: the priors alone
    use_priors: bool = False
    train_priors: bool = False  # their parameters are trained with the network's
    priors: PriorsConfig = PriorsConfig()

    def __post_init__(self) -> None:
        finite(cutoff=self.cutoff)
        if self.ml_model not in NETWORKS and not _FACTORY.fullmatch(self.ml_model):
            raise ValueError(
                f'ml_model must be one of {", ".join(NETWORKS)}, or "package.module:factory"; '
                f"got {self.ml_model!r}"
            )
        for key in ("prior_only", "train_priors"):
            if getattr(self, key) and not self.use_priors:
                raise ValueError(f"{key} needs use_priors: true")
