"""Values of the older form: stages, learning rates, networks, priors; and its traps are named."""

from __future__ import annotations

from typing import Any

import pytest
from legacy_tools import error_of, made, said, translated

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
