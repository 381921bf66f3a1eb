"""A PostgreSQL server of the tests' own, in a temporary folder, stopped at the end."""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

USER = "ensq"


def binaries() -> Path | None:
    """The folder of the newest ``initdb`` and ``postgres``; None if none is installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def require() -> Path:
    """The binaries. Skips the test where there are none, or fails it with CI=true."""
    found = binaries()
    if found is None:
        text = "PostgreSQL is not installed (Debian, Ubuntu: apt install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return found


class Server:
    """A running server. The superuser ``ensq`` needs a password by TCP, none by the socket.

    ``url``, ``new_database`` use TCP without a password in the URL: set PGPASSWORD, as the fixture
    ``postgres`` does.
    """

    def __init__(self) -> None:
        self.bin = require()
        self.folder = Path(tempfile.mkdtemp(prefix="ensq-pg-", dir="/tmp"))  # short, for the socket
        self.password = secrets.token_hex(8)
        self.port = _free_port()
        self._numbers = itertools.count(1)
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # postgres refuses to run as root
            user = _unprivileged()
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            self._as_user = ["setpriv", *ids, "--"]
        self.data = self.folder / "data"
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        self._run(
            *("initdb", "-D", self.data, "-U", USER, "--pwfile", secret, "--no-sync", "-E", "UTF8"),
            *("--locale", "C", "--auth-local=trust", "--auth-host=scram-sha-256"),
        )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"port = {self.port}\nlisten_addresses = '127.0.0.1'\n"
                f"unix_socket_directories = '{self.folder}'\nmax_connections = 100\n"
                "shared_buffers = 32MB\nfsync = on\n"
            )
        self.start()

    def start(self) -> None:
        log = self.folder / "log"
        self._run("pg_ctl", "-D", self.data, "-l", log, "-w", "-t", "240", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop; 'immediate' is a crash."""
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "240", "-m", mode, "stop")

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def close(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str, *, port: int | None = None, password: str = "") -> str:
        who = f"{USER}:{password}" if password else USER
        return f"postgresql://{who}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser, outside any transaction."""
        import psycopg

        with psycopg.connect(
            host=str(self.folder), port=self.port, user=USER, dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(sql)  # type: ignore[arg-type]
            return list(cursor.fetchall()) if cursor.description else []

    def new_database(self, *, schema: bool = True) -> str:
        """The URL of a fresh database, with ensq's tables unless ``schema`` is false."""
        name = f"test{next(self._numbers)}"
        source = self._template() if schema else "template1"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
        return self.url(name)

    def kill_connections(self, database: str | None = None) -> int:
        """Cut the connections of ensq's programs; how many there were."""
        which = f"AND datname = '{database}'" if database else ""
        (row,) = self.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' {which}"
        )
        return int(str(row[0]))

    def _template(self) -> str:
        name = "ensq_template"
        if not self.execute(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
            from ensq.store import opening
            from ensq.store.target import Target

            self.execute(f"CREATE DATABASE {name}")
            opening.make(Target.parse(self.url(name, password=self.password)))
            deadline = time.monotonic() + 10  # the connection may take a moment to end
            while time.monotonic() < deadline and self.kill_connections(name):
                time.sleep(0.05)
        return name

    def _run(self, program: str, *arguments: object) -> None:
        with tempfile.TemporaryFile() as output:  # a pipe would stay open with the server
            done = subprocess.run(
                [*self._as_user, str(self.bin / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                timeout=120,
            )
            output.seek(0)
            assert done.returncode == 0, output.read().decode()


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
