"""Rows of the table, and what it was measured with."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("check", "setting", "found", "tolerance", "holds")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One check."""

    part: str  # allegro, dimenet, ensemble, restart, pack
    check: str
    setting: str
    found: str
    tolerance: str
    holds: bool


def of_bound(part: str, check: str, setting: str, value: float, bound: float) -> Row:
    """A largest relative difference that must stay below ``bound``."""
    return Row(
        part=part,
        check=check,
        setting=setting,
        found=f"largest relative difference {value:.1e}",
        tolerance=f"{bound:.0e}",
        holds=value < bound,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = (row.check, row.setting, row.found, row.tolerance, "yes" if row.holds else "NO")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plain(rows: Sequence[Row], seconds: dict[str, float]) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "machine": machine(),
        "versions": _versions(),
        "seconds": seconds,
        "rows": [asdict(row) for row in rows],
    }


def machine() -> str:
    """Processor and cores in words."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    from ensq.train import environment

    device = environment.device()
    return f"{model}, {os.cpu_count()} cores, JAX on {device}, {platform.system()}"


def _versions() -> dict[str, str]:
    from ensq.train import environment

    return environment.versions()


def heading() -> str:
    """Machine and versions in two lines."""
    named = ", ".join(f"{name} {version}" for name, version in _versions().items())
    return f"Machine: {machine()}.\nVersions: {named}."
