"""Evaluations of an ensemble: those that are there, and the one that a report makes itself."""

from __future__ import annotations

from dataclasses import dataclass

from ensq import evaluation
from ensq.calibration.figures import Figure as Value
from ensq.errors import EnsqError
from ensq.evaluation import Evaluation, Report
from ensq.report import html
from ensq.report.analyses import read_all
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.numbers import NOTHING, between
from ensq.trained import Members

UNITS = {"Angstrom": "Å"}


@dataclass(frozen=True)
class Found:
    """Evaluations that are of these members, the validation frames first."""

    reports: tuple[tuple[str, Report], ...]  # with the stem of their files, without the prefix
    notes: tuple[str, ...]  # on those that are not

    @property
    def validation(self) -> Evaluation | None:
        """That of the run's own validation frames."""
        for _, report in self.reports:
            if report.evaluation.data.validation:
                return report.evaluation
        return None


def find(known: Known) -> Found:
    """What lies in the folders of analyses; what is of other members is a note.

    Of two with one name the run's own counts, not the export folder's.
    """

    def stale(one: Report) -> str:
        if tuple(one.evaluation.members) == known.digests:
            return ""
        return (
            "is an evaluation of other members than those that are trained now; "
            f"`ensq evaluate` on {one.evaluation.data.path} makes it anew"
        )

    read, notes = read_all(known, evaluation.of_folder, evaluation.read, stale)
    reports: dict[str, Report] = {}
    for path, report in read:
        stem, data = path.stem.removeprefix(evaluation.PREFIX), report.evaluation.data
        before = reports.setdefault(stem, report).evaluation.data
        if (before.digest, before.validation) != (data.digest, data.validation):
            reports.setdefault(f"{stem}-{data.digest[:8]}", report)  # another file so named
    ordered = sorted(reports.items(), key=lambda one: one[0] != evaluation.VALIDATION)
    return Found(tuple(ordered), tuple(notes))


def make(members: Members) -> None:
    """Evaluate members on the run's validation frames, with factors, as `ensq evaluate` does.

    Raises EnsqError if the data are not where they were, have changed, or have no labels.
    """
    from ensq import evaluating
    from ensq.ensemble import LoadedEnsemble
    from ensq.observing import Options

    several = len(members.results) > 1
    ensemble = LoadedEnsemble(members)
    stored = several and _has_factors(members)
    options = Options(fit=several and not stored, use_stored=stored)
    evaluation.write(members.analysis, evaluating.evaluate(ensemble, options))


def _has_factors(members: Members) -> bool:
    from ensq.calibrating import read_stored

    try:
        read_stored(members)
    except EnsqError:
        return False
    return True


def missing(known: Known, what: str) -> Content:
    """A sentence in place of what an evaluation tells."""
    if not known.finished:
        return html.missing(f"{what} are known as soon as a member is trained.")
    if known.from_queue:
        command = f"ensq evaluate {known.name}"
    else:
        command = f"ensq evaluate {known.source} data.npz"
    return html.missing(f"{what} are found out by ", html.code(command), ".")


def title(found: Evaluation) -> Content:
    """What was evaluated on."""
    data = found.data
    name = "Validation frames" if data.validation else f"Frames of {data.path}"
    return html.tag("h3", f"{name}: {data.frames:,}")


def text(value: Value | None) -> str:
    """A figure with its interval."""
    if value is None:
        return NOTHING
    return between(value.value, value.low, value.high)


def cell(value: Value | None, factor: float = 1.0, sign: str = "") -> Content:
    """A figure in a table, with its interval below it."""
    if value is None:
        return NOTHING
    low, high = (None if end is None else factor * end for end in (value.low, value.high))
    number, _, rest = between(factor * value.value, low, high).partition(" (")
    between_, _, power = rest.partition(")")
    return html.stacked(f"{number}{power}{sign}", between_)


def unit(name: str) -> str:
    """A unit with its sign: kcal/mol/Å."""
    for word, sign in UNITS.items():
        name = name.replace(word, sign)
    return name
