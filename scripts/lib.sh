# Sourced by the scripts beside it: the virtual environment .venv of this checkout (or the one that
# VENV names), with what a lock file names and ensq itself. Sets ROOT (the checkout) and, after
# `environment`, PYTHON.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${VENV:-$ROOT/.venv}
ME=$(basename "$0")

# Modules and packages of other installations must not be found before those of .venv.
unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_ROOT
export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s\n' "$*"; }
die() {
    printf '%s: %s\n' "$ME" "$*" >&2
    exit 2
}
seconds() { date +%s; }

fits() { # whether a command is Python 3.11, 3.12 or 3.13
    "$@" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
        >/dev/null 2>&1
}

# Python 3.13 has no wheels of what chemtrain asks for, but of current JAX.
lock_that_fits() { # lock file; prints it, or the one of current packages in its place
    if "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 13))'; then
        case $1 in
        *current*) ;;
        *)
            printf '%s\n' "${1/requirements/requirements-current}"
            return
            ;;
        esac
    fi
    printf '%s\n' "$1"
}

find_python() { # prints the first Python that fits
    local candidate
    if [[ -n ${ENSQ_PYTHON:-} ]]; then
        fits "$ENSQ_PYTHON" || die "ENSQ_PYTHON=$ENSQ_PYTHON is not a Python 3.11, 3.12 or 3.13"
        printf '%s\n' "$ENSQ_PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found (python3 is $(python3 --version 2>&1 || true)).
Install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv), or set ENSQ_PYTHON to its path."
}

make_venv() {
    local base
    base=$(find_python)
    if [[ -e $VENV ]]; then
        [[ -f $VENV/pyvenv.cfg || -f $VENV/.ensq-making ]] ||
            die "$VENV is there but is no virtual environment: move it away"
        # Renamed first: a removal that is interrupted must not leave half an environment.
        rm -rf "$VENV.replaced"
        mv "$VENV" "$VENV.replaced"
    fi
    rm -rf "$VENV.replaced"
    say "making $(basename "$VENV") with $("$base" --version 2>&1) ($base)"
    mkdir -p "$VENV"
    : >"$VENV/.ensq-making"
    "$base" -m venv "$VENV" ||
        die "$base can't make a virtual environment (Debian, Ubuntu: apt install python3-venv)"
    rm -f "$VENV/.ensq-making"
}

digest() { # SHA-256 of files
    "$PYTHON" -c 'import hashlib, sys
data = [open(name, "rb").read() for name in sys.argv[1:]]
print(hashlib.sha256(b"\0".join(data)).hexdigest())' "$@"
}

# pip's output goes to a log; what a person sees is how far it is.
pip_install() { # log, number of packages or 0, then pip's arguments
    local log=$1 total=$2 n=0 line
    shift 2
    if PYTHONUNBUFFERED=1 "$PYTHON" -m pip install --progress-bar off --no-deps "$@" 2>&1 |
        while IFS= read -r line; do
            printf '%s\n' "$line" >&3
            case $line in
            Collecting*)
                n=$((n + 1))
                ((n % 20)) || say "  $n of $total packages fetched"
                ;;
            "Installing collected packages"*) ((total == 0)) || say "  unpacking" ;;
            esac
        done 3>"$log"; then
        return
    fi
    grep -E '^ERROR' "$log" >&2 || tail -n 5 "$log" >&2
    die "the installation failed; all of pip's output is in $log. Run $ME again to go on."
}

install_lock() { # lock file
    local lock=$1 total
    total=$(grep -cE '^[A-Za-z0-9]' "$ROOT/$lock")
    say "installing $total packages from $lock (downloads about 200 MB, once)"
    # Wheels only: nothing is built, no code of a package runs.
    pip_install "$VENV/install.log" "$total" --no-compile --require-hashes --only-binary :all: \
        -r "$ROOT/$lock"
    # Here and not at the first import, since several packages give warnings when they are compiled.
    # The large ones without are left to their first import, which needs a small part of them.
    say "  compiling"
    "$PYTHON" -W ignore -m compileall -q -j 0 -x '/(sympy|networkx|fontTools|pip|scipy|tests?)/' \
        "$VENV/lib" >/dev/null 2>&1 || true
}

# environment LOCK: .venv with the packages of the lock file and ensq, reused if it fits.
environment() {
    local lock=$1 want package began stamp name package_stamp=$VENV/.ensq-package
    began=$(seconds) name=$(basename "$VENV")
    PYTHON=$VENV/bin/python
    # A .venv that was moved with its checkout has old paths inside.
    if [[ -f $VENV/.ensq-making ]] || ! fits "$PYTHON" ||
        ! grep -qsF "$VENV" "$VENV/bin/activate"; then
        make_venv
    fi
    lock=$(lock_that_fits "$lock") stamp=$VENV/.ensq-$lock
    want=$(digest "$ROOT/$lock")
    package=$(digest "$ROOT/pyproject.toml" "$ROOT/ensq/__init__.py")
    if [[ $(cat "$stamp" 2>/dev/null) != "$want" ]]; then
        # Written anew only at the end, so that an interrupted installation is done again.
        rm -f "$VENV"/.ensq-*
        install_lock "$lock"
        if [[ $lock == *-dev.lock ]]; then # holds all that the one without tests holds
            digest "$ROOT/${lock/-dev/}" >"$VENV/.ensq-${lock/-dev/}"
        fi
        printf '%s\n' "$want" >"$stamp"
    fi
    if [[ $(cat "$package_stamp" 2>/dev/null) != "$package" ]]; then
        pip_install "$VENV/install-ensq.log" 0 --no-build-isolation --no-index --editable "$ROOT"
        printf '%s\n' "$package" >"$package_stamp"
        say "environment ready in $name ($(($(seconds) - began)) s)"
    else
        say "environment: $name is up to date ($lock)"
    fi
}
