#!/usr/bin/env python3
"""Train the ensemble of a configuration on this machine, with statistics and exports.

    python scripts/train_ensemble.py CONFIG [JOB_ID]

A thin wrapper of ``ensq run``. With JOB_ID (for example SLURM's) the ensemble is called
<model_context>-JOB_ID, so that jobs with the same configuration don't share one. The database is
$ENSQ_DB, or ensq.db in the current folder. ensq must be installed for this Python.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def arguments(config: Path, job_id: str | None) -> list[str]:
    """The arguments of ``ensq`` that the two stand for."""
    if job_id is None:
        return ["run", str(config)]
    from ensq.config import load

    return ["run", str(config), "--name", f"{load(config).model_context}-{job_id}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument("job_id", metavar="JOB_ID", nargs="?")
    options = parser.parse_args()

    from ensq.cli import main as ensq
    from ensq.errors import EnsqError

    try:
        given = arguments(options.config, options.job_id)
    except EnsqError as error:
        print(f"ensq: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.argv = ["ensq", *given]
    ensq()


if __name__ == "__main__":
    main()
