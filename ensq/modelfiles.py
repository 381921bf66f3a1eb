"""The files of an export, made and compared with what was trained."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ensq import data
from ensq.config import RunConfig
from ensq.exports import ABOUT, Exported, Options, Say, makes_mean, mean_stem, member_names

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult
    from ensq.train.compare import Agreement
    from ensq.train.reference import Predictions, Reference

COMPARED_FRAMES = 8
COARSE_STEPS = {"kcal/mol": 1e-4, "eV": 4e-6}  # of energies; above them they are worth a word


def make(
    frames: data.Data,
    config: RunConfig,
    options: Options,
    results: Sequence[MemberResult],
    chosen: dict[str, int],
    say: Say,
) -> Exported:
    """The files of all chosen members and of their mean, each compared with what was trained.

    Args:
        frames: The validation frames.
        config: The run's configuration.
        options: What is exported.
        results: All finished members.
        chosen: File stems and the place of the member that each is of.
        say: Told what happens now.

    Raises:
        ExportError: A model file is not what was trained.
    """
    from ensq.train import export
    from ensq.train.reference import Reference

    force_rms = frames.force_rms() if config.training.gammas.F else None
    mean = makes_mean(options, len(results))
    shown = spread_places(frames.n_frames)
    if not mean:  # only then are all frames needed
        frames, shown = frames.take(shown), np.arange(len(shown))
    constant = export.reference_energies(results[0], frames)
    # Energies as they were trained: beside the constant they would lose digits in float32.
    labels = None if frames.U is None else frames.U - constant
    reference = Reference(replace(frames, U=labels), config.model.cutoff)
    made = {
        place: member_files(results[place], reference, shown, options, say)
        for place in sorted(set(chosen.values()))
    }
    files = {
        stem + ending: content
        for stem, place in chosen.items()
        for ending, content in made[place][0].items()
    }
    comparison = {f"{stem}.mlir": made[place][1] for stem, place in chosen.items()}
    about: dict[str, Any] = dict.fromkeys(ABOUT) | {"export_notes": []}
    if mean:
        name = f"{mean_stem(config)}.mlir"
        files[name], comparison[name], about["ensemble_mean"], notes = _mean_model(
            config, options, results, reference, shown, say
        )
        about["export_notes"] += notes
    about["reference_force_rms"] = force_rms
    about["export_notes"] += notes_on_energies(config, options, constant, comparison.values())
    if native_priors(config, options):
        native = _native_files(config, results, chosen, frames)
        files |= native
        about["lammps_priors"] = sorted(native)
        if config.model.prior_only:
            about["export_notes"].append(
                "model.prior_only: the LAMMPS input is the whole model; the .mlir files hold "
                + ("reference energies alone" if options.reference_energies else "no energies")
                + ", and no forces"
            )
    return Exported(files=files, about={**about, "export_comparison": comparison})


def all_members(
    config: RunConfig, results: Sequence[MemberResult], indices: Sequence[int]
) -> dict[str, bytes]:
    """Every member by the name of its file."""
    from ensq.train import checkpoint

    names = member_names(config, indices)
    return {
        name: checkpoint.result_bytes(result) for name, result in zip(names, results, strict=True)
    }


def about_reference_energies(
    config: RunConfig, options: Options, result: MemberResult
) -> dict[str, Any]:
    """The energies of single beads, which training left out, and whether model files add them."""
    inside = options.reference_energies
    return {
        "in_model_files": inside,
        "by_species": dict(
            zip(result.species_names, result.statistics["energy_shift"], strict=True)
        ),
        "unit": f"{config.unit} per bead",
        "meaning": "energies by the .mlir files hold these, for every bead that of its species"
        if inside
        else "energies by the .mlir files are without these: add, for every bead, that of its "
        "species; forces are the same",
    }


def notes_on_energies(
    config: RunConfig, options: Options, constant: Any, comparisons: Iterable[dict[str, Any]]
) -> list[str]:
    """What must be said where float32 leaves few digits beside large reference energies."""
    largest = max((one["largest_energy"] for one in comparisons), key=abs)
    step = float(np.spacing(np.float32(abs(largest))))
    coarse = step > COARSE_STEPS[config.unit]
    of_the_constant = float(np.abs(constant).max()) > 0.5 * abs(largest)
    if not (options.reference_energies and coarse and of_the_constant):
        return []
    return [
        f"energies in the .mlir come in steps of {step:.1g} {config.unit} beside totals of "
        f"{largest:.5g} {config.unit}: export.reference_energies: false leaves the constant out"
    ]


def spread_places(n_frames: int) -> Any:
    """Places of a few frames, spread over the set."""
    return np.unique(np.linspace(0, n_frames - 1, COMPARED_FRAMES).astype(int))


def native_priors(config: RunConfig, options: Options) -> bool:
    """Whether priors are written as LAMMPS input."""
    return config.model.use_priors and options.priors == "native"


def member_files(
    result: MemberResult, reference: Reference, shown: Any, options: Options, say: Say
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """One member's files by their endings, and how its model file compares with it.

    Energies are held against those that were trained, with the reference energies beside them.
    """
    from ensq.train import checkpoint, export
    from ensq.train.compare import compare

    say(f"exporting seed {result.seed} and comparing it with the trained model")
    embed = options.priors == "embedded"
    module = export.to_bytes(
        [result], embed_priors=embed, reference_energies=options.reference_energies
    )
    frames = reference.frames.take(shown)
    trained = reference.predict(export.without_reference_energies(result), shown, priors=embed)
    expected = _expected(trained, result, frames, options)
    agreement = compare(module, expected, frames, f"seed {result.seed}")
    contents = {
        ".mlir": module,
        # For people's scripts; ensq itself never reads a pickle.
        "_params.pkl": pickle.dumps(result.params, protocol=4),
        ".safetensors": checkpoint.result_bytes(result),
    }
    return contents, in_words(agreement)


def _expected(
    trained: Predictions, result: MemberResult, frames: data.Data, options: Options
) -> Predictions:
    """What a model file should give, where the trained model gives this."""
    from ensq.train import export

    if not options.reference_energies:
        return trained
    energy = trained.energy + export.reference_energies(result, frames)
    return trained._replace(energy=energy)


def in_words(found: Agreement) -> dict[str, Any]:
    """An agreement as the metadata tell it."""
    return {
        "frames": found.frames,
        "energy_difference": found.energy_difference,
        "energy_range": found.energy_range,
        "relative_energy_difference": found.energy_error,
        "largest_energy": found.largest_energy,
        "relative_force_difference": found.force_error,
        "frames_split_over_two_domains": found.split_frames,
        "most_ghosts_of_a_domain": found.ghosts,
    }


def _mean_model(
    config: RunConfig,
    options: Options,
    results: Sequence[MemberResult],
    reference: Reference,
    shown: Any,
    say: Say,
) -> tuple[bytes, dict[str, Any], dict[str, Any], list[str]]:
    """The mean's model file, its comparison, its figures, and what must be said about it."""
    from ensq.train import ensemble_mean, export
    from ensq.train.compare import compare

    say(f"exporting the mean of the {len(results)} models and comparing it with them")
    embed, notes = options.priors == "embedded", []
    if native_priors(config, options) and not ensemble_mean.same_priors(results):
        embed = True
        notes.append(
            "the members' trained priors differ, so their mean can't be written as LAMMPS input: "
            f"{mean_stem(config)}.mlir holds the priors inside, whatever export.priors says"
        )
    content = export.to_bytes(
        results, embed_priors=embed, reference_energies=options.reference_energies
    )
    frames = reference.frames.take(shown)
    plain = [export.without_reference_energies(result) for result in results]
    trained = ensemble_mean.predict(reference, plain, shown, priors=embed)
    expected = _expected(trained, results[0], frames, options)
    agreement = compare(content, expected, frames, "the mean of all members")
    scores = ensemble_mean.scores(reference, plain, config.training.gammas)
    figures = {
        "file": f"{mean_stem(config)}.mlir",
        "seeds": [result.seed for result in results],
        "priors": ("embedded" if embed else "native") if config.model.use_priors else "none",
        "loss": scores.loss,
        "force_rmse": scores.rmse_force,
        "energy_rmse_per_bead": scores.rmse_energy,
    }
    return content, in_words(agreement), figures, notes


def _native_files(
    config: RunConfig, results: Sequence[MemberResult], chosen: dict[str, int], frames: data.Data
) -> dict[str, bytes]:
    """Priors as LAMMPS input: once if all members have the same, else for each exported one."""
    from ensq.train import ensemble_mean, lammps, lammps_data

    context = config.model_context
    files = lammps_data.system_files(results[0], context, frames)
    data_file = next(iter(files))
    if ensemble_mean.same_priors(results):
        files |= lammps.prior_files(results[0], context, f"{context}_best.mlir", data_file)
    else:
        for stem, place in chosen.items():
            files |= lammps.prior_files(results[place], stem, f"{stem}.mlir", data_file)
    return {name: text.encode() for name, text in files.items()}
