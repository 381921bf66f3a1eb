"""``ensq status`` with more members than anyone wants to see one by one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ensemble_tools import ensq, write_config

from ensq.cli.status import LINES, MANY


def copies(database: Path, table: str, rows: list[dict[str, Any]]) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        names = list(rows[0])
        marks = ", ".join("?" for _ in names)
        connection.executemany(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",
            [tuple(row[name] for name in names) for row in rows],
        )


def row_of(database: Path, table: str) -> dict[str, Any]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        return dict(connection.execute(f"SELECT * FROM {table} ORDER BY id LIMIT 1").fetchone())


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """One ensemble of 3, and 60 of 5 members: the first 50 of these are done."""
    write_config(tmp_path, 3)
    assert ensq("enqueue", "tiny.yaml", cwd=tmp_path).returncode == 0
    database = tmp_path / "ensq.db"
    ensemble, job = row_of(database, "ensembles"), row_of(database, "jobs")
    numbers = range(100, 160)
    copies(
        database,
        "ensembles",
        [{**ensemble, "id": n, "name": f"many-{n}", "run_path": f"runs/many-{n}"} for n in numbers],
    )
    done = {
        "state": "done",
        "epoch": job["epochs"],
        "best_loss": 2.5,
        "best_epoch": 1,
        "result_path": "runs/x",
        "result_digest": "0" * 64,
    }
    members = [
        {
            **job,
            "id": 1000 + 5 * n + place,
            "ensemble_id": n,
            "position": place,
            "member": place,
            "seed": place,
            **(done if n < 150 else {}),
        }
        for n in numbers
        for place in range(5)
    ]
    copies(database, "jobs", [{k: v for k, v in row.items() if k in job} for row in members])
    return tmp_path


def test_a_line_for_each_ensemble_those_under_way_first(crowded: Path) -> None:
    done = ensq("status", cwd=crowded)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert MANY < 3 + 60 * 5
    assert len(lines) == LINES + 2
    assert lines[0].endswith(": 3 queued, 0 % of the epochs")
    assert lines[1] == "many-150: 5 queued, 0 % of the epochs"
    assert lines[11] == "many-149: 5 done, 100 % of the epochs, best 2.5000"
    assert lines[-2] == "and 21 more ensembles; 303 members in all"
    assert lines[-1] == "next: `ensq status NAME` shows the members of one"


def test_one_of_them_is_shown_member_by_member(crowded: Path) -> None:
    lines = ensq("status", "many-150", cwd=crowded).stdout.splitlines()
    assert lines[0] == "many-150: 5 queued, 0 % of the epochs"
    assert len(lines) == 1 + 1 + 5 + 1


def test_json_has_all_of_them(crowded: Path) -> None:
    import json

    found = json.loads(ensq("status", "--json", cwd=crowded).stdout)["ensembles"]
    assert len(found) == 61
    assert sum(len(ensemble["members"]) for ensemble in found) == 303
