"""What was trained on what, how good it is, and what to type next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from ensq.calibration.figures import LEVEL
from ensq.calibration.figures import Figure as Value
from ensq.evaluation import Evaluation
from ensq.jobs import State
from ensq.report import html
from ensq.report.chosen import Choice, loss_error
from ensq.report.evaluated import unit
from ensq.report.html import Content, Html
from ensq.report.known import EARLY, Known, Member
from ensq.report.numbers import between, percent, plain, with_error
from ensq.report.page import Section

ANCHOR, TITLE = "summary", "Summary"


def section(
    known: Known,
    steps: Sequence[Content],
    validation: Evaluation | None = None,
    choice: Choice | None = None,
) -> Section:
    parts: list[Content] = [_cards(known, validation, choice), html.paragraph(_trained(known))]
    parts += [html.paragraph(html.prose(note), class_="note") for note in known.notes]
    if steps:
        parts += [html.tag("h3", "What to do next"), html.items(steps)]
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts))


def _cards(known: Known, validation: Evaluation | None, choice: Choice | None) -> Content:
    cards = [_card("members", *_members(known))]
    best = known.best
    if best is not None and best.best_loss is not None:
        cards.append(_card("lowest validation loss", *_lowest(known, best, choice)))
        if validation is None:
            cards += _errors(known, best)
    cards += _mean(known) if validation is None else _evaluated(validation)
    return html.tag("dl", *cards, class_="cards")


def _card(name: str, value: Content, *small: Content) -> Html:
    lines = (html.tag("small", line) for line in small if line)
    return html.tag("div", html.tag("dt", name), html.tag("dd", value, *lines))


def _with_unit(number: str, unit: str) -> Content:
    return html.join((number, html.tag("span", unit, class_="unit")), " ") if unit else number


def _members(known: Known) -> tuple[Content, Content]:
    counts = Counter(one.state for one in known.members)
    others = ", ".join(
        f"{count} {state.replace(f'{EARLY}: ', 'stopped early (')}"
        for state, count in counts.items()
        if state != State.DONE
    )
    done, whole = len(known.finished), len(known.members)
    epochs = sum(one.last_epoch for one in known.members if one.state != "cancelled")
    wanted = sum(one.epochs for one in known.members if one.state != "cancelled")
    share = f"{100 * epochs // wanted} % of the epochs" if wanted and done < whole else ""
    return f"{done} of {whole} trained", ", ".join(filter(None, (others, share)))


def _lowest(known: Known, best: Member, choice: Choice | None) -> tuple[Content, ...]:
    losses = [one.best_loss for one in known.counted if one.best_loss is not None]
    small = f"seed {best.seed}, epoch {best.best_epoch} of {best.epochs}"
    if len(losses) > 1:
        spread = with_error(float(np.mean(losses)), float(np.std(losses)), 5)
        small += f"; all {len(losses)} members, mean ± std: {spread}"
    loss = with_error(best.best_loss, loss_error(best, choice), 5)
    return _with_unit(loss, known.loss_unit), small


def _errors(known: Known, best: Member) -> list[Html]:
    """Root mean square errors of the best member, held against predicting zero."""
    gammas, cards = known.config.training.gammas, []
    if gammas.F and best.rmse_force is not None:
        error = (
            rmse_error(best.result.force_errors, best.result.components) if best.result else None
        )
        reference = known.metadata.get("reference_force_rms")
        small = ""
        if isinstance(reference, float):
            small = f"forces themselves: {plain(reference)} {known.force_unit} (rms)"
        text = _with_unit(with_error(best.rmse_force, error), known.force_unit)
        cards.append(_card("force error of the best (rmse)", text, small))
    if gammas.U and best.rmse_energy is not None:
        text = _with_unit(plain(best.rmse_energy), known.energy_unit)
        cards.append(_card("energy error of the best, per bead (rmse)", text))
    return cards


def rmse_error(squares: Any, components: Any) -> float | None:
    """Standard error of sqrt(sum of squares / sum of components), frames taken as independent.

    The mean's by the linear part of the ratio (Cochran, Sampling Techniques, 3rd ed., eq. 6.13),
    the root's by its derivative. None for fewer than two frames.
    """
    squares, components = np.asarray(squares, np.float64), np.asarray(components, np.float64)
    n = len(squares)
    if n < 2:
        return None
    mean = squares.sum() / components.sum()
    residual = (squares - mean * components) / components.mean()
    error = sqrt(float(np.square(residual).sum()) / (n * (n - 1)))
    return error / (2 * sqrt(mean)) if mean > 0 else None


def _evaluated(found: Evaluation) -> list[Html]:
    """The mean of the members on the validation frames, and how often its sigma is kept."""
    cards, forces, energy = [], found.forces, found.energy_per_bead
    if forces is not None:
        cards.append(
            _card(
                f"force error of the mean of {len(found.seeds)}",
                _with_unit(_number(forces.rmse), unit(forces.unit)),
                _interval(forces.rmse),
                f"forces themselves: {plain(forces.reference_rms)} {unit(forces.unit)} (rms)",
            )
        )
    if energy is not None:
        value = _with_unit(_number(energy.rmse), unit(energy.unit))
        cards.append(_card("energy error of the mean", value, _interval(energy.rmse)))
    if forces is not None and forces.spread is not None:
        inside = next(one for one in forces.spread.scores.coverage if one.sigmas == 1.0)
        small = (
            f"of the members as it is; {percent(inside.nominal)} where the spread is a good "
            "uncertainty"
        )
        cards.append(_card("force errors within one sigma", percent(inside.observed.value), small))
    return cards


def _number(value: Value) -> str:
    return between(value.value, value.low, value.high).partition(" (")[0]


def _interval(value: Value) -> str:
    if value.low is None or value.high is None:
        return ""
    inner = between(value.value, value.low, value.high).partition(" (")[2]
    return f"{percent(LEVEL)} interval {inner.replace(')', '')}"


def _mean(known: Known) -> list[Html]:
    """The ensemble mean, as `ensq finalize` found it."""
    mean = known.metadata.get("ensemble_mean")
    if not isinstance(mean, dict) or not isinstance(mean.get("loss"), float):
        return []
    small, force = "", mean.get("force_rmse")
    if isinstance(force, float):
        small = f"force rmse {plain(force)} {known.force_unit}"
    seeds = mean.get("seeds")
    count = f" of {len(seeds)}" if isinstance(seeds, list) else ""
    return [
        _card(f"loss of the mean{count}", _with_unit(plain(mean["loss"]), known.loss_unit), small)
    ]


def _trained(known: Known) -> Content:
    """The training in a sentence or two."""
    config = known.config
    model = config.model
    network = "priors alone" if model.prior_only else model.ml_model
    priors = ""
    if model.use_priors and not model.prior_only:
        priors = ", with trained priors" if model.train_priors else ", with fixed priors"
    stages = ", then ".join(
        f"{one.epochs} epochs of {one.optimizer}" for one in config.training.stages
    )
    gammas = config.training.gammas
    targets = [name for name, weight in (("forces", gammas.F), ("energies", gammas.U)) if weight]
    data = ""
    if known.results:
        first = known.results[0]
        beads = sorted({int(count) for count in first.beads})
        size = f"{beads[0]}" if len(beads) == 1 else f"{beads[0]} to {beads[-1]}"
        data = f" Losses are over {len(first.components):,} validation frames of {size} beads"
        names = [
            name
            for number, name in enumerate(first.protein_names)
            if (first.protein == number).any()
        ]
        data += f" of {', '.join(names)}." if 1 < len(names) <= 8 else "."
    return (
        f"Model: {network} with a cut-off of {model.cutoff:g} Å{priors}, trained on "
        f"{' and '.join(targets)} ({stages}); seeds {known.members[0].seed} to "
        f"{known.members[-1].seed}.{data}"
    )
