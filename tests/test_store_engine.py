"""What is the same on both engines: errors that pass through, and a database that many make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from engine_tools import opened


def test_integrity_errors_are_bugs_and_pass(engine_url: str) -> None:
    with opened(engine_url) as database:
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            database.run(
                lambda connection: connection.exec_driver_sql(
                    "INSERT INTO events (id, time, kind, message, job_id) "
                    "VALUES (1, 0, 'x', 'x', 99)"
                )
            )
        with database.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM events").scalar_one() == 0


_MAKE = """
import os, sys
from ensq.store import opening
from ensq.store.target import Target
target = Target.parse(sys.argv[1])
children = []
ready, go = os.pipe(), os.pipe()
for _ in range(64):
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(ready[1], b"x")
            os.close(go[1])
            os.read(go[0], 1)  # until all are there
            opening.make(target)
            found, revision = opening.look(target)
            code = 0 if found is opening.Found.ENSQ else 2
        finally:
            os._exit(code)
    children.append(child)
for _ in children:
    os.read(ready[0], 1)
os.close(go[1])
codes = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(codes))
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_64_processes_make_one_database_at_once(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").new_database(schema=False)
    else:
        url = str(tmp_path / "q.db")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _MAKE, url],
        cwd=Path(__file__).parent.parent,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with opened(url) as database, database.read() as connection:
        query = "SELECT count(*) FROM alembic_version"
        assert connection.exec_driver_sql(query).scalar_one() == 1
