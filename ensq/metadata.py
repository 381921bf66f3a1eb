"""The figures of an ensemble and the metadata file that tells them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ensq import config as configuration
from ensq import modelfiles, selection
from ensq.config import RunConfig
from ensq.errors import EnsqError
from ensq.exports import Options
from ensq.jobs import Ensemble, Job
from ensq.selection import EnsembleStatistics

if TYPE_CHECKING:
    from ensq.train.checkpoint import MemberResult


@dataclass(frozen=True, kw_only=True)
class MemberReport:
    """One finished member in figures, all of the parameters that are exported."""

    index: int
    seed: int
    loss: float
    loss_error: float | None  # standard error over validation frames
    final_loss: float  # of the last epoch's parameters, for comparison
    rmse_force: float | None
    rmse_energy: float | None  # per bead
    best_epoch: int
    epochs: int
    attempts: int


def report_of(job: Job, result: MemberResult) -> MemberReport:
    """Figures of a member, computed anew from its errors per frame."""
    from ensq.train import statistics

    scores = statistics.scores_of(result)
    if job.best_loss is None or not np.isclose(scores.loss, job.best_loss, rtol=1e-9):
        raise EnsqError(
            f"seed {job.seed}: the queue records a loss of {job.best_loss}, the result file gives "
            f"{scores.loss}; run `ensq db check`, then train it again (`ensq retry`)"
        )
    return MemberReport(
        index=job.index,
        seed=job.seed,
        loss=scores.loss,
        loss_error=statistics.loss_error(result),
        final_loss=result.final_loss,
        rmse_force=scores.rmse_force,
        rmse_energy=scores.rmse_energy,
        best_epoch=result.best_epoch,
        epochs=len(result.history),
        attempts=job.attempt,
    )


def metadata_of(
    ensemble: Ensemble,
    config: RunConfig,
    options: Options,
    members: Sequence[MemberReport],
    results: Sequence[MemberResult],
    missing: Sequence[Job],
) -> dict[str, Any]:
    """All that the metadata file tells apart from the exported files themselves."""
    statistics = statistics_of(members)
    best = members[statistics.best]
    training_config = json.loads(configuration.dumps(config))
    energy = config.unit
    return {
        "ensemble": ensemble.name,
        "model_context": config.model_context,
        "n_models": len(members),
        "base_seed": config.seeds[0],
        "seeds": [member.seed for member in members],
        "validation_losses": [member.loss for member in members],
        "mean_loss": statistics.mean,
        "std_loss": statistics.std,
        "variance_loss": statistics.variance,
        "ddof": 0,
        "best_model_index": best.index,
        "best_model_seed": best.seed,
        "best_model_loss": best.loss,
        "losses_are_of": "the exported parameters: those of each member's best epoch",
        "loss_definition": "gammas.F * mean over real force components (F - F_ref)^2 "
        "+ gammas.U * mean over frames (U - U_ref)^2, over the whole validation set",
        "units": {"length": "Angstrom", "energy": energy, "force": f"{energy}/Angstrom"},
        "final_validation_losses": [member.final_loss for member in members],
        "standard_errors": [member.loss_error for member in members],
        "standard_error_of": "the mean over validation frames, taken as independent",
        "force_rmse": [member.rmse_force for member in members],
        "energy_rmse_per_bead": [member.rmse_energy for member in members],
        "members": [_member(*pair) for pair in zip(members, results, strict=True)],
        "missing_members": [
            {"index": job.index, "seed": job.seed, "state": str(job.state), "error": job.error}
            for job in missing
        ],
        "validation_frames": len(results[0].components),
        "species": list(results[0].species_names),
        "priors": _about_priors(config, options),
        "reference_energies": modelfiles.about_reference_energies(config, options, results[0]),
        "config_digest": ensemble.config_digest,
        "data_digest": ensemble.data_digest,
        "versions": results[0].versions,
        "training_config": training_config,
    }


def statistics_of(members: Sequence[MemberReport]) -> EnsembleStatistics:
    """Mean, spread and best of the members' losses."""
    return selection.ensemble_statistics([member.loss for member in members])


def _member(member: MemberReport, result: MemberResult) -> dict[str, Any]:
    """A member's entry: where it comes from, and its errors by protein and by species."""
    from ensq.train import statistics

    return {
        "index": member.index,
        "seed": member.seed,
        "best_epoch": member.best_epoch,
        "epochs": member.epochs,
        "attempts": member.attempts,
        **statistics.breakdown(result),
    }


def _about_priors(config: RunConfig, options: Options) -> str:
    from ensq.train import export

    if not config.model.use_priors:
        return "none"
    if options.priors == "native":
        return (
            "native: the .mlir files hold the network alone; include the LAMMPS input named under "
            "lammps_priors, which adds the priors"
        )
    return f"embedded: {export.EMBEDDED}"
