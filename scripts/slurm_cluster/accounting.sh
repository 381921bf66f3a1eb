# Sourced by up.sh: MariaDB and slurmdbd, so that sacct answers (LAB_DBD=1).
# shellcheck shell=bash

write_slurmdbd_conf() {
    (
        umask 077 # slurmdbd refuses a file that others can read
        cat >"$B/etc/slurmdbd.conf" <<CONF
DbdHost=$(hostname -s)
DbdAddr=127.0.0.1
DbdPort=$((PORT + NODES + 1))
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$B/run/munge.sock
$(binding | sed 's/,NoCtldInAddrAny//')
PidFile=$B/run/slurmdbd.pid
LogFile=$B/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
    )
}

start_mariadb() {
    if [[ ! -d $B/db/mysql ]]; then
        mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$B/db" \
            --auth-root-authentication-method=normal --skip-test-db \
            >"$B/log/mariadb-install.log" 2>&1 9>&- || {
            tail "$B/log/mariadb-install.log" >&2
            exit 8
        }
    fi
    setsid mariadbd --no-defaults --user="$(id -un)" --datadir="$B/db" --socket="$B/run/db.sock" \
        --skip-networking --pid-file="$B/run/mariadbd.pid" --innodb-flush-log-at-trx-commit=0 \
        --innodb-lock-wait-timeout=900 </dev/null >"$B/log/mariadbd.log" 2>&1 9>&- &
    within 20 test -S "$B/run/db.sock"
}

knows_cluster() { # the first question may come before slurmdbd listens
    sacctmgr -i -Q add cluster lab >>"$B/log/slurmdbd.out" 2>&1 9>&- ||
        sacctmgr -n list cluster 2>/dev/null 9>&- | grep -w lab >/dev/null
}

start_accounting() {
    write_slurmdbd_conf
    start_mariadb
    # libmariadb takes the socket's path from MYSQL_UNIX_PORT
    MYSQL_UNIX_PORT=$B/run/db.sock slurmdbd </dev/null >"$B/log/slurmdbd.out" 2>&1 9>&- || {
        tail "$B/log/slurmdbd.out" "$B/log/slurmdbd.log" >&2
        say "slurmdbd failed"
        exit 8
    }
    within 5 knows_cluster || {
        tail -3 "$B/log/slurmdbd.out" >&2
        say "slurmdbd does not answer"
        exit 8
    }
}
