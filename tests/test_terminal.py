"""What files and databases of strangers hold reaches no terminal as it is."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_tools
import yaml
from ensemble_tools import clean_environment, ensq, write_config

from ensq.errors import DatabaseError
from ensq.store import check
from ensq.text import Guarded, escaped

# Clears the screen, renames the window, as one byte, turns the order round, goes back in the line.
CODES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj\r\x08\x7f"
_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def raw(text: str) -> list[str]:
    """The characters of a text that a terminal would obey."""
    return _RAW.findall(text)


def test_text_for_terminals_is_escaped_and_json_stays_the_same() -> None:
    import json

    assert raw(CODES) and not raw(escaped(CODES))
    assert escaped("plain – text\n\twith lines") == "plain – text\n\twith lines"
    value = {"a": CODES + "\U000e0041\ud800é"}
    text = json.dumps(value, ensure_ascii=False)
    assert raw(text)  # the control: JSON alone leaves some of them
    assert not raw(escaped(text))
    assert json.loads(escaped(text)) == value
    escaped(text).encode()  # also halves of characters, from names of files


def test_guarded_stream_is_the_stream_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    guarded = Guarded(sys.stdout)
    guarded.writelines([f"a{CODES}b\n", "c\n"])
    assert guarded.isatty() is False
    guarded.flush()
    shown = capsys.readouterr().out
    assert not raw(shown) and shown.endswith("b\nc\n")


def said(*arguments: Any, cwd: Path) -> str:
    """All that a command says, every character as it is. Colours are left to a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "ensq.cli", *map(str, arguments)],
        cwd=cwd,
        env=clean_environment() | {"PYTHONUTF8": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    return (done.stdout + done.stderr).decode("utf-8", "surrogateescape")


def test_names_of_files_do_not_drive_the_terminal(tmp_path: Path) -> None:
    path = write_config(tmp_path, 1)
    strange = tmp_path / f"{CODES}.yaml"
    shutil.copy(path, strange)
    lines = [
        said("config", "check", strange, "--data", cwd=tmp_path),
        said("config", "check", f"missing{CODES}", "-v", cwd=tmp_path),
        said("config", f"no-command{CODES}", cwd=tmp_path),
        said("enqueue", strange, "--db", f"{CODES}.db", cwd=tmp_path),
        said("status", "--db", f"{CODES}.db", cwd=tmp_path),
        said("status", f"{CODES}", "--db", f"{CODES}.db", cwd=tmp_path),
        said("status", "--db", f"missing{CODES}.db", "-v", cwd=tmp_path),
    ]
    assert "valid" in lines[0] and "no such file" in lines[1] and "queued" in lines[4]
    assert [raw(line) for line in lines] == [[]] * len(lines)


def test_values_of_a_configuration_do_not_drive_the_terminal(tmp_path: Path) -> None:
    lines = []
    for where in ("protein_name", CODES, "model_context", "preprocessing"):
        write_config(tmp_path, 1)
        settings = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
        settings[where] = f"a{CODES}"
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
        lines.append(said("config", "check", "tiny.yaml", "-v", cwd=tmp_path))
        assert "tiny.yaml: " in lines[-1]
    lines.append(said("config", "check", "tiny.yaml", "--set", f"x={CODES}", cwd=tmp_path))
    assert [raw(line) for line in lines] == [[]] * len(lines)


@pytest.mark.parametrize("key", ["species_names", "protein_names"])
def test_names_of_the_data_do_not_drive_the_terminal(tmp_path: Path, key: str) -> None:
    write_config(tmp_path, 1)
    with np.load(tmp_path / "tiny.npz") as archive:
        arrays = dict(archive)
    arrays["protein"] = np.arange(len(arrays["R"])) % 2
    arrays["protein_names"] = np.array(["one", "two"])
    old = arrays[key] if key in arrays else np.array(["A", "B", "C"])
    arrays[key] = np.array([f"{name}{CODES}" for name in old])
    np.savez(tmp_path / "tiny.npz", **arrays)
    line = said("config", "check", "tiny.yaml", "--data", cwd=tmp_path)
    assert "tiny" in line
    assert raw(line) == []


def test_values_of_a_database_do_not_drive_the_terminal(tmp_path: Path) -> None:
    write_config(tmp_path, 2)
    assert ensq("enqueue", "tiny.yaml", cwd=tmp_path).returncode == 0
    with sqlite3.connect(tmp_path / "ensq.db") as connection:
        connection.execute("UPDATE ensembles SET name = ?", (f"tiny{CODES}",))
        connection.execute("UPDATE jobs SET error = ?, state = 'failed'", (f"error{CODES}",))
        connection.execute("UPDATE events SET message = ?", (f"message{CODES}",))
    connection.close()
    lines = [
        said("status", cwd=tmp_path),
        said("status", "--json", cwd=tmp_path),
        said("status", "nothing", cwd=tmp_path),
        said("db", "check", cwd=tmp_path),
        said("finalize", cwd=tmp_path),
        said("show", "1", cwd=tmp_path),
        said("show", "1", "--json", cwd=tmp_path),
        said("show", f"tiny{CODES}/42", cwd=tmp_path),
    ]
    assert "error" in lines[0] and "error" in lines[1]
    assert [raw(line) for line in lines] == [[]] * len(lines)


def test_losses_that_are_no_numbers_are_null_in_json(tmp_path: Path) -> None:
    with store_tools.fresh(tmp_path / "ensq.db") as store:
        store_tools.add(store)
    with sqlite3.connect(tmp_path / "ensq.db") as connection:
        connection.execute("UPDATE jobs SET val_loss = 9e999, best_loss = -9e999")
    connection.close()
    done = ensq("status", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"val_loss": null' in done.stdout


@pytest.mark.parametrize("seconds", [float("inf"), float("-inf"), float("nan"), 1e308])
def test_times_of_no_world_are_shown(seconds: float) -> None:
    from ensq.cli.show import _when
    from ensq.progress import duration

    assert duration(seconds) == "for ever"
    assert _when(seconds) == "?"


def test_display_draws_and_its_lines_are_printable() -> None:
    """The one writer that is not guarded, since it moves the cursor on purpose."""
    import io

    from test_progress import ENSEMBLE, member

    from ensq.jobs import State
    from ensq.progress import Display

    stream = io.StringIO()
    display = Display(Guarded(stream), terminal=True)  # type: ignore[arg-type]
    members = [member(0, state=State.FAILED, error=f"e{CODES}", owner=CODES)]
    for _ in range(2):
        display.update(ENSEMBLE, members)
    drawn = stream.getvalue()
    assert "\x1b[" in drawn and "\u202e" not in drawn and "\x9b" not in drawn


def test_damaged_database_is_told_in_words(tmp_path: Path) -> None:
    path = store_tools.fresh_file(tmp_path / "q.db")
    content = bytearray(path.read_bytes())
    content[100:400] = CODES.encode()[:4] * 75
    path.write_bytes(content)
    with pytest.raises(DatabaseError):
        check(path)
    assert raw(said("status", "--db", path, cwd=tmp_path)) == []
