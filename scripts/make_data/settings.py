"""What is sampled, units, and where files go."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
RAW = HERE / "raw"
MADE = HERE / "made"

TEMPERATURE = 350.0  # K, peptides
ALA2_TEMPERATURE = 400.0  # K
KB = 0.0019872042586  # kcal/mol/K
KB_EV = 8.617333262e-5  # eV/K
KCAL = 4.184  # kJ
EV_PER_KJ = 1.0 / 96.48533212331  # eV per kJ/mol
AA = [
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
]

SEQUENCE = {"cln025": "YYDPETGTWY", "aaqaa3": "AAQAAAAQAAAAQAA"}
# Backbone angles (phi, psi) of the starting chains, in degrees.
HAIRPIN = (
    [-90, -140, -53, -66, -62, -105, 65, -110, -144, -150],
    [139, 175, 114, -21, -28, 6, 43, 122, 113, 138],
)
STARTS = {"extended": (-120, 140), "helix": (-57, -47), "hairpin": HAIRPIN}
# Peptide -> [(start, equilibration ps, production ps)], one frame per ps of production.
RUNS = {
    "cln025": [("extended", 200, 1300), ("hairpin", 200, 1300), ("extended", 200, 500)],
    "aaqaa3": [("extended", 200, 800), ("helix", 200, 800)],
}
# Shares of the peptide plane's atoms that go to the neighbouring C-alpha (see mapping.py).
N_SHARE, C_SHARE = 0.34, 0.38
