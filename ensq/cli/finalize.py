"""``ensq finalize``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensq.cli.common import (
    as_json,
    database,
    finalize_options,
    only_ensemble,
    print_json,
    url_of,
)

if TYPE_CHECKING:
    from ensq.exports import Priors
    from ensq.finalize import Finalized, MemberReport
    from ensq.jobs import Ensemble
    from ensq.store import Store


@click.command()
@click.argument("name", required=False)
@finalize_options
@click.option(
    "--when-done", is_flag=True, help="Do nothing, without an error, while members are open."
)
@click.option(
    "--priors",
    type=click.Choice(["embedded", "native"]),
    help="Priors inside the model files, or as LAMMPS input. Default: export.priors.",
)
@click.option(
    "--ensemble-mean/--no-ensemble-mean",
    default=None,
    help="Export the mean of all members too. Default: export.ensemble_mean.",
)
@click.option(
    "--reference-energies/--no-reference-energies",
    default=None,
    help="Whether model files add the reference energies. Default: export.reference_energies.",
)
@as_json
@database
def finalize(
    name: str | None,
    db: str | None,
    export_dir: str | None,
    allow_missing: bool,
    when_done: bool,
    priors: Priors | None,
    ensemble_mean: bool | None,
    reference_energies: bool | None,
    json_: bool,
) -> None:
    """Statistics over the members, the best model, exports and metadata.

    Each exported model file is read back, run, and held against the trained model. NAME is the
    run's name, as `ensq status` shows it; names of files begin with its model_context.
    """
    from ensq.store import Store

    with Store.open(url_of(db), read_only=True) as store:
        ensemble = only_ensemble(store, name)
        if when_done and (waiting := _still_open(store, ensemble)):
            click.echo(waiting)
            return
        from ensq.finalize import finalize as write

        done = write(
            store,
            ensemble,
            export_dir=None if export_dir is None else Path(export_dir),
            allow_missing=allow_missing,
            priors=priors,
            ensemble_mean=ensemble_mean,
            reference_energies=reference_energies,
            say=lambda text: click.echo(f"{text} …", err=True),
        )
    show(done, json_)


def _still_open(store: Store, ensemble: Ensemble) -> str | None:
    """A line on members that have not ended; None if there are none."""
    from ensq.jobs import TERMINAL

    jobs = store.jobs(ensemble.id)
    count = sum(job.state not in TERMINAL for job in jobs)
    return f"not finalized yet: {count} of {len(jobs)} members are open" if count else None


def show(done: Finalized, json_: bool) -> None:
    """Print the results as JSON or as a table."""
    if json_:
        print_json({**done.metadata, "export_folder": str(done.folder)})
        return
    for line in lines(done):
        click.echo(line)


def lines(done: Finalized) -> list[str]:
    """The table of members, the statistics, and where the files are."""
    from ensq import stopped
    from ensq.text import table, wrapped

    energy = done.config.unit
    gammas = done.config.training.gammas
    compared = done.metadata["comparison"]
    columns = ["", "seed", "loss"]
    columns += ["s.e."] if compared is None else ["diff ± s.e.", "P(best)"]
    if gammas.F:
        columns.append("F rmse")
    if gammas.U:
        columns.append("U rmse")
    columns += ["best at", "attempts"]
    rows = [_row(member, done) for member in done.members]
    statistics = done.statistics
    text = [f"ensemble {done.ensemble.name}: {statistics.n} trained members"]
    text += table(columns, rows)
    text.append(
        f"loss: mean {statistics.mean:.6g}, std {statistics.std:.3g}, variance "
        f"{statistics.variance:.3g} (ddof 0)"
    )
    best = done.best
    text.append(f"best: seed {best.seed} (*), loss {best.loss:.6g}")
    text += _comparison_lines(done)
    text += stopped.lines(done.metadata["early_stopping"])
    text += _breakdown(done)
    text += _mean_line(done)
    units = []
    if gammas.F:
        units.append(f"forces in {energy}/Angstrom per component")
    if gammas.U:
        units.append(f"energies in {energy} per bead")
    frames = f"validation over {done.metadata['validation_frames']} frames"
    text += wrapped(f"{frames}; {', '.join(units)};")
    text += _about_errors(done)
    if done.metadata["reference_force_rms"] is not None:
        rms = done.metadata["reference_force_rms"]
        text.append(f"rms of the reference forces {rms:.4g} {energy}/Angstrom")
    text += _agreement(done)
    text += [f"note: {note}" for note in done.metadata["export_notes"]]
    if done.missing:
        seeds = ", ".join(f"{job.seed} ({job.state})" for job in done.missing)
        text.append(f"without the members that are not done: seeds {seeds}")
    text.append(f"files in {done.folder}:")
    text += [f"  {name}" for name in done.files]
    return text


def _comparison_lines(done: Finalized) -> list[str]:
    """Who may be as good as the best, and what choosing the lowest loss takes off it."""
    from ensq import choosing
    from ensq.text import wrapped

    compared = done.metadata["comparison"]
    if compared is None:
        frames = done.metadata["validation_frames"]
        single = f"{frames} validation frames make a single block: members can't be compared"
        return [single] if len(done.members) > 1 else []
    said = choosing.statements(compared)
    if compared["corrected_loss"] > done.best.loss:
        said.append(
            f"expect {compared['corrected_loss']:.5g} on new frames: the lowest of "
            f"{done.statistics.n} losses is partly luck"
        )
    return [line for one in said for line in wrapped(one)]


def _about_errors(done: Finalized) -> list[str]:
    """What stands behind ``s.e.``."""
    from ensq import choosing
    from ensq.text import wrapped

    compared = done.metadata["comparison"]
    if compared is None:
        return ["s.e. over frames taken as independent; all losses of the exported parameters"]
    largest = max(one["loss_error"] for one in compared["members"])
    line = (
        f"diff: to the best over the same frames; s.e. over {choosing.about_blocks(compared)}, "
        f"of a loss alone {largest:.2g}; all losses of the exported parameters"
    )
    return wrapped(line)


def _breakdown(done: Finalized) -> list[str]:
    """Force errors of the best model by protein, if there are several, and by species."""
    from ensq.text import wrapped

    [best] = [m for m in done.metadata["members"] if m["index"] == done.best.index]
    parts = []
    if len(best["proteins"]) > 1:
        parts.append(("by protein", best["proteins"]))
    if len(best["species"]) > 1:
        parts.append(("by species", best["species"]))
    text = []
    for title, groups in parts:
        found = [
            f"{name}\N{NO-BREAK SPACE}{group['force_rmse']:#.4g}"
            for name, group in groups.items()
            if group["force_rmse"] is not None
        ]
        if found:
            line = f"its F rmse {title}: {', '.join(found)}"
            text += [one.replace("\N{NO-BREAK SPACE}", " ") for one in wrapped(line)]
    return text


def _mean_line(done: Finalized) -> list[str]:
    """How good the mean of all members is, if it was exported."""
    mean = done.metadata["ensemble_mean"]
    if mean is None:
        return []
    parts = [f"loss {mean['loss']:.6g}"]
    if mean["force_rmse"] is not None:
        parts.append(f"F rmse {mean['force_rmse']:.4g}")
    if mean["energy_rmse_per_bead"] is not None:
        parts.append(f"U rmse/bead {mean['energy_rmse_per_bead']:.3g}")
    return [f"mean of the {len(mean['seeds'])} models: {', '.join(parts)}"]


def _agreement(done: Finalized) -> list[str]:
    """How the exported files compare with the trained models, at worst."""
    found = list(done.metadata["export_comparison"].values())
    return agreement_lines("exports, read back and run, differ", found, done.config.unit)


def agreement_lines(begin: str, found: Sequence[dict[str, Any]], unit: str) -> list[str]:
    """The largest differences of these comparisons, and what they are relative to."""
    from ensq.text import wrapped

    worst = {
        key: max(one[f"{key}_difference"] for one in found)
        for key in ("energy", "relative_energy", "relative_force")
    }
    line = (
        f"{begin} by up to {worst['energy']:.0e} {unit} in energies "
        f"({worst['relative_energy']:.0e} of their range), by {worst['relative_force']:.0e} of "
        "the largest in forces"
    )
    if all(one["frames_split_over_two_domains"] for one in found):
        line += ", with ghosts too"
    return wrapped(line)


def _row(member: MemberReport, done: Finalized) -> list[str]:
    from ensq.progress import loss
    from ensq.text import with_error

    best = member is done.best
    compared = done.metadata["comparison"]
    row = ["*" if best else "", str(member.seed), loss(member.loss)]
    if compared is None:
        row.append("-" if member.loss_error is None else f"{member.loss_error:.2g}")
    else:
        [one] = [found for found in compared["members"] if found["index"] == member.index]
        if one["indistinguishable"] and not best:
            row[0] = "="
        row.append("-" if best else with_error(one["difference"], one["difference_error"]))
        share = one["probability_best"]
        row.append(f"{share:.2f}" if share >= 0.01 else "<0.01")
    if member.rmse_force is not None:
        row.append(f"{member.rmse_force:.4g}")
    if member.rmse_energy is not None:
        row.append(f"{member.rmse_energy:.3g}")
    return [*row, f"{member.best_epoch}/{member.epochs}", str(member.attempts)]
