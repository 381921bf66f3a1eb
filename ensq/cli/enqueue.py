"""``ensq enqueue``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import database, db_hint, enqueue_options, overrides_of, url_of

if TYPE_CHECKING:
    from ensq.config import RunConfig
    from ensq.enqueue import Checked, Enqueued

_COLUMNS = 80


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@enqueue_options
@database
def enqueue(
    config: Path,
    db: str | None,
    name: str | None,
    n_models: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Check CONFIG and its data, and write one row per seed.

    Twice is the same as once. Under the same name, more seeds may be added; another
    configuration or other data are refused (exit code 78).
    """
    from ensq.cli.config import say_notes
    from ensq.enqueue import check
    from ensq.enqueue import enqueue as write
    from ensq.store import Store

    say_notes(config, overrides_of(overrides, n_models))
    checked = check(config, overrides_of(overrides, n_models))
    with Store.open(url_of(db), create=True) as store:
        done = write(store, checked, name)
    for line in [*summary(done), *short_facts(checked)]:
        click.echo(line)
    hint = db_hint(db)
    click.echo(f"next: `ensq worker{hint}` here, `srun ensq worker{hint}` in a SLURM job")


def summary(done: Enqueued) -> list[str]:
    """What was enqueued, in words."""
    from ensq.text import ranges

    frames = f"{done.frames} frames of {done.beads} beads"
    lines = [
        f"ensemble {done.ensemble.name}: {frames}, {done.training_frames} to train and "
        f"{done.validation_frames} to validate"
    ]
    if done.new_seeds:
        lines.append(f"new: {_members(len(done.new_seeds))}, seeds {ranges(done.new_seeds)}")
    if done.existing_seeds:
        count = _members(len(done.existing_seeds))
        lines.append(f"there already: {count}, seeds {ranges(done.existing_seeds)}")
    if done.early_stopping_changed:
        lines.append("early_stopping was changed, for members in training too")
    return lines


def short_facts(checked: Checked) -> list[str]:
    """What a model of these data is, and what its errors are to be compared with."""
    facts = checked.facts
    lines = [_species(facts.species, _symmetry(checked.config, facts.elements))]
    if facts.force_rms is not None:
        lines.append(
            f"rms of the forces: {f'{facts.force_rms:#.3g}'.rstrip('.')} {facts.unit}/Angstrom "
            "(the error of predicting zero)"
        )
    return lines


def all_facts(checked: Checked) -> list[str]:
    """The same and more, for who asks for a check."""
    facts = checked.facts
    lines = short_facts(checked)
    if facts.energy_min is not None and facts.energy_max is not None:
        lines.append(f"energies: {facts.energy_min:.8g} to {facts.energy_max:.8g} {facts.unit}")
    beads = f"{facts.beads_min}"
    if facts.beads_max > facts.beads_min:
        beads += f" to {facts.beads_max}"
    lines.append(f"beads: {beads}, {'periodic' if facts.periodic else 'open'} boundaries")
    if facts.neighbours is not None:
        cutoff = checked.config.model.cutoff
        lines.append(
            f"neighbours within {cutoff:g} Angstrom: {facts.neighbours:.1f} per bead (a sample)"
        )
    counts = [f"{name} {count}" for name, count in facts.proteins.items()]
    if counts:
        lines.append(_listed("frames of each protein: ", counts, ""))
    about = "" if facts.beads_max == facts.beads_min else "about "
    lines.append(f"gradient steps per epoch: {about}{facts.steps_per_epoch}")
    return lines


def _species(names: tuple[str, ...], what: str) -> str:
    start = "species: " if len(names) < 10 else f"species ({len(names)}): "
    return _listed(start, list(names), f" ({what})")


def _symmetry(config: RunConfig, elements: bool) -> str:
    what = "elements" if elements else "no elements"
    if config.model.prior_only or config.model.ml_model != "allegro":
        return what
    allegro = config.model.allegro
    # as ensq.train.models.network decides
    o3 = allegro.symmetry == "o3" or (
        allegro.symmetry == "auto" and (elements or allegro.max_ell == 0)
    )
    return f"{what}: mirror images {'have one energy' if o3 else 'may differ in energy'}"


def _listed(start: str, names: list[str], end: str) -> str:
    """A line of names, as many of them as 80 columns hold."""
    for count in range(len(names), 0, -1):
        line = start + ", ".join(names[:count]) + (", …" if count < len(names) else "") + end
        if len(line) <= _COLUMNS:
            return line
    return start + "…" + end


def _members(count: int) -> str:
    return f"{count} member" + ("s" if count != 1 else "")
