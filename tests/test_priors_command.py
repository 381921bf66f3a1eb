"""``ensq priors fit``: its files are what a run reads, and its errors say what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ensq.train.compat import enable_x64

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from priors_tools import CHIGNOLIN, DATA, fitted, known

from ensq import boltzmann, config, data, priorfiles
from ensq.boltzmann import Chains, Fit
from ensq.cli.priors import priors as command
from ensq.config.structs import DataConfig, GammasConfig
from ensq.errors import DataError, EnsqError, UsageError
from ensq.train.models.priors import ChainPriors

SETTINGS: dict[str, Any] = {
    "data": {"path": "data.npz"},
    "model": {"cutoff": 12.0},
    "training": {"stages": [{"optimizer": "adam", "epochs": 1}]},
}


def merged(written: Path) -> config.RunConfig:
    """A configuration, as a file beside, whose model section has the fitted keys as well."""
    more = yaml.safe_load(written.read_text())
    path = written.parent / "run.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "model": {**SETTINGS["model"], **more["model"]}}))
    return config.load(path)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["fit", *map(str, arguments)])


@pytest.mark.parametrize(
    "options",
    [("--order-angle", 2), ("--kind", "spline"), ("--kind", "spline", "--residue-specific-angles")],
    ids=["fourier", "spline", "by species"],
)
def test_a_run_computes_the_energies_that_were_fitted(options, tmp_path):
    """From the command through its files to the model: every sign, unit and factor."""
    data, out = tmp_path / "chains.npz", tmp_path / "priors.yaml"
    chains = known()
    save(data, chains, temperature_K=300.0)
    assert run(data, "-o", out, *options).exit_code == 0
    made = merged(out).model
    assert made.use_priors and made.priors.residue_specific_angles == (len(options) == 3)
    one = Chains(chains.R[:1], chains.real[:1], chains.species[:1], 3, None, "")
    read = priorfiles.read(data)
    fit = boltzmann.fit(
        read, temperature=300.0, kind="spline" if "spline" in options else "fourier", orders=(2, 3)
    )
    with enable_x64():
        model = ChainPriors(made.priors)
        arguments = (jnp.asarray(x[0]) for x in (one.R, one.real, one.species))
        energy = float(model.per_bead_energy(model.init(np.float64), *arguments).sum())
    assert energy == pytest.approx(by_hand(fit, one, by_species=len(options) == 3), abs=1e-2)


def by_hand(fit: Fit, one: Chains, by_species: bool) -> float:
    """The energy of one frame from the fitted potentials."""
    samples = boltzmann.measure(one)
    total = fit.pairs["epsilon"] * ((fit.pairs["sigma"] / samples.far) ** 4).sum()
    total += fit.pairs["epsilon_ex"] * ((fit.pairs["sigma_ex"] / samples.near) ** 4).sum()
    for term in fit.terms:
        values = getattr(samples, term.name)
        energies = term.potential(values)
        if by_species and term.name == "angle":
            own = [fit.angle_types[s] for s in samples.central]
            energies = np.array(
                [
                    s.energy(v[None])[0] if s else e
                    for s, v, e in zip(own, values, energies, strict=True)
                ]
            )
        total += energies.sum()
        if term.name == "dihedral":
            total += len(values) * sum(term.numbers.get("k_dih", []))
    return float(total)


def save(path: Path, chains: Chains, **more: Any) -> None:
    F = np.zeros_like(chains.R)
    real = chains.real.astype(np.float32)
    np.savez(path, R=chains.R, F=F, species=chains.species, mask=real, **more)


def test_the_file_of_splines_has_the_arrays_of_its_users(tmp_path):
    (tmp_path / "splines.npz").write_bytes(priorfiles.splines_of(fitted("spline")))
    with np.load(tmp_path / "splines.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    for name in ("bond", "angle", "dih"):
        assert arrays[f"{name}_knots"].shape == (500,)
        assert arrays[f"{name}_coeffs"].shape == (499, 4)
    assert arrays["angle_type_knots"].shape == (3, 500)
    assert arrays["angle_type_coeffs"].shape == (3, 499, 4)
    assert arrays["angle_type_mask"].tolist() == [1, 1, 1]
    assert arrays["angle_type_counts"].sum() == 7 * 4000 and arrays["angle_n_types"] == 3
    assert (arrays["temperature"], arrays["kB"]) == (300.0, 0.0019872041)
    assert (arrays["grid_points"], arrays["kde_bandwidth_factor"]) == (500, 1.0)
    knots, coeffs = arrays["dih_knots"], arrays["dih_coeffs"]
    d = knots[-1] - knots[-2]
    end = coeffs[-1] @ [1, d, d**2, d**3], coeffs[-1] @ [0, 1, 2 * d, 3 * d**2]
    np.testing.assert_allclose(end, coeffs[0, :2], atol=1e-8)  # periodic, with its slope
    assert knots[-1] - knots[0] == pytest.approx(2 * np.pi)


def test_pictures_and_json(tmp_path):
    from matplotlib.image import imread

    ran = run(CHIGNOLIN, "-o", tmp_path / "p.yaml", "--plots", tmp_path / "plots", "--json")
    assert ran.exit_code == 0, ran.output
    printed = json.loads(ran.stdout)
    assert printed["temperature_K"] == 350.0 and printed["energy_unit"] == "kcal/mol"
    assert printed["samples"] == {"bond": 27900, "angle": 24800, "dihedral": 21700}
    assert printed["priors"]["r0"] == pytest.approx(3.873, abs=1e-4)
    pictures = [Path(name) for name in printed["files"][1:]]
    assert [path.stem for path in pictures] == ["prior_bond", "prior_angle", "prior_dihedral"]
    for path in pictures:
        pixels = imread(path)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 900
        colours = np.unique((pixels[..., :3] * 255).round().reshape(-1, 3), axis=0).tolist()
        assert [157, 180, 200] in colours and [192, 57, 43] in colours  # histogram and fit


def test_species_have_a_picture_of_their_angles(tmp_path):
    from ensq.plots import draw

    fit = boltzmann.fit(priorfiles.read(CHIGNOLIN), temperature=350.0, kind="spline")
    assert sum(term is not None for term in fit.angle_terms) == 7
    assert fit.species_names[fit.angle_types.index(None)]
    written = draw(fit, tmp_path)
    assert written[-1].name == "prior_angle_by_species.png" and written[-1].stat().st_size > 30_000


def test_the_fragment_tells_where_it_comes_from_and_sets_its_weights(tmp_path):
    assert run(CHIGNOLIN, "-o", tmp_path / "p.yaml").exit_code == 0
    text = (tmp_path / "p.yaml").read_text()
    assert all(part in text for part in ("chignolin_ca.npz", "3100 frames", "350 K", "kcal/mol"))
    weights = merged(tmp_path / "p.yaml").model.priors.weights
    assert all(getattr(weights, key) == 1.0 for key in weights.__struct_fields__)


def two_proteins(path: Path) -> Path:
    chains = known()
    R = chains.R[:1000].copy()
    R[:400] *= 1.1
    named = {"protein": (np.arange(1000) >= 400).astype(int), "protein_names": ["long", "short"]}
    part = Chains(R, chains.real[:1000].copy(), chains.species[:1000], 3, None, "")
    part.real[400:, 7:] = False
    save(path, part, temperature_K=300.0, **named)
    return path


def test_proteins_are_pooled_or_one_is_chosen_by_name_or_number(tmp_path):
    path = two_proteins(tmp_path / "two.npz")
    found = {name: priorfiles.read(path, protein=name) for name in (None, "long", "short", "1")}
    means = {name: boltzmann.measure(chains).bond.mean() for name, chains in found.items()}
    assert means["long"] == pytest.approx(4.19, abs=0.02)
    assert means["short"] == means["1"] == pytest.approx(3.81, abs=0.02)
    assert means["short"] < means[None] < means["long"]
    assert found[None].source == "two.npz (2 proteins together)"
    assert found["long"].source == "two.npz (protein long)"
    # padding ends the chain
    assert boltzmann.measure(found["short"]).bond.size == 600 * 6
    with pytest.raises(UsageError, match=r"two\.npz has long, short"):
        priorfiles.read(path, protein="medium")
    with pytest.raises(UsageError, match="has no key protein"):
        priorfiles.read(CHIGNOLIN, protein="0")


@pytest.mark.parametrize(("beads", "names"), [(2, ["bond"]), (3, ["bond", "angle"])])
def test_short_chains_have_the_terms_they_have_beads_for(beads, names, tmp_path):
    chains = known()
    short = Chains(chains.R[:, :beads], chains.real[:, :beads], chains.species[:, :beads], 3, 0, "")
    save(tmp_path / "short.npz", short)
    ran = run(tmp_path / "short.npz", "-o", tmp_path / "p.yaml", "--temperature", 300)
    assert ran.exit_code == 0
    assert f"no {['angle', 'dihedral'][beads - 2]}s: the chains are too short" in ran.output
    written = yaml.safe_load((tmp_path / "p.yaml").read_text())["model"]["priors"]
    assert set(names) <= set(written["weights"]) and "dihedral" not in written["weights"]


def failure(*arguments: object) -> str:
    ran = run(*arguments)
    assert isinstance(ran.exception, EnsqError), ran.output
    return str(ran.exception)


def test_errors_say_what_to_do(tmp_path):
    out = ("-o", tmp_path / "p.yaml")
    chains = known()
    save(tmp_path / "cold.npz", chains)
    assert failure(tmp_path / "cold.npz", *out).endswith("(temperature_K): --temperature K")
    assert "need --kind spline" in failure(CHIGNOLIN, *out, "--spline-out", tmp_path / "s.npz")
    few = chains._replace(R=chains.R[:20], real=chains.real[:20], species=chains.species[:20])
    save(tmp_path / "few.npz", few, temperature_K=300.0)
    assert "160 bonds in all frames together; 200" in failure(tmp_path / "few.npz", *out)
    atoms = failure(DATA / "ala2_allatom.npz", *out, "--temperature", 400)
    assert "no linear chain in their order" in atoms
    assert not (tmp_path / "p.yaml").exists()


def test_positions_are_enough(tmp_path):
    """Forces are not asked for, and may be in some files of a folder only."""
    chains, folder = known(), tmp_path / "folder"
    folder.mkdir()
    real = chains.real.astype(np.float32)
    arrays = {"R": chains.R, "species": chains.species, "mask": real, "temperature_K": 300.0}
    np.savez(folder / "a.npz", **arrays)
    alone = run(folder / "a.npz", "-o", tmp_path / "a.yaml")
    assert alone.exit_code == 0, alone.output
    save(folder / "b.npz", chains, temperature_K=300.0)
    both = run(folder, "-o", tmp_path / "b.yaml", "--json")
    assert both.exit_code == 0, both.output
    assert json.loads(both.stdout)["samples"]["bond"] == 2 * 4000 * 8
    settings = DataConfig(path="")
    assert data.load(folder, settings, None, "kcal/mol").F is None
    assert data.load(folder / "b.npz", settings, None, "kcal/mol").F is not None
    with pytest.raises(DataError, match=r"key F is missing"):
        data.load(folder / "a.npz", settings, GammasConfig(), "kcal/mol")


def test_advice_is_about_options_of_this_command(tmp_path):
    out = ("-o", tmp_path / "p.yaml")
    chains = known()
    save(tmp_path / "nm.npz", chains._replace(R=0.1 * chains.R), temperature_K=300.0)
    assert failure(tmp_path / "nm.npz", *out).endswith("positions in nm? --length-unit nm")
    assert run(tmp_path / "nm.npz", *out, "--length-unit", "nm").exit_code == 0
    save(tmp_path / "box.npz", chains, temperature_K=300.0, cell=np.eye(3) * 90)
    periodic = failure(tmp_path / "box.npz", *out)
    assert "open boundaries" in periodic and "leave the cell out" in periodic
    assert "model." not in periodic
    np.savez(tmp_path / "none.npz", positions=chains.R, coords=chains.R, species=chains.species)
    assert "data.keys" not in failure(tmp_path / "none.npz", *out)
    np.savez(tmp_path / "none.npz", species=chains.species)
    assert "data.keys" not in failure(tmp_path / "none.npz", *out)


def test_outputs_that_cannot_be_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    spline = ("--kind", "spline")
    path = tmp_path / "data.npz"
    save(path, known(), temperature_K=300.0)
    before = path.read_bytes()
    lost = tmp_path / "nodir" / "p.yaml"
    assert f"there is no folder {lost.parent}" in failure(path, "-o", lost)
    assert "--spline-out" in failure(path, *spline, "-o", tmp_path / "p.yaml", "--spline-out", lost)
    assert not lost.parent.exists()
    assert "is the data file itself" in failure(path, "-o", path)
    assert "is the data file itself" in failure(path, *spline, "-o", tmp_path / "data.yaml")
    assert "would become one of the data files" in failure(
        tmp_path, *spline, "-o", tmp_path / "p.yaml"
    )
    assert "name one file" in failure(path, *spline, "-o", tmp_path / "p.npz")
    name = "p" * 300 + ".yaml"
    long = failure(path, "-o", tmp_path / name)
    assert long == f"-o {tmp_path / name}: can't be written: File name too long"
    assert [file.name for file in tmp_path.iterdir()] == ["data.npz"]
    assert path.read_bytes() == before


def test_a_grid_that_is_too_coarse_is_refused_with_one_that_is_not(tmp_path):
    out = ("--kind", "spline", "-o", tmp_path / "p.yaml", "--grid")
    message = failure(CHIGNOLIN, *out, 8)
    assert "--grid 8 is too coarse: the spline of the bond is up to 0.4" in message
    assert message.endswith("--grid 32 is enough")
    assert not (tmp_path / "p.yaml").exists()
    errors = {}
    for grid in (32, 500):
        ran = run(CHIGNOLIN, *out, grid, "--json")
        assert ran.exit_code == 0, ran.output
        errors[grid] = json.loads(ran.stdout)["spline_error"]
    assert set(errors[32]) == {"bond", "angle", "dihedral"}
    assert all(errors[500][name] < 1e-4 < errors[32][name] < 0.07 for name in errors[32])


def test_files_of_different_temperatures_are_not_mixed(tmp_path):
    few = known()
    few = few._replace(R=few.R[:9], real=few.real[:9], species=few.species[:9])
    for temperature in (300.0, 350.0):
        save(tmp_path / f"at{temperature:.0f}.npz", few, temperature_K=temperature)
    with pytest.raises(DataError, match="several temperatures: 300, 350 K"):
        priorfiles.read(tmp_path)


def test_without_matplotlib_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    plain = run(CHIGNOLIN, "-o", tmp_path / "p.yaml")
    assert plain.exit_code == 0
    text = failure(CHIGNOLIN, "-o", tmp_path / "p.yaml", "--plots", tmp_path / "plots")
    assert "pip install matplotlib" in text
