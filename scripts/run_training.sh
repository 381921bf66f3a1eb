#!/usr/bin/env bash
# Trains the ensemble of a configuration by jobs of SLURM: a short name for `ensq submit`.
#
#     scripts/run_training.sh CONFIG [options of ensq submit]
#
# What SLURM is asked for stands in the configuration's section `slurm` (configs/slurm has some), or
# in options such as --partition gpu --time 12:00:00. --dry-run prints the batch script. ensq is the
# one in PATH, else that of the folder .venv here.
set -euo pipefail

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "${BASH_SOURCE[0]}"
    exit $((2 * ($# == 0)))
fi
if ! command -v ensq >/dev/null && [[ -x .venv/bin/ensq ]]; then
    PATH=$PWD/.venv/bin:$PATH
fi
command -v ensq >/dev/null || {
    echo "ensq is not in PATH, nor in .venv here: activate its environment first" >&2
    exit 2
}
exec ensq submit "$@"
