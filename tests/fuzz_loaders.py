"""Every way into ensq for a file of somebody else's, with its mutator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz_tools import Loader


def _config() -> Loader:
    import fuzz_config
    from fuzz_text import config_mutator, one_of

    mutator = one_of(config_mutator(), fuzz_config._make)
    return Loader("config", ".yaml", mutator, fuzz_config._load)


def _override() -> Loader:
    import fuzz_config
    from fuzz_text import ROOT, one_of, override_mutator

    from ensq import config

    text = (ROOT / "configs" / "chignolin.yaml").read_text()

    def load(path: Path) -> None:
        overrides = path.read_bytes().decode("utf-8", "surrogateescape").split("\x1e")  # as argv is
        fuzz_config._use(config.parse_with_notes(text, "c.yaml", overrides))

    mutator = one_of(override_mutator(), fuzz_config._make_override)
    return Loader("override", ".txt", mutator, load)


def _stored_config() -> Loader:
    import fuzz_config
    from fuzz_text import one_of, stored_config_mutator

    mutator = one_of(stored_config_mutator(), fuzz_config._make_recorded)
    return Loader("stored-config", ".json", mutator, fuzz_config._load_recorded)


def _checked(path: Path) -> None:
    """A data file as `enqueue` looks at it."""
    from ensq import config, data

    text = (
        "data: {path: x}\nmodel: {cutoff: 5.0}\n"
        "training: {val_fraction: 0.25, gammas: {F: 1.0, U: 1.0}, "
        "stages: [{optimizer: adam, epochs: 1}]}"
    )
    settings = config.parse(text, "c.yaml")
    data.digest(path)
    loaded = data.load(path, settings.data, settings.training.gammas, settings.unit)
    split = data.split(loaded, settings, str(path))
    data.facts(loaded, split, settings, str(path))


def _npz() -> Loader:
    from fuzz_arrays import data_arrays, npz_mutator

    return Loader("npz", ".npz", npz_mutator(data_arrays()), _checked)


def _prior_data() -> Loader:
    from fuzz_arrays import data_arrays, npz_mutator

    from ensq import priorfiles

    arrays = {k: v for k, v in data_arrays().items() if k not in ("cell", "pbc")}
    arrays["temperature_K"] = 300.0
    return Loader(
        "prior-data", ".npz", npz_mutator(arrays), lambda path: priorfiles.read(path, protein="x")
    )


def _xyz() -> Loader:
    from fuzz_text import xyz_mutator

    return Loader("xyz", ".xyz", xyz_mutator(), _checked, _import_ase)


def _xyz_gz() -> Loader:
    from fuzz_text import xyz_gz_mutator

    return Loader("xyz-gz", ".xyz.gz", xyz_gz_mutator(), _checked, _import_ase)


def _import_ase() -> None:
    import ase.io.extxyz  # noqa: F401 (its memory is not the input's)


def _splines() -> Loader:
    from fuzz_arrays import npz_mutator, spline_arrays

    from ensq import config
    from ensq.config.splines import filled_in

    text = (
        "data: {path: x}\nmodel: {cutoff: 5.0, use_priors: true, priors: {use_spline_priors: true, "
        "residue_specific_angles: true, spline_file: x.npz}}\n"
        "training: {val_fraction: 0.25, stages: [{optimizer: adam, epochs: 1}]}"
    )
    settings = config.parse(text, "c.yaml")

    def load(path: Path) -> None:
        overrides = [f"model.priors.spline_file={path.name}"]
        config.dumps(filled_in(config.parse(text, "c.yaml", overrides), path.parent / "c.yaml"))

    assert settings.model.priors.spline_file
    return Loader("splines", ".npz", npz_mutator(spline_arrays()), load)


def _sealed(kind: str) -> Loader:
    import tempfile

    import fuzz_sealed  # imports JAX

    with tempfile.TemporaryDirectory() as folder:
        return fuzz_sealed.loaders(Path(folder))[kind]()


def _database() -> Loader:
    import fuzz_database

    return fuzz_database.LOADERS[0]


LOADERS: dict[str, Callable[[], Loader]] = {
    "config": _config,
    "override": _override,
    "stored-config": _stored_config,
    "npz": _npz,
    "xyz": _xyz,
    "xyz-gz": _xyz_gz,
    "splines": _splines,
    "prior-data": _prior_data,
    "checkpoint": lambda: _sealed("checkpoint"),
    "result": lambda: _sealed("result"),
    "database": _database,
}
