"""The mean of all members' energies as one model: what it predicts, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensq.config.structs import GammasConfig
from ensq.train.checkpoint import MemberResult
from ensq.train.reference import Predictions, Reference, errors
from ensq.train.statistics import Scores


def predict(
    reference: Reference, results: Sequence[MemberResult], places: Any = None, *, priors: bool
) -> Predictions:
    """Energies and forces of the mean potential: the means over the members."""
    # summed one by one: the predictions of all members together may be large
    total = reference.predict(results[0], places, priors=priors)
    for result in results[1:]:
        found = reference.predict(result, places, priors=priors)
        total = Predictions(total.energy + found.energy, total.force + found.force)
    return Predictions(total.energy / len(results), total.force / len(results))


def scores(reference: Reference, results: Sequence[MemberResult], gammas: GammasConfig) -> Scores:
    """Loss and errors of the mean potential over all frames of the reference."""
    mean = predict(reference, results, priors=True)
    return errors(mean, reference.frames).scores(gammas)


def same_priors(results: Sequence[MemberResult]) -> bool:
    """Whether all members have the same numbers in their priors."""
    first = results[0].params["priors"]
    return all(
        np.array_equal(first[key], result.params["priors"][key])
        for result in results
        for key in first
    )
