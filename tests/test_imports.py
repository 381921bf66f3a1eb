"""Which module may import what, and how light the command line is.

The rules are the design's table: plain values in the middle, one module for each outside world.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

JAX_WORLD = {
    *("jax", "jaxlib", "chemtrain", "jax_md", "jax_md_mod", "jax_sgmc", "optax", "haiku"),
    *("e3nn_jax", "flax", "jaxopt", "blackjax", "chex", "jraph", "safetensors", "ml_dtypes"),
    "jaxtyping",
}
# Module (the longest entry that a module's name starts with counts) -> what it may import: names of
# other packages, and modules of ensq, with all below them. The standard library is always allowed.
RULES: dict[str, frozenset[str]] = {
    name: frozenset(allowed.split())
    for name, allowed in {
        # load_ensemble, which is imported when it is asked for
        "ensq": "ensq.ensemble",
        "ensq.errors": "",
        "ensq.jobs": "",
        "ensq.text": "",
        "ensq.faults": "",
        "ensq.seal": "",
        "ensq.alike": "",
        "ensq.early": "ensq.alike ensq.early",
        "ensq.rundir": "ensq.errors ensq.faults",
        "ensq.publish": "ensq.errors ensq.rundir",
        "ensq.slurm": "ensq.errors ensq.slurm",
        "ensq.config": "msgspec yaml ensq.config ensq.errors ensq.rundir",
        # It reads the file of splines, and imports NumPy only then.
        "ensq.config.splines": "numpy msgspec ensq.config ensq.errors ensq.npzfile ensq.units",
        "ensq.units": "numpy",
        "ensq.npzfile": "numpy",
        "ensq.resampling": "numpy scipy",
        "ensq.prediction": "numpy ensq.units",
        "ensq.data": (
            "numpy ensq.config ensq.data ensq.errors ensq.npzfile ensq.rundir ensq.units"
        ),
        # The one module that calls ASE, and only when it reads such a file.
        "ensq.data.xyz": "numpy ase ensq.config ensq.data ensq.errors",
        "ensq.data.saving": "numpy ase ensq.config ensq.data ensq.errors ensq.rundir ensq.units",
        "ensq.schema": "sqlalchemy ensq.jobs",
        "ensq.store": (
            "sqlalchemy ensq.store ensq.schema ensq.jobs ensq.errors ensq.faults ensq.rundir"
        ),
        "ensq.migrate": "alembic sqlalchemy ensq ensq.schema ensq.store ensq.errors",
        "ensq.enqueue": ("yaml ensq.config ensq.data ensq.errors ensq.jobs ensq.rundir ensq.store"),
        "ensq.submit": "ensq.config ensq.errors ensq.jobs ensq.rundir ensq.slurm ensq.store",
        "ensq.worker": (
            "msgspec ensq ensq.worker ensq.store ensq.jobs ensq.rundir ensq.slurm ensq.errors "
            "ensq.faults ensq.config ensq.data ensq.early ensq.progress"
        ),
        "ensq.local": "ensq.worker ensq.errors",
        # JAX is asked in a child process.
        "ensq.doctor": "ensq ensq.doctor ensq.errors ensq.schema ensq.slurm ensq.store",
        "ensq.progress": "ensq.jobs ensq.text",
        "ensq.selection": "numpy ensq.jobs",
        "ensq.comparison": "numpy ensq.alike ensq.resampling",
        # Fits of priors: numbers; files; pictures (matplotlib is imported when one is drawn).
        "ensq.boltzmann": "numpy scipy ensq.errors",
        "ensq.priorfiles": (
            "numpy ensq.boltzmann ensq.config ensq.data ensq.errors ensq.npzfile ensq.rundir"
        ),
        "ensq.plots": "numpy matplotlib ensq.boltzmann ensq.errors",
        # These alone call ensq.train from outside: they export what was trained.
        "ensq.finalize": (
            "ensq.choosing ensq.config ensq.errors ensq.exports ensq.jobs ensq.metadata "
            "ensq.modelfiles ensq.publish ensq.rundir ensq.selection ensq.store ensq.stopped "
            "ensq.train"
        ),
        "ensq.choosing": (
            "numpy ensq.alike ensq.comparison ensq.config ensq.resampling ensq.text ensq.train"
        ),
        "ensq.stopped": "ensq.config ensq.errors ensq.jobs ensq.selection ensq.store ensq.text",
        "ensq.metadata": (
            "numpy ensq.config ensq.errors ensq.exports ensq.jobs ensq.modelfiles ensq.selection "
            "ensq.train"
        ),
        "ensq.exports": (
            "ensq.config ensq.data ensq.errors ensq.jobs ensq.rundir ensq.store ensq.train"
        ),
        "ensq.modelfiles": "numpy ensq.config ensq.data ensq.exports ensq.train",
        # Trained members and what they predict together.
        "ensq.trained": (
            "ensq.config ensq.errors ensq.exports ensq.jobs ensq.rundir ensq.stopped ensq.store "
            "ensq.train"
        ),
        "ensq.masses": "ase ensq.errors",
        # Dynamics checks: numbers here, the dynamics themselves in ensq.train.dynamics.
        "ensq.dynamics": (
            "numpy ensq ensq.dynamics ensq.data ensq.ensemble ensq.errors ensq.masses "
            "ensq.priorfiles ensq.resampling ensq.rundir ensq.simulation ensq.units ensq.train"
        ),
        "ensq.dynamics.measures": "numpy ase",
        "ensq.dynamics.molecules": "numpy scipy ensq.data ensq.dynamics",
        "ensq.simulation": "numpy ensq.errors ensq.npzfile ensq.rundir",
        "ensq.ensemble": (
            "numpy ensq.ase ensq.calibration ensq.config ensq.data ensq.errors ensq.frames "
            "ensq.masses ensq.prediction ensq.trained ensq.train"
        ),
        "ensq.frames": "numpy ensq.data ensq.errors",
        "ensq.ase": (
            "numpy ase ensq.ensemble ensq.errors ensq.frames ensq.prediction ensq.train.moving"
        ),
        "ensq.outputs": "ensq.errors",
        # What becomes of predictions; no JAX.
        "ensq.predicted": (
            "numpy ensq ensq.config ensq.data ensq.ensemble ensq.errors ensq.outputs "
            "ensq.predicted ensq.prediction ensq.rundir ensq.units"
        ),
        "ensq.predicted.files": (
            "numpy ase h5py ensq.data ensq.errors ensq.prediction ensq.predicted ensq.rundir"
        ),
        # Reports: pages and figures (matplotlib is imported when one is drawn).
        "ensq.report": (
            "ensq ensq.calibrating ensq.calibration ensq.choosing ensq.config ensq.dynamics "
            "ensq.early ensq.ensemble ensq.errors ensq.evaluating ensq.evaluation ensq.exports "
            "ensq.jobs ensq.observing ensq.progress ensq.report ensq.rundir ensq.selection "
            "ensq.simulation ensq.stopped ensq.store ensq.text ensq.train ensq.trained matplotlib "
            "numpy"
        ),
        # Errors and uncertainty: figures are arrays in, values out.
        "ensq.calibration": (
            "numpy scipy msgspec ensq.calibration ensq.errors ensq.prediction ensq.resampling "
            "ensq.rundir"
        ),
        "ensq.evaluation": "numpy msgspec ensq.calibration ensq.errors ensq.npzfile ensq.rundir",
        "ensq.evaluationtext": "ensq.calibration ensq.evaluation ensq.text",
        **dict.fromkeys(
            ("ensq.observing", "ensq.calibrating", "ensq.evaluating"),
            "numpy ensq.alike ensq.calibrating ensq.calibration ensq.config ensq.data "
            "ensq.ensemble ensq.errors ensq.evaluation ensq.observing ensq.prediction "
            "ensq.resampling ensq.trained",
        ),
        "ensq.reexport": (
            "ensq.config ensq.errors ensq.exports ensq.jobs ensq.modelfiles ensq.publish "
            "ensq.rundir ensq.store ensq.train"
        ),
        "ensq.cli": (
            "ensq.boltzmann ensq.data ensq.doctor ensq.plots ensq.priorfiles msgspec "
            "ensq.calibrating ensq.ensemble ensq.evaluating ensq.evaluation ensq.evaluationtext "
            "ensq.observing ensq.trained ensq.dynamics ensq.simulation "
            "click ensq ensq.cli ensq.config ensq.enqueue ensq.errors ensq.exports ensq.finalize "
            "ensq.jobs ensq.local ensq.migrate ensq.progress ensq.reexport ensq.rundir ensq.store "
            "ensq.choosing ensq.slurm ensq.submit ensq.text ensq.worker ensq.ensemble ensq.outputs "
            "ensq.predicted ensq.report ensq.trained ensq.early ensq.stopped"
        ),
        "ensq.train": (
            "numpy msgspec google ensq ensq.train ensq.config ensq.data ensq.errors ensq.jobs "
            "ensq.masses ensq.units ensq.early ensq.resampling "
            "ensq.rundir ensq.seal ensq.faults ensq.worker.meeting ensq.worker.protocol "
            + " ".join(JAX_WORLD)
        ),
    }.items()
}
# What a module of the command line may load before a command is called.
LIGHT = frozenset({"click", "ensq", "ensq.cli", "ensq.errors", "ensq.text"})


class Import(NamedTuple):
    name: str
    line: int
    at_load: bool  # not inside a function, nor for type checkers only


def imports(tree: ast.AST, package: str, at_load: bool = True) -> Iterator[Import]:
    """Every import below a node; ``from ensq import jobs`` counts as ``ensq.jobs``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield Import(name if _is_module(name) else base, node.lineno, at_load)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from imports(node, package, at_load and not inside and not typing)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _below(name: str, rule: str) -> bool:
    # "ensq" allows the version in ensq/__init__.py, not everything below it.
    return name == rule or (rule != "ensq" and name.startswith(rule + "."))


