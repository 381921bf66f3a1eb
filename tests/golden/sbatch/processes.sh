#!/bin/bash
# Workers for the ensemble chignolin_ca, written by `ensq submit`.
#SBATCH --job-name=ensq-chignolin_ca
#SBATCH --comment=ensq-0123456789ab
#SBATCH --array=0
#SBATCH --chdir=/home/me
#SBATCH --output=/home/me/runs/chignolin_ca/slurm/%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=4
#SBATCH --ntasks=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --signal=USR1@120
#SBATCH --requeue

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

pause() { # seconds, but no longer than until a SIGTERM
    local end=$((SECONDS + $1))
    while [ -z "$told" ] && [ "$SECONDS" -lt "$end" ]; do sleep 1; done
}

handed_on=
short=/home/me/runs/chignolin_ca/slurm/$me.short # a line for each short run
is_old() { # a node that was given up and came back: its job runs elsewhere under the same number
    local now mine=${SLURM_RESTART_COUNT:-0}
    now=$(squeue -h -j "$me" -O RestartCnt:9 2>/dev/null | tr -d ' ')
    case $now in
    '' | *[!0-9]* | "$mine") return 1 ;;
    esac
    say "run $now of this job is under way: this was run $mine"
}

again() { # once: this job goes back into the queue, or else one other takes its place
    ! is_old || return
    if [ "$SECONDS" -lt 60 ]; then
        echo "$SECONDS" >>"$short"
        if [ "$(wc -l <"$short")" -ge 10 ]; then
            say "ten runs in a row were short: see why above; ensq submit starts it again"
            return
        fi
        say "left after $SECONDS s: waits, so that it does not go round in circles"
        pause $((60 - SECONDS))
    else
        rm -f "$short"
    fi
    for seconds in 0 5 15 30 60 120 300 600; do
        pause "$seconds"
        if [ -n "$told" ]; then
            at_limit
            return
        fi
        answer=$(scontrol requeue "$me" 2>&1)
        said=$?
        if [ "$said" = 0 ]; then
            say "requeued"
            return
        elif [ -n "$told" ]; then
            # SLURM has heard, and ends this run, scontrol with it; or the job was cancelled.
            say "ended while it was requeued"
            return
        fi
        say "not requeued: $answer ($said)"
        [ "$said" -le 128 ] || continue # killed: it may have been heard all the same
        case $answer in
        *contact* | *ocket* | *imed\ out* | *Zero\ Bytes* | *onnect*) continue ;;
        esac
        break
    done
    [ -n "$told" ] || successor
}

# A SIGTERM to this script is scancel's or SLURM's, which requeues by itself where it should; but
# not at the time limit. At once then, since SIGKILL comes soon, also to workers that hang.
at_limit() {
    [ -z "$handed_on" ] && [ "$(squeue -h -j "$me" -o %r 2>/dev/null)" = TimeLimit ] || return
    handed_on=1
    say "the time limit is there"
    is_old || successor
}

successor() {
    element=${SLURM_ARRAY_TASK_ID:-0}
    if answer=$(
        for name in "${!SLURM_@}"; do # of this job, as its count of restarts
            [ "$name" = SLURM_CONF ] || unset "$name"
        done
        sbatch --parsable --array="$element" /home/me/runs/chignolin_ca/slurm/workers-0123456789.sh 2>&1
    ); then
        say "job $answer goes on"
    else
        say "not submitted again: $answer; ensq submit does it"
    fi
}

say "begins on ${SLURMD_NODENAME:-$(hostname)}, restart ${SLURM_RESTART_COUNT:-0}"
SECONDS=0
# By srun and in the background: only steps are told of the end in time, and only a shell that
# waits runs its traps.
srun --export=ALL --kill-on-bad-exit=0 --ntasks=4 --ntasks-per-node=1 \
    ensq worker --name chignolin_ca --processes 4 &
worker=$!
while [ -n "$interrupted" ]; do
    interrupted=
    wait "$worker"
    said=$?
    [ "$said" = 127 ] || code=$said # 127: it was waited for already
    [ -z "$told" ] || at_limit
done
worker=
say "the workers left with $code"

if [ "$code" = 0 ]; then # the one that ends last finds no member open
    srun --export=ALL --ntasks=1 --nodes=1 ensq finalize --when-done chignolin_ca ||
        say "not finalized: ensq status tells why; ensq finalize does it later"
fi

case $told:$code in
:75) again ;; # stopped with work left
:129 | :13[1-9] | :14[0-9] | :15[0-9]) # killed, as for too much memory: three times
    [ "${SLURM_RESTART_COUNT:-0}" -ge 3 ] || again
    ;;
esac
exit "$code"
