"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was seen, and what to do."""

    key: str  # stable: programs read it
    state: Literal["ok", "note", "warning", "problem"]
    seen: str
    advice: str = ""