def violations(source: str, module: str, package: str | None = None) -> list[str]:
    """What a module's source imports against the rules."""
    rule = max((name for name in RULES if module == name or _below(module, name)), key=len)
    found = []
    for name, line, at_load in imports(ast.parse(source), package or module.rpartition(".")[0]):
        if name.split(".")[0] in sys.stdlib_module_names:
            continue
        if not any(_below(name, allowed) for allowed in RULES[rule]):
            found.append(f"{module}:{line} imports {name}, which {rule} may not")
        elif rule == "ensq.cli" and at_load and not any(_below(name, light) for light in LIGHT):
            found.append(f"{module}:{line} imports {name} at load; do it inside the command")
    return list(dict.fromkeys(found))


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "ensq").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_every_module_has_a_rule_of_its_own() -> None:
    assert [name for name in modules() if name != "ensq" and not _ruled(name)] == []


def _ruled(name: str) -> bool:
    return any(rule != "ensq" and _below(name, rule) for rule in RULES)


def test_no_module_imports_what_the_design_forbids() -> None:
    found = []
    for name, path in modules().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found += violations(path.read_text(), name, package)
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ensq.worker.supervisor", "import jax"),
        ("ensq.worker.supervisor", "def late():\n    import jax.numpy as jnp"),
        ("ensq.worker.supervisor", "from ensq.train import checkpoint"),
        ("ensq.worker.supervisor", "from ..train import checkpoint"),
        ("ensq.store.reads", "import chemtrain.trainers"),
        ("ensq.store.reads", "from alembic import command"),
        ("ensq.data", "from sqlalchemy import select"),
        ("ensq.data.checks", "from ase.io import read"),
        ("ensq.units", "from ensq.data import Data"),
        ("ensq.errors", "import click"),
        ("ensq.jobs", "from ensq import errors"),
        ("ensq.train.trainer", "from ensq.store import Store"),
        ("ensq.train.trainer", "import sqlalchemy"),
        ("ensq.cli.status", "import numpy"),
        ("ensq.boltzmann", "import jax"),
        ("ensq.boltzmann", "from ensq import data"),
        ("ensq.plots", "import scipy"),
        ("ensq.cli.status", "def status():\n    from ensq.train import export"),
        ("ensq.cli.status", "from ensq.store import Store"),
        ("ensq.selection", "try:\n    import optax\nexcept ImportError:\n    pass"),
    ],
)
def test_a_forbidden_import_is_caught(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ensq.train.trainer", "import jax\nimport json\nfrom ensq.worker import protocol"),
        ("ensq.cli.status", "def status():\n    from ensq.store import Store"),
        ("ensq.cli.status", "if TYPE_CHECKING:\n    from ensq.store import Store"),
        ("ensq.store.reads", "from ensq.jobs import Job\nfrom sqlalchemy import select"),
    ],
)
def test_what_the_design_allows_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


