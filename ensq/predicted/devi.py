"""Model deviations in the columns of DeePMD-kit, which programs for active learning read.

Definitions and format: DeePMD-kit, "Calculate Model Deviation" (documentation and
``deepmd/infer/model_devi.py``, versions 2.2 and 3).
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np

from ensq.predicted.perframe import Array, PerFrame
from ensq.units import ENERGY

COLUMNS = (
    *("max_devi_v", "min_devi_v", "avg_devi_v"),
    *("max_devi_f", "min_devi_f", "avg_devi_f", "devi_e"),
)


def population(found: PerFrame, energy_unit: str, members: int, ddof: int) -> PerFrame:
    """The same in eV and eV/Angstrom, and with ddof 0: thresholds of other programs are so.

    ``found``: in ``energy_unit`` and this per Angstrom, standard deviations with ``ddof``.
    """
    factor = ENERGY[energy_unit] / ENERGY["eV"]
    return replace(
        found,
        energy_mean=found.energy_mean * factor,
        energy_std=found.energy_std * factor * np.sqrt((members - ddof) / members),
        epsilon_max=found.epsilon_max * factor,
        epsilon_mean=found.epsilon_mean * factor,
        epsilon_min=found.epsilon_min * factor,
        virial_std=found.virial_std * factor,
    )


def table(found: PerFrame) -> Array:
    """[T,8] the number of each frame, then ``COLUMNS``; ``found`` in eV and eV/Angstrom.

    Of the virial: standard deviations (ddof 0) of its nine components per bead, their largest and
    smallest, and the root of their mean square. Of the forces: epsilon of the beads, its largest,
    smallest and mean. Of the energy: the standard deviation (ddof 0) per bead.
    """
    virial = found.virial_std.reshape(-1, 9) / found.beads[:, None]
    return np.column_stack(
        [
            np.arange(found.frames),
            virial.max(axis=1),
            virial.min(axis=1),
            np.sqrt(np.mean(virial**2, axis=1)),
            found.epsilon_max,
            found.epsilon_min,
            found.epsilon_mean,
            found.energy_std / found.beads,
        ]
    )


def content(found: PerFrame, title: str) -> bytes:
    """The file; ``title`` is its first line, a comment."""
    head = f"{title}\n{'step':>10}" + "".join(f"{name:>19}" for name in COLUMNS)
    out = io.BytesIO()
    formats = ["%12d", *["%19.6e"] * len(COLUMNS)]
    np.savetxt(out, table(found), fmt=formats, delimiter="", header=head)
    return out.getvalue()
