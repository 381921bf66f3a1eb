"""What may be chosen for a dynamics check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ensq.errors import UsageError

LOOKS = 500  # about so many of a run
FINEST = 1e-5  # friction times time step below which float32 can't keep the temperature
OF_ATOMS, OF_BEADS = 0.5, 5.0  # fs, the time step if none is given


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of one run; None: as the data and the model suggest."""

    replicas: int = 32
    steps: int = 10_000
    timestep: float | None = None  # fs
    temperature: float | None = None  # K
    friction: float = 1.0  # 1/ps
    seed: int = 0
    every: int | None = None  # steps between two looks
    frames: str | None = None  # to start from: numbers and ranges
    masses: Mapping[str, float] = field(default_factory=dict)
    max_epsilon: float | None = None
    equilibration: float = 0.2  # of the time, left out of what is compared
    dtype: str = "float32"

    def interval(self) -> int:
        """Steps between two looks."""
        return self.every or max(1, self.steps // LOOKS)

    def check(self, timestep: float) -> None:
        """Raise UsageError for a friction that can't be had in float32."""
        product = self.friction * 1e-3 * timestep
        if 0 < product < FINEST and self.dtype == "float32":
            raise UsageError(
                f"--friction {self.friction:g}: in float32 a friction that small (times the time "
                "step) would not keep the temperature: --dtype float64, or --friction 0 for a "
                "constant energy"
            )


def numbers_in(text: str, frames: int) -> list[int]:
    """Frames of a list such as ``0,10,20-29``.

    Raises UsageError for anything else, or a frame that there is not.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise UsageError(f"--frames {text}: write numbers and ranges, as in 0,10,20-29")
        low, high = int(first), int(last) if dash else int(first)
        if low > high or high >= frames:
            raise UsageError(f"--frames {part}: there are the frames 0 to {frames - 1}")
        found += range(low, high + 1)
    return found
