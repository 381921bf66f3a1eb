"""Files of strangers make ensq run nothing: what could is refused, and the rest is data."""

from __future__ import annotations

import ast
import os
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_tools
import yaml
from ensemble_tools import ensq, write_config

from ensq import config, data
from ensq.config.structs import DataConfig
from ensq.errors import ConfigError, DatabaseError, DataError, EnsqError
from ensq.store import Store

ROOT = Path(__file__).parents[1]
CANARY = "canary"  # the file that a stranger's code would make


class Evil:
    """Its pickle runs a command when it is read."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch '{folder / CANARY}'"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Path]:
    """A folder in which no canary may be, whatever is done."""
    yield tmp_path
    assert not list(tmp_path.rglob(f"*{CANARY}")), "a stranger's code ran"


# -- the source --------------------------------------------------------------------------------

# Modules whose files run code when they are read, and calls that run text.
_MODULES = {"pickle", "shelve", "marshal", "dill", "joblib", "cloudpickle", "code", "runpy"}
_CALLS = {"eval", "exec", "compile", "__import__"}
_LOADS = {"load", "full_load", "unsafe_load", "load_all", "unsafe_load_all", "full_load_all"}


def dangers(source: str) -> list[str]:
    """What in a module's source could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [name for name in names if name.split(".")[0] in _MODULES]
        if isinstance(node, ast.Call):
            found += _danger_of_call(node)
    return found


def _danger_of_call(node: ast.Call) -> list[str]:
    called = ast.unparse(node.func)
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    module, _, name = called.rpartition(".")
    found = [called] if called in _CALLS or called in ("os.system", "os.popen") else []
    if given.get("shell", "False") != "False":
        found.append("shell=True")
    if given.get("allow_pickle", "False") != "False":
        found.append("allow_pickle=True")
    if module in ("np", "numpy") and name == "load" and given.get("allow_pickle") != "False":
        found.append(called)
    loader = ast.unparse(node.args[1]) if len(node.args) > 1 else given.get("Loader")
    if module == "yaml" and name in _LOADS and loader != "_Loader":
        found.append(called)
    if name in ("enable_load_extension", "load_extension"):
        found.append(called)
    return found


def test_source_has_nothing_that_runs_what_a_file_holds() -> None:
    found = {
        str(path.relative_to(ROOT)): dangers(path.read_text())
        for path in sorted((ROOT / "ensq").rglob("*.py"))
    }
    # Parameters are written as a pickle too, for scripts of people; see the next test.
    assert {path: what for path, what in found.items() if what} == {
        "ensq/modelfiles.py": ["pickle"]
    }


def test_pickles_are_written_and_never_read() -> None:
    tree = ast.parse((ROOT / "ensq" / "modelfiles.py").read_text())
    used = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    }
    assert used == {"pickle.dumps"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "read(path, allow_pickle=flag)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "connection.enable_load_extension(True)",
    ],
)
def test_dangers_are_found(source: str) -> None:
    """The control of the test of the source."""
    assert dangers(source)


def test_yaml_loader_is_a_safe_one() -> None:
    from ensq.config.yamltext import _Loader

    assert issubclass(_Loader, yaml.constructor.SafeConstructor)
    assert not issubclass(_Loader, yaml.constructor.FullConstructor)


# -- files that would run a command -------------------------------------------------------------


def test_canaries_sing_where_files_are_read_carelessly(tmp_path: Path) -> None:
    """The control of the tests below."""
    path = save_pickled(tmp_path)
    with np.load(path, allow_pickle=True) as archive:
        archive["R"]
    assert (tmp_path / CANARY).exists()
    (tmp_path / CANARY).unlink()
    yaml.unsafe_load(f"!!python/object/apply:os.system [\"touch '{tmp_path / CANARY}'\"]")
    assert (tmp_path / CANARY).exists()


def save_pickled(folder: Path) -> Path:
    objects = np.empty((3,), object)
    objects[:] = [Evil(folder)] * 3
    path = folder / "evil.npz"
    np.savez(path, R=objects, species=objects, aa_names=objects, bond_knots=objects)
    return path


