#!/bin/bash
# Workers for the ensemble chignolin_ca, written by `ensq submit`.
#SBATCH --job-name=ensq-chignolin_ca
#SBATCH --comment=ensq-0123456789ab
#SBATCH --array=0
#SBATCH --chdir=/home/me
#SBATCH --output=/home/me/runs/chignolin_ca/slurm/%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --signal=USR1@120
#SBATCH --no-requeue

export ENSQ_DB=/home/me/ensq.db
command -v ensq >/dev/null || {
    echo "ensq is not found on $(hostname): name its environment in slurm.setup" >&2
    exit 2
}

# The last element of an array has the number of the whole array as its SLURM_JOB_ID.
me=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
say() { echo "$(date +%FT%T) job $me: $*"; }

told=
worker=
interrupted=1
code=127
# shellcheck disable=SC2317,SC2034  # called by traps
pass_on() { # a signal to this script goes on to the workers
    interrupted=1
    [ "$1" != TERM ] || told=1
    [ -z "$worker" ] || kill "-$1" "$worker" 2>/dev/null
}
trap 'pass_on TERM' TERM
trap 'pass_on USR1' USR1
trap 'pass_on USR2' USR2

say "begins on ${SLURMD_NODENAME:-$(hostname)}, restart ${SLURM_RESTART_COUNT:-0}"
SECONDS=0
# By srun and in the background: only steps are told of the end in time, and only a shell that
# waits runs its traps.
srun --export=ALL --kill-on-bad-exit=0 --ntasks=1 \
    ensq worker --name chignolin_ca &
worker=$!
while [ -n "$interrupted" ]; do
    interrupted=
    wait "$worker"
    said=$?
    [ "$said" = 127 ] || code=$said # 127: it was waited for already
done
worker=
say "the workers left with $code"

exit "$code"
