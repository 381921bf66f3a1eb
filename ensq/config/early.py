"""The section ``early_stopping``: when a member is stopped before its last epoch.

It decides how long members train, not what a step computes: an ensemble keeps its identity when the
section changes, and `ensq enqueue` with another one changes it for members in training too.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ensq.config.base import Fraction, NonNegative, Positive, PositiveInt, Strict, finite
from ensq.errors import ConfigError

Rule = Literal["sigma", "paired"]


class PlateauConfig(Strict, frozen=True):
    """A member stops when its best validation loss no longer gets better, whatever others do."""

    patience: PositiveInt = 50  # epochs without an improvement
    min_delta: Annotated[float, Meta(ge=0, lt=1)] = 0.001  # less, relative to the best, is none
    min_epochs: PositiveInt = 100  # epochs that each member trains at least


class EarlyStoppingConfig(Strict, frozen=True):
    """Rules that stop members, alone or against the ensemble; see docs/early_stopping.md."""

    # report: a decision is recorded with its evidence, and training goes on.
    mode: Literal["off", "report", "stop"] = "off"
    # paired: worse than the best by more than ``margin``, frame block by frame block, surely
    # enough; sigma: worse than the best by ``sigma`` standard deviations of all members' losses.
    rule: Rule = "paired"
    sigma: Positive = 2.0
    confidence: Fraction = 0.95  # that no member of the ensemble is stopped by chance
    margin: NonNegative = 0.01  # relative to the best's loss
    min_epochs: PositiveInt = 50  # epochs before the first comparison
    patience: PositiveInt = 10  # epochs in a row in which the rule must hold
    # So many members are never stopped by the rule, and an epoch is compared once so many
    # have reached it.
    min_members: Annotated[int, Meta(ge=2)] = 3
    # Whether a member that the rule stopped counts in finalize's statistics and in the mean model.
    statistics: Literal["include", "exclude"] = "include"
    plateau: PlateauConfig | None = None

    def __post_init__(self) -> None:
        finite(sigma=self.sigma, margin=self.margin)
        if self.confidence < 0.5:
            raise ValueError(f"confidence must be at least 0.5, not {self.confidence:g}")

    @property
    def stops(self) -> bool:
        """Whether members are really stopped."""
        return self.mode == "stop"


OFF = EarlyStoppingConfig()


def dumps(section: EarlyStoppingConfig) -> str:
    """The section as JSON, as the queue keeps it."""
    return msgspec.json.encode(section, order="sorted").decode()


def loads(text: str | None) -> EarlyStoppingConfig:
    """The section from the JSON of ``dumps``; ``off`` for None, as older queues have it.

    Raises ConfigError if it is something else.
    """
    if text is None:
        return OFF
    try:
        return msgspec.json.decode(text.encode(), type=EarlyStoppingConfig)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigError(
            f"the recorded section early_stopping can't be read: {str(error)[:200]}; enqueue the "
            "ensemble's configuration again"
        ) from error
