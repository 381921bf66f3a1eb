# Sourced by the scripts beside it: where things lie under BASE, and small helpers.
# shellcheck shell=bash

# shellcheck disable=SC2034  # for those who source this
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
export PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

base() { # sets B and SLURM_CONF
    B=$(cd "$1" && pwd -P)
    export SLURM_CONF=$B/etc/slurm.conf
}

# One up or down of a BASE at a time. No daemon may inherit the descriptor: 9>&- closes it.
lock() {
    [[ -z ${LAB_LOCKED:-} ]] || return 0
    exec 9>"$B/run/.lock"
    flock -w 60 9 || {
        say "another up.sh or down.sh holds $B/run/.lock"
        exit 4
    }
}

within() { # seconds, then a command: repeated until it succeeds; fails when the time is up
    local tries=$((10 * $1))
    shift
    until "$@"; do
        ((tries-- > 0)) || return 1
        sleep 0.1
    done
}

is_gone() { # whether a process is dead, or a zombie
    [[ ! -e /proc/$1 ]] || grep -qs '^State:.*Z' "/proc/$1/status"
}
