"""The table of members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ensq.jobs import State
from ensq.report import drawing, html
from ensq.report.chosen import Choice, loss_error
from ensq.report.html import Content
from ensq.report.known import Known, Member
from ensq.report.numbers import NOTHING, chance, plain, signed, with_error
from ensq.report.page import Section

ANCHOR, TITLE = "members", "Members"


def _columns(known: Known) -> tuple[str, ...]:
    def loss(name: str) -> str:
        return drawing.with_unit(name, known.loss_unit)

    return (
        *("index", "seed", "state", loss("best_loss"), loss("loss_error"), "best_epoch"),
        drawing.with_unit("force_rmse", known.force_unit),
        drawing.with_unit("energy_rmse_per_bead", known.energy_unit),
        *("epochs_done", "epochs", "attempts", "error"),
        *(loss("difference"), loss("difference_error"), "probability_best", "indistinguishable"),
    )


def section(known: Known, choice: Choice | None = None) -> Section:
    best = known.best
    marked = [] if best is None else [known.members.index(best)]
    gammas = known.config.training.gammas
    head, left = _head(known, choice)
    rows = [_row(known, one, best, choice) for one in known.members]
    unit = f" in {known.loss_unit}" if known.loss_unit else ""
    parts: list[Content] = [
        html.paragraph(
            f"Validation losses{unit} of each member's best epoch, the parameters that are "
            f"exported, ± the standard error over {_over(choice)}. All members are validated on "
            "the same frames, so that these errors are nearly the same for all of them: "
            "differences are known better than losses.",
        ),
        html.table(head, rows, left=left, marked=marked, label="members"),
    ]
    if marked:
        equal = "" if choice is None else "; = can't be told apart from it"
        parts.append(html.paragraph(f"The marked row has the lowest loss{equal}."))
    parts += _errors(known.members)
    if gammas.F and gammas.U:
        parts.append(
            html.paragraph("Energies are per bead, forces per component, both root mean squares.")
        )
    csv = drawing.as_csv(*_csv(known, choice))
    return Section(anchor=ANCHOR, title=TITLE, body=tuple(parts), tables=((ANCHOR, csv),))


def _over(choice: Choice | None) -> str:
    """What standard errors of losses are taken over."""
    if choice is None:
        return (
            "validation frames taken as independent (frames of one trajectory are correlated, and "
            "true errors larger)"
        )
    return choice.blocks


def _head(known: Known, choice: Choice | None) -> tuple[list[str], tuple[int, ...]]:
    gammas = known.config.training.gammas
    head = ["seed", "state", "loss", "above the best"]
    if choice is not None:
        head += ["P(best)", "="]
    if gammas.F:
        head.append(f"force rmse / {known.force_unit}")
    if gammas.U:
        head.append(f"energy rmse / {known.energy_unit} per bead")
    return [*head, "best epoch", "epochs", "attempts"], (1,)


def _row(known: Known, one: Member, best: Member | None, choice: Choice | None) -> list[Content]:
    gammas = known.config.training.gammas
    compared = None if choice is None else choice.of(one.seed)
    above, error = None, None if compared is None else compared.error
    if best is not None and one.best_loss is not None and best.best_loss is not None:
        above = one.best_loss - best.best_loss
    row: list[Content] = [
        str(one.seed),
        _state(one),
        with_error(one.best_loss, loss_error(one, choice), 5),
        NOTHING if above is None or one is best else signed(above, error),
    ]
    if choice is not None:
        row.append(NOTHING if compared is None else chance(compared.probability))
        row.append("=" if compared is not None and compared.same and one is not best else "")
    if gammas.F:
        row.append(plain(one.rmse_force))
    if gammas.U:
        row.append(plain(one.rmse_energy))
    return [
        *row,
        NOTHING if not one.best_epoch else str(one.best_epoch),
        f"{one.last_epoch} of {one.epochs}",
        str(one.attempts),
    ]


def _state(one: Member) -> Content:
    if one.state == State.FAILED:
        return html.tag("strong", one.state, class_="failed")
    return one.state if one.counts or not one.is_done else f"{one.state}, not counted"


def _errors(members: Sequence[Member]) -> list[Content]:
    failed = [one for one in members if one.error]
    if not failed:
        return []
    return [
        html.tag("h3", "Why members failed"),
        html.items(html.join([f"seed {one.seed}: ", html.code(one.error or "")]) for one in failed),
    ]


def _csv(known: Known, choice: Choice | None) -> tuple[Sequence[str], list[Sequence[Any]]]:
    rows: list[Sequence[Any]] = [
        (
            one.index,
            one.seed,
            one.state,
            one.best_loss,
            loss_error(one, choice),
            one.best_epoch,
            one.rmse_force,
            one.rmse_energy,
            one.last_epoch,
            one.epochs,
            one.attempts,
            one.error,
            *_compared(choice, one.seed),
        )
        for one in known.members
    ]
    return _columns(known), rows


def _compared(choice: Choice | None, seed: int) -> tuple[Any, ...]:
    found = None if choice is None else choice.of(seed)
    if found is None:
        return (None, None, None, None)
    return (found.difference, found.error, found.probability, found.same)
