"""What packs of different sizes cost, as measured, and whether a smaller one pays."""

from __future__ import annotations


class Costs:
    """Seconds of a step by the number of members, and of compiling.

    Args:
        proportional: Whether a step of a size that was not measured takes time in proportion to
            its members, as on a CPU. An accelerator hardly notices a few members less, so there
            nothing is expected of a smaller pack that was not measured.
    """

    def __init__(self, *, proportional: bool) -> None:
        self._proportional = proportional
        self._steps: dict[int, float] = {}  # the fastest by members: others were disturbed
        self._compiling: float | None = None

    def stepped(self, members: int, steps: int, seconds: float) -> None:
        """A pack of ``members`` made steps, compiling apart."""
        each = seconds / steps
        self._steps[members] = min(each, self._steps.get(members, each))

    def compiled(self, seconds: float) -> None:
        """A program for some number of members was compiled."""
        self._compiling = seconds

    def smaller_pays(self, now: int, then: int, *, steps: int, is_compiled: bool) -> bool:
        """Whether going on with ``then`` members instead of ``now`` saves more than it costs.

        Args:
            steps: Steps that are left.
            is_compiled: Whether there is a program for ``then`` members already.
        """
        if is_compiled:
            price = 0.0
        elif self._compiling is None:
            return False
        else:
            price = self._compiling
        return steps * self._saved(now, then) > price

    def _saved(self, now: int, then: int) -> float:
        """Seconds of each step."""
        if now not in self._steps:
            return 0.0
        each = self._steps[now]
        if then in self._steps:
            return each - self._steps[then]
        return each * (1 - then / now) if self._proportional else 0.0
