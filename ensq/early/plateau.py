"""The rule that looks at a member alone: its validation loss no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol


class Plateau(Protocol):
    """The settings, as ``config.early.PlateauConfig`` has them."""

    @property
    def patience(self) -> int: ...
    @property
    def min_delta(self) -> float: ...
    @property
    def min_epochs(self) -> int: ...


def plateau(losses: Sequence[float], settings: Plateau) -> dict[str, Any] | None:
    """The evidence that a member is on a plateau after its last epoch; None if it isn't.

    An epoch improves if its loss is below (1 - min_delta) times that of the last epoch that did, so
    that many small steps count once they are enough together. The rule holds when ``patience``
    epochs have passed since. It looks at losses only: a resumed training comes to the same.

    Args:
        losses: Of all epochs, the first first.
        settings: Patience, the smallest improvement, and epochs before the rule is asked.
    """
    reference, since = math.inf, 0
    for epoch, loss in enumerate(losses, 1):
        if loss < reference * (1.0 - settings.min_delta) or since == 0:
            reference, since = loss, epoch
    epoch = len(losses)
    if epoch < settings.min_epochs or epoch - since < settings.patience:
        return None
    lowest = min(losses)
    return {
        "rule": "plateau",
        "epoch": epoch,
        "since": since,  # the last epoch that improved
        "reference": reference,  # its loss
        "best_loss": lowest,
        "best_epoch": losses.index(lowest) + 1,
        "loss": losses[-1],
        "settings": {
            "patience": settings.patience,
            "min_delta": settings.min_delta,
            "min_epochs": settings.min_epochs,
        },
    }
