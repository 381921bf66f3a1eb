"""Hints on valid settings that do nothing, and notes as lines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ensq import config
from ensq.config import Note, lint, report, summary_lines

MINIMAL: dict[str, Any] = {
    "data": {"path": "d.npz"},
    "model": {"cutoff": 5.0},
    "training": {"stages": [{"optimizer": "adam", "epochs": 3}]},
}
APART = "epsilon: 0.7, sigma: 5.0, epsilon_ex: 0.7, sigma_ex: 4.6"
BOND = f"model.priors={{r0: 3.8, kr: 100, {APART}}}"
SPLINES = (
    "model.priors={use_spline_priors: true, r0: 3.8, kr: 100, a: [1], b: [1], "
    f"{APART}, "
    "splines: {bond: {knots: [3, 4], coeffs: [[0, 0, 0, 0]]}}}"
)
BARE_SPLINES = SPLINES.replace(f"r0: 3.8, kr: 100, a: [1], b: [1], {APART}, ", "")


def hints(*overrides: str, frames: int | None = None) -> dict[str, str]:
    made = config.parse(yaml.safe_dump(MINIMAL), "c.yaml", overrides)
    assert all(note.kind == "hint" for note in lint(made, frames))
    return {note.key: note.text for note in lint(made, frames)}


@pytest.mark.parametrize(
    ("overrides", "key", "text"),
    [
        (["ensemble.enabled=true", "seed=3"], "seed", "base_seed counts"),
        (["ensemble.n_models=3"], "ensemble", "enabled is false"),
        (
            ["data.split={by: replica, validation: [1]}", "training.val_fraction=0.2"],
            "training.val_fraction",
            "no effect with data.split.by: replica",
        ),
        (["training.checkpoint_freq=4"], "training.checkpoint_freq", "more than the 3 epochs"),
        (["optimizer.yogi.lr=0.1"], "optimizer.yogi", "no stage names it"),
        (["model.mace.max_ell=1"], "model.mace", "ml_model is allegro"),
        (["model.options={x: 1}"], "model.options", "a factory of your own"),
        (["model.use_priors=true"], "model.priors", "use_priors adds nothing"),
        ([BOND], "model.priors", "use_priors is false"),
        (
            ["model.use_priors=true", BOND, "model.priors.residue_specific_angles=true"],
            "model.priors.residue_specific_angles",
            "no effect without use_spline_priors",
        ),
        (["model.use_priors=true", SPLINES], "model.priors", "r0, kr: no effect, a spline"),
        (
            ["model.use_priors=true", "model.prior_only=true", BOND],
            "model.prior_only",
            "the stages train nothing",
        ),
        (
            ["model.use_priors=true", "model.priors={r0: 3.8, kr: 100}"],
            "model.priors",
            "no neighbours in the chain (epsilon, sigma, epsilon_ex, sigma_ex): in a simulation",
        ),
        (
            ["model.use_priors=true", BOND, "model.priors.weights.repulsive=0"],
            "model.priors",
            "6 places apart in the chain or more (epsilon, sigma): in a simulation",
        ),
        (
            ["model.use_priors=true", "model.priors={r0: 3.8, kr: 100, epsilon: 0.7, sigma: 5}"],
            "model.priors",
            "2 to 5 places apart in the chain (epsilon_ex, sigma_ex): in a simulation",
        ),
        (
            ["model.use_priors=true", BARE_SPLINES],
            "model.priors",
            "no term keeps beads apart",
        ),
        (
            ["model.use_priors=true", BOND, "model.priors.weights.dihedral=1.0"],
            "model.priors.weights.dihedral",
            "no effect without k_dih and gamma_dih",
        ),
        (
            ["model.use_priors=true", BOND, "model.priors.weights.angle=1.0"],
            "model.priors.weights.angle",
            "no effect without a and b",
        ),
    ],
)
def test_a_setting_that_does_nothing_is_named(overrides: list[str], key: str, text: str) -> None:
    found = hints(*overrides)
    assert list(found) == [key] or key == "model.priors.spline_file"
    assert text in found[key]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["ensemble={enabled: true, n_models: 3, base_seed: 5}"],
        ["seed=3"],
        ["optimizer.adam.lr=0.1"],
        ["data.split={by: replica, validation: [1]}"],
        ["model.use_priors=true", BOND],
        ["model.use_priors=true", BOND, "model.priors.weights={repulsive: 1, angle: 0, bond: 1}"],
        ["model.ml_model=mace", "model.mace.max_ell=1"],
        ["model.ml_model=a.b:c", "model.options={x: 1}"],
        ["model.use_priors=true", "model.prior_only=true", "model.train_priors=true", BOND],
        ["training.checkpoint_freq=3"],
    ],
)
def test_a_sensible_setting_gets_no_hint(overrides: list[str]) -> None:
    assert hints(*overrides) == {}


def test_schedules_are_held_against_the_steps_of_their_stage() -> None:
    """70 frames in batches of 32 are 3 steps; 3 epochs 9."""
    assert hints("optimizer.adam.warmup_steps=8", frames=70) == {}
    assert (
        "9 gradient steps, 9 of warm-up"
        in (hints("optimizer.adam.warmup_steps=9", frames=70)["training.stages.0"])
    )
    assert hints("optimizer.adam.total_steps=9", frames=70) == {}
    short = hints("optimizer.adam.total_steps=8", frames=70)
    assert "stays at end_lr" in short["training.stages.0"]
    assert hints("optimizer.adam={total_steps: 8, end_lr: 1.0e-3}", frames=70) == {}


NOTES = [
    Note("trap", "data.path", "there so, here so"),
    Note("translated", "a", "-> b"),
    Note("no_effect", "c", "word " * 30),
    Note("hint", "d\x1b[31m", "look"),
]


def test_the_report_is_grouped_and_fits_a_terminal() -> None:
    lines = report(NOTES)
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "translated:",
        "no effect here:",
        "traps of the older code, not inherited here:",
        "worth a look:",
    ]
    assert lines[1:3] == ["translated:", "  a: -> b"]
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert report([]) == []


def test_the_summary_counts_and_says_where_to_read_more() -> None:
    first, second = summary_lines(NOTES, "c.yaml")
    assert first == (
        "c.yaml is in an older form: 1 key translated, 1 has no effect, 1 trap; "
        "see `ensq config check c.yaml`"
    )
    assert second == "c.yaml: 1 thing worth a look; see `ensq config check c.yaml`"
    two = summary_lines([*NOTES[:3], *NOTES[:3]], "c.yaml")
    assert "2 keys translated, 2 have no effect, 2 traps" in two[0] and len(two) == 1
    assert summary_lines([], "c.yaml") == []
