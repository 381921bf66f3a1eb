"""ensq trains ensembles of machine-learned force fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensq.ensemble import load_ensemble as load_ensemble

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load_ensemble`` is imported when it is asked for: ``import ensq`` stays light."""
    if name == "load_ensemble":
        from ensq.ensemble import load_ensemble

        return load_ensemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
