"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# note: worth to know. unknown: could not be found out, and need not be in order.
State = Literal["ok", "note", "warning", "problem", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was seen, and what to do."""

    key: str  # stable: programs read it
    state: State
    seen: str
    advice: str = ""
