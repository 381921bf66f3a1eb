"""Writers of one host take turns; whoever keeps one holds nobody up for long."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from store_tools import fresh_file

from ensq.store import turns
from ensq.store.engine import Database
from ensq.store.target import Target
from ensq.store.turns import Turns

HOLD = """
import sys, time
from pathlib import Path
from ensq.store.turns import Turns
with Turns(Path(sys.argv[1])).turn():
    print("mine", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    return process


def test_a_turn_is_waited_for_and_given_back(tmp_path: Path) -> None:
    first, second = Turns(tmp_path), Turns(tmp_path)
    order: list[str] = []

    def wait() -> None:
        with second.turn():
            order.append("second")

    with first.turn():
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    first.close()
    second.close()


def test_the_turn_of_a_process_that_is_killed_is_free_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.communicate()
    began = time.monotonic()
    with Turns(tmp_path).turn():
        assert time.monotonic() - began < turns.PATIENCE / 2


def test_a_turn_that_somebody_keeps_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.2)
    path = fresh_file(tmp_path / "q.db")
    process = holder(tmp_path)
    database = Database(Target.parse(str(path)))
    began = time.monotonic()
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET attempt = 1")
    assert 0.2 <= time.monotonic() - began < 2
    database.close()
    process.kill()
    process.communicate()


def test_a_folder_that_is_gone_gives_turns_to_everybody(tmp_path: Path) -> None:
    with Turns(tmp_path / "nowhere").turn():
        pass


def test_an_error_inside_gives_the_turn_back(tmp_path: Path) -> None:
    mine = Turns(tmp_path)
    with pytest.raises(ZeroDivisionError), mine.turn():
        raise ZeroDivisionError
    began = time.monotonic()
    with Turns(tmp_path).turn():
        assert time.monotonic() - began < turns.PATIENCE / 2
    mine.close()
