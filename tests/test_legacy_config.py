"""Files of the older form: every key is translated, or named as having no effect."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legacy_tools import NAMES, SAMPLES, SPECIES, spline_arrays, write_samples

from ensq import config
from ensq.config import Loaded, RunConfig
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

OLDER: dict[str, Any] = {
    "data": {"path": "d.npz"},
    "model": {"cutoff": 10.0},
    "optimizer": {},
    "training": {"stage1_optimizer": "adam", "epochs_adam": 3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("older"))


def tree_of(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((SAMPLES / f"{name}.yaml").read_text())
    return tree


def value_at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def changed(*changes: tuple[str, Any], tree: dict[str, Any] = OLDER) -> dict[str, Any]:
    """The tree with values at keys in dot notation."""
    new = copy.deepcopy(tree)
    for key, value in changes:
        node = new
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return new


def translated(*changes: tuple[str, Any]) -> Loaded:
    return config.parse_with_notes(yaml.safe_dump(changed(*changes)), "c.yaml")


def made(*changes: tuple[str, Any]) -> RunConfig:
    return translated(*changes).config


def error_of(*changes: tuple[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        made(*changes)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("c.yaml: ")
    return message


def said(loaded: Loaded, kind: str) -> dict[str, str]:
    return {note.key: note.text for note in loaded.notes if note.kind == kind}


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


# -- stages and learning rates -----------------------------------------------------------------


def test_a_stage_of_no_epochs_is_left_out() -> None:
    loaded = translated(("training.stage2_optimizer", "yogi"), ("training.epochs_yogi", 0))
    assert [stage.optimizer for stage in loaded.config.training.stages] == ["adam"]
    assert "left out" in said(loaded, "translated")["training.stages.1"]
    assert "no stage has an epoch" in error_of(("training.epochs_adam", 0))


def test_a_stage_that_names_nothing_is_no_stage() -> None:
    assert len(made(("training.stage2_optimizer", None)).training.stages) == 1


def test_epochs_that_are_missing_are_named() -> None:
    assert "training.epochs_lion is missing: how many epochs training.stage2_optimizer" in error_of(
        ("training.stage2_optimizer", "lion")
    )


def test_stages_win_over_the_older_keys() -> None:
    loaded = translated(("training.stages", [{"optimizer": "yogi", "epochs": 2}]))
    assert [s.optimizer for s in loaded.config.training.stages] == ["yogi"]
    assert "it alone counts" in said(loaded, "trap")["training.stage1_optimizer"]
    assert "training.epochs_adam" in said(loaded, "no_effect")


def test_an_unknown_optimizer_is_an_error_with_the_known_ones() -> None:
    assert "training.stage1_optimizer: expected one of adam, adamw" in error_of(
        ("training.stage1_optimizer", "adm")
    )


def test_the_cosine_ends_after_twice_the_decay_steps() -> None:
    assert made().optimizer.adam.total_steps == 200
    assert made(("optimizer.adam.decay_steps", 7)).optimizer.adam.total_steps == 14
    assert made(("optimizer.adam.decay_steps", "1e2")).optimizer.adam.total_steps == 200
    assert "both given" in error_of(("optimizer.adam", {"decay_steps": 5, "total_steps": 10}))
    assert "at least 1 (it is 0)" in error_of(("optimizer.adam.decay_steps", 0))


def test_the_end_rate_is_a_tenth_of_lr_even_with_a_higher_peak() -> None:
    from ensq.config.structs import OptimizerSettings

    adam = made(("optimizer.adam", {"lr": 1e-3, "peak_lr": 1e-2})).optimizer.adam
    assert adam == OptimizerSettings(lr=1e-3, peak_lr=1e-2, total_steps=200)


def test_a_warm_up_as_long_as_the_cosine_is_cut() -> None:
    loaded = translated(("optimizer.adam", {"warmup_steps": 20, "decay_steps": 10}))
    assert loaded.config.optimizer.adam.warmup_steps == 19
    assert "cut to 19" in said(loaded, "hint")["optimizer.adam.warmup_steps"]


def test_of_two_warm_ups_the_newer_key_counts() -> None:
    loaded = translated(("optimizer.adam", {"warmup_steps": 3, "warmup_epochs": 4}))
    assert loaded.config.optimizer.adam.warmup_steps == 3
    assert "optimizer.adam.warmup_epochs" in said(loaded, "no_effect")


def test_defaults_that_are_ensqs_own_are_named() -> None:
    notes = said(translated(("training.gammas", {"F": 1})), "translated")
    assert (
        notes["training"] == "not in the file, so ensq's defaults: val_fraction, batch_per_device"
    )


def test_a_share_of_zero_for_validation_is_an_error() -> None:
    assert "the best epoch is found on frames that don't train" in error_of(
        ("training.val_fraction", 0)
    )


# -- networks and priors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "channels"),
    [("default", 8), ("normal", 8), ("large", 64), ("med", 8), ("tiny", 8), (None, 8)],
)
def test_a_size_chooses_its_section_or_the_default(size: str | None, channels: int) -> None:
    run = made(
        ("model.allegro_size", size),
        ("model.allegro.hidden_irreps", "8x0e"),
        ("model.allegro_large.hidden_irreps", "64x0e"),
    )
    assert run.model.allegro.n_channels == channels


@pytest.mark.parametrize(
    ("irreps", "channels", "ell"),
    [("128x0e+128x1o+128x2e", 128, 2), ("0e + 1o", 1, 1), ("16x0e", 16, 0), ("8x0o+4x3e", 8, 3)],
)
def test_irreps_become_channels_and_a_highest_l(irreps: str, channels: int, ell: int) -> None:
    net = made(("model.allegro.hidden_irreps", irreps)).model.allegro
    assert (net.n_channels, net.max_ell) == (channels, ell)


def test_the_usual_size_stands_in_for_what_an_older_file_leaves_out() -> None:
    net = made().model.allegro
    assert (net.max_ell, net.n_channels) == (2, 128)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.allegro.max_ell", 4, "model.allegro.max_ell is 4; ensq goes up to 3"),
        ("model.allegro.hidden_irreps", "8x0e+8x5o", "max_ell is 5; ensq goes up to 3"),
        ("model.allegro.num_layers", 5, "num_layers is 5; ensq goes up to 4"),
        ("model.allegro.hidden_irreps", "many", "expected irreps such as 32x0e + 32x1o"),
        ("model.allegro.mlp_n_hidden", [], "mlp_n_hidden: expected a whole number, or a list"),
        ("model.allegro_size", 3, "allegro_size: expected the name of a size"),
        ("model", {"allegro_size": "large", "allegro_large": 3}, "model.allegro_large: expected a"),
        ("model", {"allegro_size": "med", "allegro_large": 3}, "model.allegro_large: expected a"),
        ("model.allegro.mlp_n_hidden", "x", "mlp_n_hidden: expected int, got str"),
        ("model.priors", {"r0": 3.8}, "r0 and kr go together"),
        ("model.priors", {"a": [1, 2], "b": 3}, "a and b must have the same number"),
        ("model_context", "a/b", "model_context becomes part of file names"),
        ("data", 3, "data: expected object"),
        ("optimizer", 3, "optimizer: expected object"),
        ("optimizer.adam", 3, "optimizer.adam: expected object"),
        ("model", [], "model: expected object"),
    ],
)
def test_what_cannot_be_translated_is_named(key: str, value: Any, message: str) -> None:
    assert message in error_of((key, value))


def test_a_series_given_by_half_gets_zeros() -> None:
    priors = made(("model.priors", {"a": [1, 2], "k_dihedral": 0.5})).model.priors
    assert (priors.a, priors.b) == ((1.0, 2.0), (0.0, 0.0))
    assert (priors.k_dih, priors.gamma_dih) == ((0.5,), (0.0,))


def test_priors_that_are_off_are_neither_trained_nor_fitted() -> None:
    loaded = translated(("model.train_priors", True), ("training.pretrain_prior", True))
    assert not loaded.config.model.train_priors and not loaded.config.training.pretrain_prior
    assert {"model.train_priors", "training.pretrain_prior"} <= said(loaded, "no_effect").keys()


# -- traps -------------------------------------------------------------------------------------


def test_traps_are_named_only_where_a_file_is_subject_to_them() -> None:
    few = said(translated(("data.split.by", "tail"), ("optimizer.adam.total_steps", 9)), "trap")
    assert few.keys() == {"training", "training.val_fraction", "data.path", "data.max_frames"}
    many = said(
        translated(
            ("ensemble.enabled", True),
            ("optimizer.adam", {"grad_clip": 1, "decay_steps": 5, "warmup_epochs": 1}),
        ),
        "trap",
    )
    assert many.keys() - few.keys() == {
        "data.split",
        "optimizer",
        "optimizer.adam.grad_clip",
        "optimizer.adam.warmup_epochs",
        "training.checkpoint_path",
    }


def test_what_was_said_about_frames_depends_on_max_frames() -> None:
    assert "never shuffled" in said(translated(), "trap")["data.max_frames"]
    with_some = said(translated(("data.max_frames", 9)), "trap")["data.max_frames"]
    assert "only if the data hold more" in with_some


@pytest.mark.parametrize("name", NAMES)
def test_notes_are_short_and_printable(folder: Path, name: str) -> None:
    for note in config.load_with_notes(folder / f"{name}.yaml").notes:
        assert note.text.isprintable()
        assert len(f"{note.key}: {note.text}") <= 190, note


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
