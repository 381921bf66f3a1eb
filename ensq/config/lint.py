"""Settings that are valid and probably not what was meant, and notes as lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import msgspec

from ensq.config.early import EarlyStoppingConfig
from ensq.config.model import NETWORKS, ModelConfig, PriorsConfig, PriorWeights
from ensq.config.notes import Kind, Note, Notes
from ensq.config.structs import (
    OPTIMIZERS,
    EnsembleConfig,
    OptimizerSettings,
    RunConfig,
    StageConfig,
    TrainingConfig,
)

# The defaults of keys that a struct can't be made without giving others.
_VAL_FRACTION = TrainingConfig(stages=(StageConfig(optimizer="adam", epochs=1),)).val_fraction
_SEED = {field.name: field.default for field in msgspec.structs.fields(RunConfig)}["seed"]

_COLUMNS = 80
_TITLES: dict[Kind, str] = {
    "translated": "translated",
    "no_effect": "no effect here",
    "trap": "traps of the older code, not inherited here",
    "hint": "worth a look",
}


def lint(config: RunConfig, training_frames: int | None = None) -> list[Note]:
    """Hints on a configuration; ``training_frames``, if known, tells how long stages are."""
    notes = Notes()
    _ensemble(config, notes)
    _early(config, notes)
    _data(config, notes)
    _networks(config.model, notes)
    _priors(config, notes)
    _optimizers(config, notes)
    if training_frames is not None:
        _schedules(config, training_frames, notes)
    return notes.found


def _ensemble(config: RunConfig, notes: Notes) -> None:
    unset = EnsembleConfig()
    if config.ensemble.enabled:
        if config.seed != _SEED:
            notes.hint("seed", "no effect with an ensemble: ensemble.base_seed counts")
    elif config.ensemble != unset:
        notes.hint("ensemble", "enabled is false: one model is trained, with the top-level seed")


def _early(config: RunConfig, notes: Notes) -> None:
    section, at = config.early_stopping, "early_stopping"
    if section.mode == "off":
        if section != EarlyStoppingConfig():
            notes.hint(at, "no effect: mode is off")
        return
    members = len(config.seeds)
    if members <= section.min_members:
        notes.hint(
            f"{at}.min_members",
            f"{section.min_members} of {members} members are never stopped: the rule stops nobody",
        )
    if section.min_epochs + section.patience > config.epochs:
        notes.hint(
            f"{at}.min_epochs",
            f"with patience beyond the {config.epochs} epochs of all stages: the rule stops nobody",
        )
    if section.rule == "sigma" and section.sigma <= 2:
        notes.hint(
            f"{at}.rule", "sigma: it holds for the worst member nearly always, even of equal ones"
        )


def _data(config: RunConfig, notes: Notes) -> None:
    training = config.training
    if config.data.split.by == "replica" and training.val_fraction != _VAL_FRACTION:
        notes.hint("training.val_fraction", "no effect with data.split.by: replica")
    if training.checkpoint_freq > config.epochs:
        notes.hint(
            "training.checkpoint_freq",
            f"more than the {config.epochs} epochs of all stages: a killed attempt starts anew",
        )


def _networks(model: ModelConfig, notes: Notes) -> None:
    chosen = "prior_only is on" if model.prior_only else f"ml_model is {model.ml_model}"
    for network in NETWORKS:
        section = getattr(model, network)
        used = network == model.ml_model and not model.prior_only
        if not used and section != type(section)():
            notes.hint(f"model.{network}", f"no effect: {chosen}")
    if model.options and model.ml_model in NETWORKS:
        notes.hint("model.options", "no effect: they are for a factory of your own")
    if model.prior_only and not model.train_priors:
        notes.hint("model.prior_only", "without train_priors: true the stages train nothing")


def _priors(config: RunConfig, notes: Notes) -> None:
    model, priors = config.model, config.model.priors
    chain = any((priors.r0 is not None, priors.a, priors.k_dih))
    pairs = priors.epsilon is not None or priors.epsilon_ex is not None
    if not model.use_priors:
        if chain or pairs or priors != PriorsConfig():
            notes.hint("model.priors", "no effect: use_priors is false")
        return
    _weights_alone(priors, notes)
    if (chain or priors.use_spline_priors) and (missing := _not_kept_apart(priors)):
        notes.hint(
            "model.priors",
            f"no term keeps beads apart that are {missing}: in a simulation they may overlap; "
            "`ensq priors fit` finds these numbers",
        )
    if priors.use_spline_priors:
        _replaced_terms(priors, notes)
        return
    if not chain and not pairs:
        notes.hint("model.priors", "no term has its parameters, so use_priors adds nothing")
    if priors.spline_file is not None or priors.splines is not None:
        notes.hint("model.priors", "splines have no effect: use_spline_priors is false")
    if priors.residue_specific_angles:
        notes.hint("model.priors.residue_specific_angles", "no effect without use_spline_priors")


def _not_kept_apart(priors: PriorsConfig) -> str:
    """Which beads of a chain no term keeps apart, with what it takes; empty if there are none."""
    weights = priors.weights
    far = priors.epsilon is not None and weights.repulsive
    near = priors.epsilon_ex is not None and weights.excluded_volume
    if far:
        return "" if near else "2 to 5 places apart in the chain (epsilon_ex, sigma_ex)"
    if near:
        return "6 places apart in the chain or more (epsilon, sigma)"
    return "no neighbours in the chain (epsilon, sigma, epsilon_ex, sigma_ex)"


def _weights_alone(priors: PriorsConfig, notes: Notes) -> None:
    """Weights of terms that are not there."""
    usual = PriorWeights()
    for name, given, keys in (
        ("bond", priors.r0 is not None, "r0 and kr"),
        ("angle", priors.a, "a and b"),
        ("dihedral", priors.k_dih, "k_dih and gamma_dih"),
        ("repulsive", priors.epsilon is not None, "epsilon and sigma"),
        ("excluded_volume", priors.epsilon_ex is not None, "epsilon_ex and sigma_ex"),
    ):
        splined = priors.use_spline_priors and name in ("bond", "angle", "dihedral")
        weight = getattr(priors.weights, name)
        if weight and weight != getattr(usual, name) and not given and not splined:
            notes.hint(f"model.priors.weights.{name}", f"no effect without {keys}")


def _replaced_terms(priors: PriorsConfig, notes: Notes) -> None:
    splines = priors.splines
    if splines is None:  # not read yet
        return
    for given, spline, keys in (
        (priors.r0 is not None, splines.bond, "r0, kr"),
        (priors.a, splines.angle, "a, b"),
        (priors.k_dih, splines.dih, "k_dih, gamma_dih"),
    ):
        if given and spline is not None:
            notes.hint("model.priors", f"{keys}: no effect, a spline takes their place")


def _optimizers(config: RunConfig, notes: Notes) -> None:
    used = {stage.optimizer for stage in config.training.stages}
    for name in OPTIMIZERS:
        if name not in used and getattr(config.optimizer, name) != OptimizerSettings():
            notes.hint(f"optimizer.{name}", "no effect: no stage names it")


def _schedules(config: RunConfig, training_frames: int, notes: Notes) -> None:
    """Warm-ups and cosines against the steps of their stages.

    Frames of different sizes are batched apart, which may add a batch for each group of sizes.
    """
    batches = -(-training_frames // config.training.batch_per_device)
    for place, stage in enumerate(config.training.stages):
        settings: OptimizerSettings = getattr(config.optimizer, stage.optimizer)
        steps = batches * stage.epochs
        at = f"training.stages.{place}"
        if settings.warmup_steps >= steps:
            notes.hint(
                at,
                f"about {steps} gradient steps, {settings.warmup_steps} of warm-up: "
                f"{stage.optimizer} hardly reaches its peak_lr",
            )
        elif settings.total_steps is not None and settings.total_steps < steps and _falls(settings):
            notes.hint(
                at,
                f"about {steps} gradient steps, total_steps {settings.total_steps}: the rate of "
                f"{stage.optimizer} stays at end_lr after that",
            )


def _falls(settings: OptimizerSettings) -> bool:
    peak = settings.lr if settings.peak_lr is None else settings.peak_lr
    end = settings.lr / 10 if settings.end_lr is None else settings.end_lr
    return end < peak


def report(notes: Sequence[Note]) -> list[str]:
    """All notes as lines, grouped by kind."""
    lines = []
    for kind, title in _TITLES.items():
        found = [note for note in notes if note.kind == kind]
        if found:
            lines += ["", f"{title}:", *(line for note in found for line in _wrapped(note))]
    return lines


def _wrapped(note: Note) -> list[str]:
    text = "".join(c if c.isprintable() else "?" for c in f"{note.key}: {note.text}")
    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def summary_lines(notes: Sequence[Note], source: str) -> list[str]:
    """What a command that goes on says about them: at most two lines."""
    counts = {kind: sum(note.kind == kind for note in notes) for kind in _TITLES}
    lines = []
    if counts["translated"] or counts["no_effect"] or counts["trap"]:
        lines.append(
            f"{source} is in an older form: {_count(counts['translated'], 'key')} translated, "
            f"{counts['no_effect']} {_have(counts['no_effect'])} no effect, "
            f"{_count(counts['trap'], 'trap')}; see `ensq config check {source}`"
        )
    if counts["hint"]:
        lines.append(
            f"{source}: {_count(counts['hint'], 'thing')} worth a look; "
            f"see `ensq config check {source}`"
        )
    return lines


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