def test_pickled_arrays_are_refused(quiet: Path) -> None:
    path = save_pickled(quiet)
    with pytest.raises(DataError, match="pickled objects, which are never read"):
        data.load(path, DataConfig(path="x"), None, "kcal/mol")
    text = (
        "data: {path: x}\nmodel: {cutoff: 5.0, use_priors: true, priors: "
        "{use_spline_priors: true, spline_file: evil.npz}}\n"
        "training: {stages: [{optimizer: adam, epochs: 1}]}\n"
    )
    (quiet / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="pickled"):
        config.load(quiet / "c.yaml")
    (quiet / "bare.npz").write_bytes(pickle.dumps(Evil(quiet)))
    with pytest.raises(DataError):
        data.load(quiet / "bare.npz", DataConfig(path="x"), None, "kcal/mol")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['COMMAND']",
        "!!python/object/new:os.system ['COMMAND']",
        "!!python/object/apply:subprocess.getoutput ['COMMAND']",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['COMMAND']",
        "!!python/object/apply:builtins.exec ['import os; os.system(\"COMMAND\")']",
        "!!python/name:os.system",
        "!!python/module:antigravity",
    ],
)
@pytest.mark.parametrize("place", ["protein_name", "model_context", "preprocessing"])
def test_tags_of_yaml_make_nothing(quiet: Path, tag: str, place: str) -> None:
    value = tag.replace("COMMAND", f"touch {quiet / CANARY}")
    path = write_config(quiet, 1, extra=f"\n{place}: {value}\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml: not valid YAML"):
        config.load(path)
    with pytest.raises(ConfigError):
        config.load(write_config(quiet, 1), [f"{place}={value}"])


@pytest.mark.parametrize(
    "comment",
    [
        "Lattice=\"__import__('os').system('touch canary')\"",
        "energy=__import__('os').system('touch canary')",
        "Properties=species:S:1:pos:R:3:__class__:R:1",
        "Properties=species:S:1:pos:R:3:__reduce__:S:1 energy=1",
        'energy="_JSON {\\"py/object\\": \\"os.system\\"}"',
        'pbc="$(touch canary)" energy=`touch canary`',
        'protein="!!python/object/apply:os.system [touch canary]" energy=1',
    ],
)
def test_extended_xyz_is_data(quiet: Path, comment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(quiet)
    path = quiet / "evil.xyz"
    path.write_text(f"2\n{comment}\nC 0 0 0 1\nO 0 0 1.2 1\n")
    try:
        data.load(path, DataConfig(path="x"), None, "kcal/mol")
    except DataError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN SELECT load_extension('canary'); END",
        "CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN UPDATE jobs SET attempt = 0; END",
        "CREATE VIEW v AS SELECT load_extension('canary')",
        "ALTER TABLE jobs RENAME TO j2; CREATE VIEW jobs AS SELECT * FROM j2",
    ],
)
def test_database_with_a_program_in_it_is_refused(quiet: Path, statement: str) -> None:
    path = store_tools.fresh_file(quiet / "q.db")
    with sqlite3.connect(path) as connection:
        connection.executescript(statement)
    connection.close()
    for opened in (lambda: Store.open(path), lambda: Store.open(path, read_only=True)):
        with pytest.raises((DatabaseError, EnsqError), match=r"trigger|view|table"):
            opened()


def test_extensions_of_sqlite_are_not_loaded(quiet: Path) -> None:
    with store_tools.fresh(quiet / "q.db") as store:
        connection = store._database.engine.raw_connection()
        with pytest.raises(sqlite3.OperationalError, match="not authorized"):
            connection.cursor().execute("SELECT load_extension('canary')")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state", "rubbish"),
        ("state", b"queued"),
        ("epoch", "many"),
        ("epochs", 1.5),
        ("val_loss", "low"),
        ("error", b"\x1b[2J"),
        ("seconds_per_epoch", "fast"),
    ],
)
def test_column_of_another_type_is_a_clear_error(tmp_path: Path, column: str, value: Any) -> None:
    path = tmp_path / "q.db"
    with store_tools.fresh(path) as store:
        store_tools.add(store)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(f"UPDATE jobs SET {column} = ?", (value,))
    connection.close()
    with (
        Store.open(path, read_only=True) as store,
        pytest.raises(DatabaseError, match=rf"as {column} of a job, which ensq can't have written"),
    ):
        store.jobs(1)


