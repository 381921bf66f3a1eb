"""The report of an ensemble: sections into one page, and its figures' files beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensq import __version__
from ensq.report import (
    chosen,
    curves,
    drawing,
    dynamics,
    early,
    errors,
    evaluated,
    members,
    places,
    settings,
    summary,
    timeline,
    uncertainty,
)
from ensq.report.html import Content
from ensq.report.known import Known
from ensq.report.numbers import moment
from ensq.report.page import Section, page
from ensq.rundir import write_atomic

if TYPE_CHECKING:
    from ensq.dynamics.given import Given

FOLDER, NAME = "report", "report.html"  # below the folder of the analysis
Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """A report and the files that go beside it, by name."""

    html: str
    files: dict[str, bytes]


def default_path(known: Known) -> Path:
    return known.analysis / FOLDER / NAME


def make(
    known: Known,
    steps: Sequence[Content],
    stem: str,
    say: Say = lambda text: None,
    given: Sequence[Given] = (),
) -> Report:
    """The page and its figures; the same values give the same bytes.

    Args:
        known: The ensemble.
        steps: What to do next, as sentences.
        stem: The page's name without .html; names of files beside it begin with it.
        say: Is told what is being drawn.
        given: Trajectories from elsewhere.

    Raises UsageError if matplotlib is not installed.
    """
    drawing.require()
    sections: list[Section] = []
    for title, make_section in _sections(known, steps, given):
        say(title.lower())
        sections.append(make_section())
    made = page(known.name, _lead(known), sections, _foot(), stem)
    files: dict[str, bytes] = {}
    for section in sections:
        for figure in section.figures:
            files[f"{stem}-{figure.name}.png"] = figure.png
            files[f"{stem}-{figure.name}.csv"] = figure.csv.encode()
        for name, csv in section.tables:
            files[f"{stem}-{name}.csv"] = csv.encode()
    return Report(made, files)


def _sections(
    known: Known, steps: Sequence[Content], given: Sequence[Given]
) -> list[tuple[str, Callable[[], Section]]]:
    """The sections in their order, each with its title."""
    found = evaluated.find(known)
    choice = chosen.find(known)
    return [
        (summary.TITLE, lambda: summary.section(known, steps, found.validation, choice)),
        (curves.TITLE, lambda: curves.section(known)),
        (members.TITLE, lambda: members.section(known, choice)),
        (chosen.TITLE, lambda: chosen.section(known, choice)),
        (errors.TITLE, lambda: errors.section(known, found)),
        (uncertainty.TITLE, lambda: uncertainty.section(known, found)),
        (places.TITLE, lambda: places.section(known, found)),
        (early.TITLE, lambda: early.section(known)),
        (dynamics.TITLE, lambda: dynamics.section(known, given)),
        (timeline.TITLE, lambda: timeline.section(known)),
        (settings.TITLE, lambda: settings.section(known)),
    ]


def write(report: Report, path: Path, *, own: bool = False) -> list[Path]:
    """Write the page and what goes beside it; returns the paths, the page first.

    In its ``own`` folder figures of an earlier report that are not made any more are removed.
    """
    for name, content in report.files.items():
        write_atomic(path.with_name(name), content)
    write_atomic(path, report.html.encode())
    if own:
        for ending in ("png", "csv"):
            for old in path.parent.glob(f"{path.stem}-*.{ending}"):
                if old.name not in report.files:
                    old.unlink()
    return [path, *(path.with_name(name) for name in report.files)]


def _lead(known: Known) -> Content:
    if known.last_event is None:
        return f"An ensemble of {len(known.members)} force fields, as its export folder tells."
    return (
        f"An ensemble of {len(known.members)} force fields; the last event in its queue was at "
        f"{moment(known.last_event)} UTC."
    )


def _foot() -> Content:
    return (
        f"Made by ensq {__version__}. Figures are in the colours of Okabe and Ito, which people "
        "with any "
        "kind of colour vision tell apart. ± is one standard error or deviation, as the text says."
    )
