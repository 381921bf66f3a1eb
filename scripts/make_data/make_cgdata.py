#!/usr/bin/env python3
"""Real all-atom MD (OpenMM) of two short peptides and alanine dipeptide, and the coarse-grained
(one bead per residue at C-alpha) force-matching sets made from it.

    python make_cgdata.py selftest            the fast GBn2 driver against OpenMM's own
    python make_cgdata.py sample cln025 0     one trajectory -> raw/cln025_0.npz
    python make_cgdata.py ala2                gas-phase run -> made/ala2_allatom.{npz,extxyz}
    python make_cgdata.py build               raw/*.npz -> made/chignolin_ca.npz, two_peptides.npz

README.md beside this file tells what it needs, how long it takes, and the physics.
"""

from __future__ import annotations

import argparse

from settings import ALA2_TEMPERATURE, RUNS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("selftest")
    sample = commands.add_parser("sample")
    sample.add_argument("name", choices=RUNS)
    sample.add_argument("replica", type=int)
    sample.add_argument("--plain", action="store_true", help="drive with OpenMM's own GBn2 (slow)")
    sample.add_argument("--eq", type=float, help="equilibration, ps")
    sample.add_argument("--ps", type=int, help="production, ps = frames")
    ala2 = commands.add_parser("ala2")
    ala2.add_argument("--ps", type=int, default=1000, help="production, ps = frames")
    ala2.add_argument("--eq", type=float, default=100, help="equilibration, ps")
    ala2.add_argument("--kelvin", type=float, default=ALA2_TEMPERATURE, help="temperature")
    commands.add_parser("build")
    options = parser.parse_args()
    if options.command == "build":
        import assembling

        assembling.build()
        return
    import sampling

    if options.command == "selftest":
        sampling.selftest()
    elif options.command == "ala2":
        sampling.ala2(options.ps, options.kelvin, options.eq)
    elif not 0 <= options.replica < len(RUNS[options.name]):
        parser.error(f"{options.name} has replicas 0 to {len(RUNS[options.name]) - 1}")
    else:
        sampling.sample(options.name, options.replica, options.plain, options.eq, options.ps)


if __name__ == "__main__":
    main()
