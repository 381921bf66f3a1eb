"""Rules of early stopping as pure functions: losses in, a verdict with its whole evidence out.

Nothing but the standard library: the worker, the trainer and the command line all import this.
"""

from ensq.early.plateau import Plateau, plateau
from ensq.early.rules import (
    MIN_BLOCKS,
    Losses,
    PairedAt,
    Rule,
    SigmaAt,
    Window,
    judge,
    newest_common_epoch,
    paired_at,
    sigma_at,
)
from ensq.early.words import in_words

__all__ = [
    "MIN_BLOCKS",
    "Losses",
    "PairedAt",
    "Plateau",
    "Rule",
    "SigmaAt",
    "Window",
    "in_words",
    "judge",
    "newest_common_epoch",
    "paired_at",
    "plateau",
    "sigma_at",
]
