"""The batch script of an array of workers: a plan in, text out, and nothing else looked at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_LEAST_LIMIT = 300  # seconds; with less the warning would come before there is anything to save
_LIMIT_SHARE = 20  # of the limit, at most, that a warning costs


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """All that the text of a batch script depends on."""

    ensemble: str
    job_name: str
    comment: str  # which database the jobs are for, as a digest
    workers: int  # elements of the array
    script: str  # where the text will lie
    output: str  # where SLURM writes what the elements say; % is SLURM's
    folder: str  # the working folder
    database: str | None  # ENSQ_DB; None: from the environment, since it holds a password
    root: str | None = None  # ENSQ_ROOT
    bin_folder: str | None = None  # where the ensq that submits lies
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    seconds: int | None = None  # the same time
    gpus: str = "1"  # of a worker
    cpus: int | None = None
    memory: str | None = None
    workers_per_gpu: int = 1
    processes: int = 1  # of a worker, on as many nodes
    pack: int | str = "auto"
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = "ensq"
    scratch: str | None = None
    requeue: bool = True
    signal: int = 120
    finalize: bool = True
    extra: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # more options of `ensq worker`
    # Seconds that a run lasts at least before the job goes back into the queue: what ended it
    # sooner will most likely end the next one as soon.
    least_run: int = 60


def sbatch_text(plan: JobPlan) -> str:
    """The batch script: directives, environment, workers, and what follows their exit code."""
    parts = [
        "#!/bin/bash -l" if plan.modules else "#!/bin/bash",  # a login shell knows `module`
        f"# Workers for the ensemble {plan.ensemble}, written by `ensq submit`.",
        *(f"#SBATCH {line}" for line in directives(plan)),
        "",
        *_environment(plan),
        _START.rstrip(),
        *([_again(plan)] if plan.requeue else []),
        _RUN.replace("@AT_LIMIT@", _AT_LIMIT if plan.requeue else "")
        .replace("@WORKER@", _worker(plan))
        .rstrip(),
        *([_finalize(plan)] if plan.finalize else []),
        _END if plan.requeue else _NOT_AGAIN,
    ]
    return "\n".join(parts)


def directives(plan: JobPlan) -> list[str]:
    """What follows ``#SBATCH``."""
    warning = warning_seconds(plan)
    found: list[tuple[str, str | int | None]] = [
        ("job-name", plan.job_name),
        ("comment", plan.comment),
        ("array", f"0-{plan.workers - 1}" if plan.workers > 1 else "0"),
        ("chdir", _quoted(plan.folder)),
        ("output", _quoted(plan.output)),
        ("open-mode", "append"),
        ("partition", plan.partition),
        ("account", plan.account),
        ("qos", plan.qos),
        ("constraint", None if plan.constraint is None else f'"{plan.constraint}"'),
        ("time", plan.time),
        ("nodes", plan.processes),
        ("ntasks", _tasks(plan)),
        ("ntasks-per-node", 1 if plan.processes > 1 else None),
        ("cpus-per-task", plan.cpus),
        ("gres", None if plan.gpus == "0" else f"gpu:{plan.gpus}"),
        ("mem", plan.memory),
        # Without B: it goes to the workers themselves, and not to this script.
        ("signal", f"USR1@{warning}" if warning else None),
    ]
    lines = [f"--{name}={value}" for name, value in found if value is not None]
    return [*lines, "--requeue" if plan.requeue else "--no-requeue", *plan.extra]


def _tasks(plan: JobPlan) -> int:
    """Of a job: workers that share a GPU, or processes of one worker."""
    return plan.workers_per_gpu * plan.processes


