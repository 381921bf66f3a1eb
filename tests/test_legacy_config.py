"""Files of the older form: every key is translated, or named as having no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legacy_tools import (
    NAMES,
    OLDER,
    SPECIES,
    changed,
    error_of,
    made,
    said,
    spline_arrays,
    tree_of,
    value_at,
    write_samples,
)

from ensq import config
from ensq.config.legacy import older_keys
from ensq.errors import ConfigError

# Every key of existing users' files, as the description of that code base lists them.
_NETWORK = (
    "max_ell num_layers n_radial_basis envelope_p embed_n_hidden species_embed mlp_n_hidden "
    "mlp_n_layers avg_num_neighbors max_edges max_edge_multiplier hidden_irreps num_types n_species"
)
_MACE = (
    "max_ell num_interactions correlation embed_dim hidden_irreps readout_irreps n_radial_basis "
    "envelope_p mlp_n_hidden mlp_n_layers avg_num_neighbors"
)
_PRIORS = (
    "r0 kr a b epsilon sigma epsilon_ex sigma_ex k_dih gamma_dih k_dihedral gamma_dihedral theta0 "
    "k_theta use_spline_priors spline_file residue_specific_angles"
)
_SETTINGS = "lr peak_lr end_lr warmup_steps decay_steps beta1 beta2 eps weight_decay"
KEYS: dict[str, str] = {
    "": "model_context model_id protein_name seed",
    "data": "path max_frames",
    "preprocessing": "buffer_multiplier park_multiplier",
    "model": (
        "use_priors train_priors prior_only debug_priors ml_model allegro_size mace_size "
        "painn_size cutoff dr_threshold allegro_large allegro_med mace_large painn_large"
    ),
    "model.allegro_med": _NETWORK,
    "model.mace": _MACE,
    "model.mace_large": _MACE,
    "model.painn": "hidden_size n_layers n_rbf num_species shared_filters shared_interactions eps",
    "model.priors": _PRIORS,
    "model.priors.weights": "bond angle dihedral repulsive excluded_volume",
    "optimizer": "grad_clip",
    "optimizer.adabelief": _SETTINGS,
    "optimizer.yogi": _SETTINGS,
    "optimizer.adam": _SETTINGS,
    "optimizer.lion": "lr warmup_epochs grad_clip",
    "optimizer.sgd_nesterov": "lr momentum",
    "optimizer.polyak_sgd": "lr f_star",
    "optimizer.fromage": "lr epochs",
    "training": (
        "stage1_optimizer stage2_optimizer epochs_adabelief epochs_yogi epochs_adam epochs_lion "
        "epochs_sgd_nesterov epochs_polyak_sgd val_fraction batch_per_device batch_cache "
        "checkpoint_freq checkpoint_path export_path pretrain_prior pretrain_prior_min_steps "
        "pretrain_prior_max_steps pretrain_prior_tol_grad"
    ),
    "training.gammas": "F U",
    "training.profiling": (
        "enabled trace_dir trace_rank0_only log_compiles batch_profiler_start batch_profiler_stop"
    ),
}
ALL = [f"{at}.{key}".lstrip(".") for at, keys in KEYS.items() for key in keys.split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("older"))


# -- the sample files --------------------------------------------------------------------------


def test_the_file_with_two_stages_becomes_what_it_means(folder: Path) -> None:
    run = config.load(folder / "two_stage.yaml")
    assert (run.model_context, run.protein_name, run.model_id) == (
        "allegro_cg_protein",
        "2JOF",
        "trpcage_01",
    )
    assert run.seeds == (7,)
    assert (run.data.path, run.data.max_frames) == ("dataset.npz", 200)
    assert [(s.optimizer, s.epochs) for s in run.training.stages] == [("adabelief", 3), ("yogi", 2)]
    net = run.model.allegro
    assert (net.max_ell, net.num_layers, net.n_channels) == (2, 2, 32)
    assert (net.mlp_n_hidden, net.mlp_n_layers, net.avg_num_neighbors) == (64, 2, 12.0)
    assert (run.model.cutoff, run.model.ml_model, net.symmetry) == (10.0, "allegro", "auto")
    priors = run.model.priors
    assert run.model.use_priors and not run.model.train_priors
    assert (priors.k_dih, priors.gamma_dih) == ((0.6, 0.1), (0.27, -0.7))
    assert (priors.weights.repulsive, priors.weights.excluded_volume) == (0.25, 1.0)
    first = run.optimizer.adabelief
    assert (first.lr, first.peak_lr, first.end_lr, first.eps) == (1e-3, 2e-3, 1e-5, 1e-16)
    assert (first.warmup_steps, first.total_steps) == (50, 1000)
    assert (run.optimizer.yogi.lr, run.optimizer.yogi.total_steps) == (5e-4, 200)
    assert (run.training.checkpoint_freq, run.training.export_path) == (10, "exported_models")


def test_the_file_with_a_list_of_stages_becomes_what_it_means(folder: Path) -> None:
    loaded = config.load_with_notes(folder / "staged.yaml")
    run = loaded.config
    assert run.model_id == "3" and run.data.max_frames is None and run.seeds == (42, 43, 44)
    stages = [(stage.optimizer, stage.epochs) for stage in run.training.stages]
    assert stages == [("adam", 5), ("polyak_sgd", 2), ("fromage", 1)]
    net = run.model.allegro
    assert (net.n_channels, net.max_ell, net.mlp_n_hidden, net.mlp_n_layers) == (128, 2, 128, 2)
    assert (run.model.priors.k_dih, run.model.priors.gamma_dih) == ((0.6,), (0.27,))
    adam, plain = run.optimizer.adam, run.optimizer.fromage
    assert (adam.warmup_steps, adam.total_steps, adam.weight_decay) == (299, 300, 1e-4)
    assert (plain.lr, plain.peak_lr, plain.end_lr, plain.total_steps) == (1e-5, 1e-5, 1e-5, None)
    assert run.optimizer.polyak_sgd.momentum == 0.9
    assert (run.training.gammas.F, run.training.gammas.U) == (1.0, 1e-3)
    assert run.training.checkpoint_freq == 1
    assert run.training.pretrain_prior and run.training.pretrain_prior_tol_grad == 1e-5
    assert "momentum 0.9" in said(loaded, "translated")["optimizer.polyak_sgd"]
    assert "fixed rate" in said(loaded, "translated")["optimizer.fromage"]
    assert "number of species" in said(loaded, "trap")["data.path"]


def test_the_file_with_everything_becomes_what_it_means(folder: Path) -> None:
    run = config.load(folder / "everything.yaml")
    assert run.model.ml_model == "mace"
    assert (run.model.mace.embed_dim, run.model.mace.correlation) == (64, 3)
    assert run.model.mace.hidden_irreps == "64x0e + 64x1o"
    assert (run.model.allegro.n_channels, run.model.allegro.n_radial_basis) == (64, 10)
    assert (run.model.painn.hidden_size, run.model.painn.eps) == (64, 1e-8)
    assert (run.model.priors.a, run.model.priors.b) == ((0.3,), (-0.2,))
    assert run.model.priors.k_dih == (0.6, 0.1)
    stages = [(stage.optimizer, stage.epochs) for stage in run.training.stages]
    assert stages == [("adabelief", 6), ("fromage", 4)]
    assert run.optimizer.grad_clip == 2.0
    assert run.optimizer.yogi == run.optimizer.adam == run.optimizer.adabelief
    assert (run.optimizer.lion.warmup_steps, run.optimizer.sgd_nesterov.momentum) == (5, 0.8)
    splines, arrays = run.model.priors.splines, spline_arrays()
    assert splines is not None and splines.bond is not None
    assert splines.bond.knots == tuple(arrays["bond_knots"])
    assert splines.bond.coeffs[2] == tuple(map(float, arrays["bond_coeffs"][2]))
    assert [spline is None for spline in splines.angle_types] == [False, True, False]
    assert len(splines.angle_types) == SPECIES


def test_dihedrals_keep_the_sign_that_they_had(folder: Path) -> None:
    for name in NAMES:
        loaded = config.load_with_notes(folder / f"{name}.yaml")
        assert loaded.config.model.priors.dihedral_sign == -1
        assert any("opposite sign" in text for text in said(loaded, "trap").values())
    usual = config.load_with_notes(folder / "staged.yaml", ["model.priors.dihedral_sign=1"])
    assert usual.config.model.priors.dihedral_sign == 1


def test_our_own_splines_are_not_mirrored_unseen(folder: Path) -> None:
    path = folder / "everything.yaml"
    [npz] = folder.glob("*spline*.npz")
    before = dict(np.load(npz))
    np.savez(npz, **before, dihedral_convention="IUPAC")
    try:
        with pytest.raises(ConfigError, match="dihedral_sign: 1"):
            config.load(path)
        assert config.load(path, ["model.priors.dihedral_sign=1"]).model.priors.splines
    finally:
        np.savez(npz, **before)


@pytest.mark.parametrize("name", NAMES)
def test_notes_are_short_and_printable(folder: Path, name: str) -> None:
    for note in config.load_with_notes(folder / f"{name}.yaml").notes:
        assert note.text.isprintable()
        assert len(f"{note.key}: {note.text}") <= 190, note


# -- every key ---------------------------------------------------------------------------------


def test_the_file_with_everything_has_every_key() -> None:
    tree = tree_of("everything")
    for key in ALL:
        value_at(tree, key)


@pytest.mark.parametrize("key", ALL)
def test_every_key_is_taken_or_named_as_having_no_effect(folder: Path, key: str) -> None:
    """A key of the older form alone is named in a note; one that both have keeps its value."""
    loaded = config.load_with_notes(folder / "everything.yaml")
    if any(note.key == key for note in loaded.notes):
        return
    if key.startswith(("model.mace.", "model.painn.", "model.allegro_med.")):  # as a whole
        assert any(note.key == key.rpartition(".")[0] for note in loaded.notes)
        return
    node: Any = loaded.config
    for part in key.replace("mace_large", "mace").split("."):
        node = getattr(node, part)
    value = value_at(tree_of("everything"), key)
    if isinstance(node, float):
        value = float(value)  # 1e-3 is text to YAML
    assert node == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    "key",
    [
        "surprise",
        "data.surprise",
        "preprocessing.surprise",
        "model.surprise",
        "model.allegro.surprise",
        "model.allegro_large.surprise",
        "model.allegro_med.surprise",
        "model.mace_large.surprise",
        "model.painn.surprise",
        "model.painn_large.surprise",
        "model.priors.surprise",
        "model.priors.weights.surprise",
        "optimizer.surprise",
        "optimizer.adam.surprise",
        "optimizer.fromage.surprise",
        "training.surprise",
        "training.epochs_surprise",
        "training.gammas.surprise",
        "training.profiling.surprise",
        "model.allegro_huge",
    ],
)
def test_a_key_that_neither_form_knows_stays_an_error(tmp_path: Path, key: str) -> None:
    tree = changed((key, {"x": 1}), tree=tree_of("everything"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"unknown key .*(surprise|allegro_huge)"):
        config.load(write_samples(tmp_path) / "c.yaml")


def test_a_misspelt_key_of_an_older_file_gets_a_proposal() -> None:
    assert "did you mean mlp_n_hidden?" in error_of(("model.allegro.mlp_n_hiden", 3))
    assert "did you mean cutoff?" in error_of(("model.cutof", 3))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_left_as_it_is_and_its_full_form_is_not_translated(
    folder: Path, name: str
) -> None:
    from ensq.config.output import to_yaml

    before = config.load(folder / f"{name}.yaml")
    full = config.parse_with_notes(to_yaml(before), "full.yaml")
    assert full.config == before
    assert config.digest(full.config) == config.digest(before)
    assert {note.kind for note in full.notes} <= {"hint"}


# -- what is recognised ------------------------------------------------------------------------

OWN = {
    "data": {"path": "d.npz"},
    "model": {"cutoff": 5.0},
    "training": {"stages": [{"optimizer": "adam", "epochs": 3}]},
}


def test_a_valid_file_of_ensq_is_never_translated() -> None:
    loaded = config.parse_with_notes(yaml.safe_dump(OWN), "c.yaml")
    assert loaded.notes == ()
    assert loaded.config.optimizer.adam.total_steps is None
    assert loaded.config.model.allegro.n_channels == 16
    assert older_keys(OWN) == []


@pytest.mark.parametrize(
    "key",
    [
        "preprocessing.buffer_multiplier",
        "model.dr_threshold",
        "model.debug_priors",
        "model.allegro_large.max_ell",
        "model.allegro.hidden_irreps",
        "model.painn.num_species",
        "model.priors.theta0",
        "optimizer.adam.decay_steps",
        "optimizer.adam.grad_clip",
        "training.batch_cache",
        "training.epochs_adam",
        "training.profiling.enabled",
    ],
)
def test_one_key_of_the_older_form_is_enough(key: str) -> None:
    assert older_keys(changed((key, 1), tree=OWN)) != []


def test_numbers_as_text_stay_errors_in_a_file_of_ensq() -> None:
    with pytest.raises(ConfigError, match="YAML reads 1e-3 as text"):
        config.parse(yaml.safe_dump(changed(("optimizer.adam.lr", "1e-3"), tree=OWN)), "c.yaml")


def test_a_mixture_keeps_what_is_in_ensqs_form() -> None:
    run = made(
        ("training.ema_decay", 0.99),
        ("optimizer.adam.total_steps", None),
        ("model.allegro", {"n_channels": 8, "symmetry": "o3"}),
        ("export.ensemble_mean", False),
    )
    assert run.training.ema_decay == 0.99 and not run.export.ensemble_mean
    assert run.optimizer.adam.total_steps is None
    assert (run.model.allegro.n_channels, run.model.allegro.max_ell) == (8, 1)
    assert run.model.allegro.symmetry == "o3"


def test_overrides_come_after_the_translation() -> None:
    text = yaml.safe_dump(changed(("optimizer.adam.decay_steps", 10)))
    run = config.parse(text, "c.yaml", ["optimizer.adam.total_steps=7", "model.cutoff=3"])
    assert (run.optimizer.adam.total_steps, run.model.cutoff) == (7, 3.0)
    with pytest.raises(ConfigError, match="write total_steps"):
        config.parse(text, "c.yaml", ["optimizer.adam.decay_steps=7"])


# -- any other file ----------------------------------------------------------------------------


def leaves(tree: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(tree, dict) and tree:
        return [leaf for key, item in tree.items() for leaf in leaves(item, (*at, key))]
    return [at]


EVERYTHING = {**tree_of("everything"), "ensemble": {"enabled": True, "n_models": 2}}
LEAVES = leaves(EVERYTHING)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1000),
    st.floats(-10, 1e6),
    st.sampled_from(["", "large", "1e-3", "1e999", "8x0e+8x1o", "adam", "x"]),
    st.lists(st.integers(0, 64), max_size=3),
    st.dictionaries(st.sampled_from(["lr", "epochs", "max_ell"]), st.integers(0, 9), max_size=2),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sets(st.sampled_from(LEAVES)),
    st.dictionaries(st.sampled_from(LEAVES), ODD, max_size=3),
)
def test_any_part_of_an_older_file_is_valid_or_a_clear_error(
    dropped: set[tuple[str, ...]], odd: dict[tuple[str, ...], Any]
) -> None:
    tree: dict[str, Any] = {}
    for leaf in LEAVES:
        if leaf in dropped:
            continue
        value = odd[leaf] if leaf in odd else value_at(EVERYTHING, ".".join(leaf))
        tree = changed((".".join(leaf), value), tree=tree)
    try:
        loaded = config.parse_with_notes(yaml.safe_dump(tree), "c.yaml")
    except ConfigError as error:
        assert "\n" not in str(error) and str(error).startswith("c.yaml: ")
    else:
        assert config.loads(config.dumps(loaded.config)) == loaded.config
        assert all(isinstance(note.key, str) and note.text for note in loaded.notes)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.sampled_from([leaf for leaf in LEAVES if leaf[0] not in ("data",)])))
def test_what_an_older_file_may_leave_out_is_filled_in(dropped: set[tuple[str, ...]]) -> None:
    """Without the keys that must go in pairs, any of the rest may be absent."""
    pairs = {"r0", "kr", "epsilon", "sigma", "epsilon_ex", "sigma_ex", "spline_file"}
    pairs |= {"gamma_dih", "k_dih", "gamma_dihedral", "k_dihedral", "use_spline_priors"}
    pairs |= {"use_priors", "epochs_adabelief", "stage1_optimizer", "epochs", "stage2_optimizer"}
    tree: dict[str, Any] = {}
    for leaf in LEAVES:
        if leaf not in dropped or leaf[-1] in pairs:
            tree = changed((".".join(leaf), value_at(EVERYTHING, ".".join(leaf))), tree=tree)
    assert config.parse(yaml.safe_dump(tree), "c.yaml").epochs == 10


def test_a_file_that_refers_to_itself_is_an_error() -> None:
    text = yaml.safe_dump(OLDER) + "preprocessing: &p {buffer_multiplier: *p}\n"
    with pytest.raises(ConfigError, match="refers to itself"):
        config.parse(text, "c.yaml")


def test_many_anchors_take_no_time() -> None:
    """Each level names the one before ten times: 10^30 values if they were written out."""
    levels = ["a0: &a0 [1, 2]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)
    ]
    text = yaml.safe_dump(OLDER) + "\n".join(levels)
    with pytest.raises(ConfigError, match="becomes larger than 4 MiB"):
        config.parse(text, "c.yaml")