@pytest.mark.parametrize("place", ["../elsewhere", "/ABSOLUTE", "runs/../../elsewhere"])
def test_database_makes_nobody_write_elsewhere(tmp_path: Path, place: str) -> None:
    folder, elsewhere = tmp_path / "queue", tmp_path / "elsewhere"
    write_config(folder, 1)
    assert ensq("enqueue", "tiny.yaml", cwd=folder).returncode == 0
    with sqlite3.connect(folder / "ensq.db") as connection:
        value = place.replace("/ABSOLUTE", str(elsewhere))
        connection.execute("UPDATE ensembles SET run_path = ?", (value,))
    connection.close()
    done = ensq("enqueue", "tiny.yaml", cwd=folder)
    assert done.returncode == 2
    assert "leads out of" in done.stderr
    assert not elsewhere.exists()


# -- shells ------------------------------------------------------------------------------------

HOSTILE = "$(touch canary);`touch canary`&touch canary|'\" \\"


def test_names_for_a_shell_are_names(quiet: Path) -> None:
    """Of folders, of the configuration, of data and of the database."""
    folder = quiet / HOSTILE
    write_config(folder, 1)
    (folder / "tiny.npz").rename(folder / f"{HOSTILE}.npz")
    path = (folder / "tiny.yaml").rename(folder / f"{HOSTILE}.yaml")
    settings = yaml.safe_load(path.read_text())
    settings["data"]["path"] = f"{HOSTILE}.npz"
    path.write_text(yaml.safe_dump(settings))
    for arguments in (
        ("config", "check", path, "--data"),
        ("enqueue", path, "--db", f"{HOSTILE}.db"),
        ("status", "--db", f"{HOSTILE}.db"),
        ("db", "check", "--db", f"{HOSTILE}.db"),
    ):
        done = ensq(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert (folder / f"{HOSTILE}.db").exists()


@pytest.mark.parametrize("name", [HOSTILE, "../x", "/x", "a\x1bb", "a\nb", "-rf", ".", "..", ""])
def test_ensemble_is_not_called_so(tmp_path: Path, name: str) -> None:
    write_config(tmp_path, 1)
    done = ensq("enqueue", "tiny.yaml", f"--name={name}", cwd=tmp_path)
    if name == "":
        return  # none given: the model_context counts
    assert done.returncode == 2
    assert "can't be used" in done.stderr
    assert "\x1b" not in done.stderr


# -- a model of one's own ------------------------------------------------------------------------


def test_only_training_imports_the_module_of_a_configuration(strange: Path) -> None:
    for arguments in (
        ("config", "check", "tiny.yaml", "--data"),
        ("config", "show", "tiny.yaml"),
        ("enqueue", "tiny.yaml"),
        ("status", "--json"),
        ("db", "check"),
        ("cancel", "tiny"),
        ("retry", "tiny"),
    ):
        done = ensq(*arguments, cwd=strange)
        assert done.returncode == 0, done.stderr
        assert not (strange / CANARY).exists(), arguments


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with a queue whose model's module leaves a trace when it is imported."""
    code = f"from pathlib import Path\nPath({str(tmp_path / CANARY)!r}).touch()\nbuild = None\n"
    (tmp_path / "strange.py").write_text(code)
    path = write_config(tmp_path, 1)
    settings = yaml.safe_load(path.read_text())
    settings["model"]["ml_model"] = "strange:build"
    path.write_text(yaml.safe_dump(settings))
    assert ensq("enqueue", "tiny.yaml", cwd=tmp_path).returncode == 0
    return tmp_path


def test_worker_does_import_it(strange: Path) -> None:
    """The control, and what the documentation says."""
    ensq("worker", "--max-jobs", "1", cwd=strange)
    assert (strange / CANARY).exists()
    text = " ".join((ROOT / "docs" / "models.md").read_text().split())
    assert "Only `ensq worker`, `run`, `finalize` and `export` import the module" in text
