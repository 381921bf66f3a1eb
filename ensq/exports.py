"""The files of an export: which models, made from what, proven how, and whether they are there
already."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ensq import data
from ensq.config import RunConfig
from ensq.errors import MismatchError, UsageError
from ensq.jobs import Ensemble, Job
from ensq.rundir import RunDir, sha256
from ensq.store import Store

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult
    from ensq.train.compare import Agreement
    from ensq.train.reference import Predictions, Reference

METADATA = "ensemble_metadata.json"
COMPARED_FRAMES = 8
COARSE_STEPS = {"kcal/mol": 1e-4, "eV": 4e-6}  # of energies; above them they are worth a word
Say = Callable[[str], None]
Priors = Literal["embedded", "native"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is exported and how; by default as the configuration says."""

    priors: Priors
    ensemble_mean: bool
    save_all: bool
    reference_energies: bool

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        priors: Priors | None = None,
        ensemble_mean: bool | None = None,
        save_all: bool | None = None,
        reference_energies: bool | None = None,
    ) -> Options:
        def or_else(given: Any, configured: Any) -> Any:
            return configured if given is None else given

        return cls(
            priors=or_else(priors, config.export.priors),
            ensemble_mean=or_else(ensemble_mean, config.export.ensemble_mean),
            save_all=or_else(save_all, config.ensemble.save_all_models),
            reference_energies=or_else(reference_energies, config.export.reference_energies),
        )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The files' contents by name, and what the metadata tell about them."""

    files: dict[str, bytes]
    about: dict[str, Any]


# What an export writes into the metadata, and takes from there when it is made already.
ABOUT = (
    "export_comparison",
    "ensemble_mean",
    "lammps_priors",
    "export_notes",
    "reference_force_rms",
    "comparison",
)


# -- where it goes, and what is there -----------------------------------------------------------


def export_folder(store: Store, ensemble: Ensemble, config: RunConfig, given: Path | None) -> Path:
    """The folder that was given, or configured, or the run's own."""
    if given is not None:
        return given.absolute()
    if config.training.export_path is not None:
        return (store.root / config.training.export_path).absolute()
    return RunDir.of(store.root, ensemble.run_path).exported


def recorded(folder: Path) -> dict[str, Any]:
    """The metadata of an earlier export in this folder, or nothing."""
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def previous_files(folder: Path) -> set[str]:
    """The files that an earlier export wrote there."""
    files = recorded(folder).get("files", {})
    return {METADATA, *(name for name in files if isinstance(name, str) and "/" not in name)}


def refuse_other(folder: Path, ensemble: Ensemble) -> None:
    """Raise unless the folder is a new one, or one of this ensemble."""
    if Path.cwd().is_relative_to(folder):
        raise UsageError(
            f"{folder}: is replaced as a whole, so it can't be the folder that you are in, or one "
            "above it; name one below"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, not a folder; choose another --export-dir")
    before = recorded(folder).get("ensemble")
    if before not in (None, ensemble.name):
        raise MismatchError(
            f"{folder}: holds the export of the ensemble {before!r}; give another --export-dir"
        )


def refuse_unwritable(folder: Path) -> None:
    """Raise UsageError unless the folder can be written, before anything is computed for it.

    A trial folder is made where ``publish`` makes its own, beside the folder, or in the lowest
    folder above it that is there already.
    """
    place = folder.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        Path(tempfile.mkdtemp(prefix=f".{folder.name}.try-", dir=place)).rmdir()
    except OSError as error:
        raise UsageError(
            f"{folder}: can't be written ({place}: {error.strerror}); choose another --export-dir"
        ) from error


def exported_before(folder: Path, sources: dict[str, Any]) -> Exported | None:
    """The exports in the folder, if they are of the same sources and undamaged."""
    before = recorded(folder)
    if any(before.get(key) != value for key, value in sources.items()):
        return None
    files: dict[str, bytes] = {}
    try:
        for name, digest in before["files"].items():
            if Path(name).name != name:
                return None  # not a name that ensq wrote
            files[name] = (folder / name).read_bytes()
            if sha256(files[name]) != digest:
                return None
        return Exported(files=files, about={key: before[key] for key in ABOUT})
    except (OSError, KeyError, AttributeError, TypeError, ValueError):
        return None


# -- what it is made from -----------------------------------------------------------------------


def read_member(store: Store, ensemble: Ensemble, job: Job) -> MemberResult:
    """A finished member's result file, verified against the queue."""
    from ensq.train import checkpoint

    run = RunDir.of(store.root, ensemble.run_path)
    assert job.result_path is not None and job.result_digest is not None
    path = run.inside(job.result_path)
    result = checkpoint.read_result(checkpoint.read_verified(path, job.result_digest))
    identity = (result.identity.config_digest, result.identity.data_digest, result.seed)
    if identity != (ensemble.config_digest, ensemble.data_digest, job.seed):
        raise MismatchError(f"{path}: not the result of seed {job.seed} of this ensemble")
    return result


def sources_of(
    chosen: dict[str, int], done: Sequence[Job], config: RunConfig, options: Options
) -> dict[str, Any]:
    """What the exports are made from, with and how: the same gives the same files."""
    from ensq.train import environment

    made_from: dict[str, Any] = {stem: done[place].result_digest for stem, place in chosen.items()}
    if makes_mean(options, len(done)):
        made_from[mean_stem(config)] = [job.result_digest for job in done]
    made_from |= {
        name: job.result_digest
        for name, job in zip(member_names(config, [job.index for job in done]), done, strict=True)
    }
    return {
        "exported_from": made_from,
        "exported_with": environment.versions(),
        "export": {
            "priors": options.priors,
            "ensemble_mean": options.ensemble_mean,
            "reference_energies": options.reference_energies,
        },
    }


def makes_mean(options: Options, members: int) -> bool:
    """Whether there is a mean model: it takes two members to be one."""
    return options.ensemble_mean and members > 1


def member_names(config: RunConfig, indices: Sequence[int]) -> list[str]:
    """The files that hold every member, whatever else is exported: what predictions need."""
    return [f"{config.model_context}_ensemble_{index}.safetensors" for index in indices]


def mean_stem(config: RunConfig) -> str:
    return f"{config.model_context}_ensemble_mean"


def validation_frames(
    store: Store, ensemble: Ensemble, config: RunConfig, result: MemberResult
) -> data.Data:
    """The frames that the members were validated on, in their order."""
    path = store.root / ensemble.data_path
    if data.digest(path) != ensemble.data_digest:
        raise MismatchError(
            f"{path}: the data have changed since the ensemble was enqueued; restore the file, "
            "which the exported models are compared on"
        )
    whole = data.load(path, config.data, config.training.gammas, config.unit)
    return whole.take(result.validation_index)


# -- making it ----------------------------------------------------------------------------------


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
