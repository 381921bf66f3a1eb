#!/usr/bin/env bash
# One SLURM job that trains the ensemble of a configuration:
#
#     sbatch scripts/run_training.sh CONFIG [NAME]
#
# NAME is the ensemble's; by default it is the configuration's model_context. It must be given if
# the database holds several ensembles, and is then the only one that the job works on.
#
# Several jobs with the same CONFIG and the same database share the work: submit this as often as
# you have GPUs, or with --array=1-4. Each claims members that no other has.
#
# Change the lines below for your cluster; options of sbatch on the command line go before them.
#SBATCH --job-name=ensq
#SBATCH --output=slurm-%x-%j.out
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
# For a GPU:            #SBATCH --gres=gpu:1
# Several tasks in a job are several workers: --ntasks=4 --gpus-per-task=1
#
# Two minutes before the time limit the worker is told to write its checkpoints and give its
# members back. The signal goes to what srun started, not to this script.
#SBATCH --signal=USR1@120
# Lets the job go back into the queue after pre-emption, a lost node, or at the time limit (below).
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if (($# < 1 || $# > 2)); then
    echo "use: sbatch scripts/run_training.sh CONFIG [NAME]" >&2
    exit 2
fi
config=$1
name=${2:-}

# The queue. It must lie on a file system that all jobs see.
export ENSQ_DB=${ENSQ_DB:-$PWD/ensq.db}

# sbatch runs a copy of this script, so ensq is looked for in PATH first, then in the .venv of the
# folder that the job was submitted from. Load modules or activate an environment here if need be.
if ! command -v ensq >/dev/null && [[ -x ${SLURM_SUBMIT_DIR:-.}/.venv/bin/ensq ]]; then
    PATH=$(cd "${SLURM_SUBMIT_DIR:-.}" && pwd)/.venv/bin:$PATH
fi
command -v ensq >/dev/null || {
    echo "ensq is not in PATH: activate its environment before sbatch" >&2
    exit 2
}

# Harmless where the members are queued already.
ensq enqueue "$config" ${name:+--name "$name"}

# srun, and not a plain child: at the time limit and at pre-emption only steps that srun started
# get a signal in time.
code=0
srun ensq worker ${name:+--name "$name"} || code=$?

case $code in
0) # nothing was left to take; the job that ends last writes statistics and exports
    ensq finalize ${name:+"$name"} ||
        echo "not finalized: \`ensq status\` tells what is missing, \`ensq finalize\` does it later"
    ;;
75) # interrupted with work left: once more. scancel never comes here, it ends this script too.
    scontrol requeue "$SLURM_JOB_ID" || true
    ;;
esac
exit $code
