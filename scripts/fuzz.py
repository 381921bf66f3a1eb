#!/usr/bin/env python
"""Try mutated files on every loader: only clear errors, within 2 s and 512 MB each.

    scripts/fuzz.py [--inputs 10000] [--loader NAME]... [--seed N] [--save FOLDER]

Prints progress and a table; exit code 1 if a loader did anything else than take or refuse an input.
Such inputs are saved. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_loaders import LOADERS
from fuzz_tools import Verdict, content, run


@dataclass
class Report:
    """What became of all inputs of one loader."""

    loader: str
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # s
    peak: float = 0.0  # MB
    findings: list[tuple[Verdict, Path]] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--loader", action="append", choices=list(LOADERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="where inputs with findings go")
    options = parser.parse_args()
    saved = options.save or Path(tempfile.mkdtemp(prefix="ensq-fuzz-"))
    saved.mkdir(parents=True, exist_ok=True)
    names = options.loader or list(LOADERS)
    reports = [_one(name, options.inputs, options.seed, saved) for name in names]
    print("\n".join(_table(reports)))
    findings = [line for report in reports for line in _findings(report)]
    print("\n".join(findings) if findings else "nothing found")
    return 1 if findings else 0


def _one(name: str, inputs: int, seed: int, saved: Path) -> Report:
    loader, report, start = LOADERS[name](), Report(name), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for done, verdict in enumerate(run(loader, range(inputs), seed, Path(folder)), 1):
            report.slowest = max(report.slowest, verdict.seconds)
            report.peak = max(report.peak, verdict.megabytes)
            report.kinds[verdict.kind] += 1
            if verdict.bad:
                path = saved / f"{name}-{seed}-{verdict.number}{loader.suffix}"
                path.write_bytes(content(loader, seed, verdict.number))
                report.findings.append((verdict, path))
            if done % 500 == 0 or done == inputs:
                seconds = time.monotonic() - start
                print(f"{name}: {done} of {inputs}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return report


def _table(reports: list[Report]) -> list[str]:
    lines = [
        f"{'loader':<14}{'inputs':>8}{'accepted':>10}{'slowest':>10}{'peak':>9}{'bad':>6}  refused"
    ]
    for report in reports:
        refused = ", ".join(
            f"{kind} {count}"
            for kind, count in report.kinds.most_common()
            if kind != "accepted" and not kind.startswith("BAD")
        )
        lines.append(
            f"{report.loader:<14}{report.kinds.total():>8}{report.kinds['accepted']:>10}"
            f"{1000 * report.slowest:>7.0f} ms{report.peak:>6.0f} MB{len(report.findings):>6}  "
            f"{refused}"
        )
    return lines


def _findings(report: Report) -> list[str]:
    """Each kind of finding once, with how often it came up and one input of it."""
    grouped: dict[tuple[str, str], list[tuple[Verdict, Path]]] = {}
    for verdict, path in report.findings:
        at = verdict.text.partition(" at ")[2].partition(" < ")[0]
        grouped.setdefault((verdict.kind, at), []).append((verdict, path))
    lines = []
    for same in sorted(grouped.values(), key=len, reverse=True):
        verdict, path = same[0]
        lines.append(
            f"{report.loader}: {len(same)} x {verdict.kind} ({verdict.seconds:.1f} s, "
            f"{verdict.megabytes:.0f} MB)\n    {verdict.text[:500]}\n    {path}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