HEAVY = {*JAX_WORLD, "numpy", "scipy", "sqlalchemy", "alembic", "msgspec", "yaml", "click"}


def loaded_by(code: str, folder: Path) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after it ran ``code``."""
    tail = "\nimport sys\nprint('\\nloaded', *{name.split('.')[0] for name in sys.modules})"
    ran = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, cwd=folder
    )
    assert ran.returncode == 0, ran.stderr
    return HEAVY & set(ran.stdout.splitlines()[-1].split())


def command(*arguments: str) -> str:
    """Code that runs ``ensq`` with these arguments and goes on."""
    return (
        f"import sys\nfrom ensq.cli import main\nsys.argv = {['ensq', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )


def test_importing_ensq_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_by("import ensq", tmp_path) == set()


def test_loaded_packages_are_seen(tmp_path: Path) -> None:
    assert loaded_by("import numpy", tmp_path) == {"numpy"}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("worker", "--help"), ("config", "-h"), ("nix",)]
)
def test_help_and_usage_errors_load_click_only(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert loaded_by(command(*arguments), tmp_path) == {"click"}


def test_status_loads_neither_jax_nor_alembic(tmp_path: Path) -> None:
    from ensq.store import Store

    Store.open(str(tmp_path / "ensq.db"), create=True).close()
    loaded = loaded_by(command("status", "--json"), tmp_path)
    assert "sqlalchemy" in loaded
    assert not loaded & {*JAX_WORLD, "alembic", "numpy", "scipy"}


@pytest.mark.parametrize("arguments", [("--help",), ("nix",)])
def test_help_and_usage_errors_answer_in_150_ms(arguments: tuple[str, ...]) -> None:
    """The best of several runs, in processor time: they wait for nothing but for other programs."""

    def seconds() -> float:
        before = os.times()
        command = [sys.executable, "-m", "ensq.cli", *arguments]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = os.times()
        return (after.children_user + after.children_system) - (
            before.children_user + before.children_system
        )

    best, end = seconds(), time.monotonic() + 20
    while best >= 0.15 and time.monotonic() < end:
        best = min(best, seconds())
    assert 0 < best < 0.15