def warning_seconds(plan: JobPlan) -> int:
    """How long before its end a job is warned; 0 for not at all.

    SLURM looks at limits twice a minute, so the warning comes up to a minute earlier. A worker
    that knows its limit leaves in time by itself: this is for one that does not.
    """
    if plan.seconds is None or plan.signal == 0:
        return plan.signal
    if plan.seconds < _LEAST_LIMIT:
        return 0
    return min(plan.signal, max(30, plan.seconds // _LIMIT_SHARE))


def _quoted(path: str) -> str:
    return f'"{path}"' if any(c.isspace() for c in path) else path


def _environment(plan: JobPlan) -> list[str]:
    lines = []
    if plan.bin_folder is not None:
        lines.append(f"export PATH={shlex.quote(plan.bin_folder)}:$PATH")
    lines += [f"module load {shlex.quote(name)} || exit 2" for name in plan.modules]
    lines += plan.setup
    if plan.database is None:
        lines.append(': "${ENSQ_DB:?it holds a password, so sbatch must pass it on: --export=ALL}"')
    else:
        lines.append(f"export ENSQ_DB={shlex.quote(plan.database)}")
    if plan.root is not None:
        lines.append(f"export ENSQ_ROOT={shlex.quote(plan.root)}")
    lines += [f"export {name}={shlex.quote(text)}" for name, text in plan.environment.items()]
    if plan.scratch is not None:
        lines.append(_SCRATCH.replace("@SCRATCH@", plan.scratch))
    first = plan.command.split()[0]
    lines.append(_FOUND.replace("@FIRST@", first))
    return lines


def _worker(plan: JobPlan) -> str:
    srun = ["srun", "--export=ALL", "--kill-on-bad-exit=0", f"--ntasks={_tasks(plan)}"]
    if plan.processes > 1:
        srun.append("--ntasks-per-node=1")
    if plan.cpus is not None:  # since 22.05 srun does not take it over from sbatch
        srun.append(f"--cpus-per-task={plan.cpus}")
    options = [f"--name {plan.ensemble}"]
    if plan.pack != "auto":  # which is what workers do unless told otherwise
        options.append(f"--pack {plan.pack}")
    if plan.workers_per_gpu > 1:
        options.append(f"--share {plan.workers_per_gpu}")
    if plan.processes > 1:
        options.append(f"--processes {plan.processes}")
    options += [shlex.quote(text) for text in plan.options]
    return f"{' '.join(srun)} \\\n    {plan.command} worker {' '.join(options)}"


def _again(plan: JobPlan) -> str:
    folder = str(PurePosixPath(plan.script).parent)
    return (
        _AGAIN.replace("@SCRIPT@", shlex.quote(plan.script))
        .replace("@FOLDER@", shlex.quote(folder))
        .replace("@LEAST@", str(plan.least_run))
        .rstrip()
    )


def _finalize(plan: JobPlan) -> str:
    command = f"{plan.command} finalize --when-done {plan.ensemble}"
    nodes = " --nodes=1" if plan.processes > 1 else ""
    return _FINALIZE.replace("@FINALIZE@", f"srun --export=ALL --ntasks=1{nodes} {command}")


_SCRATCH = """\
export TMPDIR="@SCRATCH@"
mkdir -p "$TMPDIR" || exit 2"""

_FOUND = """\
command -v @FIRST@ >/dev/null || {
    echo "@FIRST@ is not found on $(hostname): name its environment in slurm.setup" >&2
    exit 2
}
"""

_START = """\
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
"""

_RUN = """
say "begins on ${SLURMD_NODENAME:-$(hostname)}, restart ${SLURM_RESTART_COUNT:-0}"
SECONDS=0
# By srun and in the background: only steps are told of the end in time, and only a shell that
# waits runs its traps.
@WORKER@ &
worker=$!
while [ -n "$interrupted" ]; do
    interrupted=
    wait "$worker"
    said=$?
    [ "$said" = 127 ] || code=$said # 127: it was waited for already
@AT_LIMIT@done
worker=
say "the workers left with $code"
"""

_FINALIZE = """
if [ "$code" = 0 ]; then # the one that ends last finds no member open
    @FINALIZE@ ||
        say "not finalized: ensq status tells why; ensq finalize does it later"
fi"""

_NOT_AGAIN = """
exit "$code"
"""

_AT_LIMIT = """\
    [ -z "$told" ] || at_limit
"""

_AGAIN = r"""
pause() { # seconds, but no longer than until a SIGTERM
    local end=$((SECONDS + $1))
    while [ -z "$told" ] && [ "$SECONDS" -lt "$end" ]; do sleep 1; done
}

handed_on=
short=@FOLDER@/$me.short # a line for each short run
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
    if [ "$SECONDS" -lt @LEAST@ ]; then
        echo "$SECONDS" >>"$short"
        if [ "$(wc -l <"$short")" -ge 10 ]; then
            say "ten runs in a row were short: see why above; ensq submit starts it again"
            return
        fi
        say "left after $SECONDS s: waits, so that it does not go round in circles"
        pause $((@LEAST@ - SECONDS))
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
        sbatch --parsable --array="$element" @SCRIPT@ 2>&1
    ); then
        say "job $answer goes on"
    else
        say "not submitted again: $answer; ensq submit does it"
    fi
}
"""

_END = """
case $told:$code in
:75) again ;; # stopped with work left
:129 | :13[1-9] | :14[0-9] | :15[0-9]) # killed, as for too much memory: three times
    [ "${SLURM_RESTART_COUNT:-0}" -ge 3 ] || again
    ;;
esac
exit "$code"
"""
