"""The configuration: defaults, errors that name the key, overrides, digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ensq import config
from ensq.config import RunConfig
from ensq.config.output import to_yaml
from ensq.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "data": {"path": "d.npz"},
    "model": {"cutoff": 5.0},
    "training": {"stages": [{"optimizer": "adam", "epochs": 3}]},
}
TEXT = yaml.safe_dump(MINIMAL)


def parsed(*overrides: str, **sections: Any) -> RunConfig:
    return config.parse(yaml.safe_dump({**MINIMAL, **sections}), "c.yaml", overrides)


def error_of(*overrides: str, text: str = TEXT) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "c.yaml", overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- the ensemble section ----------------------------------------------------------------------


def test_an_absent_ensemble_section_has_the_defaults_of_the_plan() -> None:
    ensemble = parsed().get_ensemble_config()
    assert (ensemble.enabled, ensemble.n_models) == (False, 5)
    assert (ensemble.base_seed, ensemble.save_all_models) == (42, False)
    assert parsed().is_ensemble_enabled() is False


def test_a_partial_ensemble_section_keeps_the_other_defaults() -> None:
    made = parsed(ensemble={"enabled": True, "n_models": 3})
    assert made.is_ensemble_enabled() is True
    assert made.get_ensemble_config().n_models == 3
    assert made.get_ensemble_config().base_seed == 42


def test_the_whole_ensemble_section_is_read() -> None:
    section = {"enabled": True, "n_models": 2, "base_seed": 7, "save_all_models": True}
    ensemble = parsed(ensemble=section).get_ensemble_config()
    assert {key: getattr(ensemble, key) for key in section} == section


def test_seeds_count_up_from_the_base_seed() -> None:
    section = {"enabled": True, "n_models": 4, "base_seed": 100}
    assert parsed(ensemble=section, seed=9).seeds == (100, 101, 102, 103)


def test_without_an_ensemble_the_one_seed_is_the_top_level_one() -> None:
    section = {"enabled": False, "n_models": 4, "base_seed": 100}
    assert parsed(ensemble=section, seed=9).seeds == (9,)
    assert parsed().seeds == (42,)


def test_seeds_do_not_pass_32_bits() -> None:
    last = 2**31 - 1
    assert (
        parsed(ensemble={"enabled": True, "n_models": 2, "base_seed": last - 1}).seeds[-1] == last
    )
    assert "ensemble: the last seed would be 2147483648" in error_of(
        f"ensemble={{enabled: true, n_models: 2, base_seed: {last}}}"
    )


def test_epochs_of_the_stages_are_added_up() -> None:
    stages = [{"optimizer": "adabelief", "epochs": 3}, {"optimizer": "yogi", "epochs": 2}]
    assert parsed(training={"stages": stages}).epochs == 5


# -- errors ------------------------------------------------------------------------------------

WRONG = {
    "ensemble.n_models=0": "ensemble.n_models: expected int >= 1 (the value is 0)",
    "ensemble.n_models=-2": "ensemble.n_models: expected int >= 1",
    "ensemble.n_models=five": "ensemble.n_models: expected int, got str (the value is 'five')",
    "ensemble.n_models=true": "ensemble.n_models: expected int, got bool",
    "ensemble.enabled=1": "ensemble.enabled: expected bool, got int",
    "ensemble.n_model=3": "unknown key ensemble.n_model; did you mean n_models?",
    "ensemble.x=3": "unknown key ensemble.x; known here: enabled, n_models, base_seed, save_all_m",
    "training.stages.0.epochs=-3": "training.stages.0.epochs: expected int >= 1 (the value is -3)",
    "training.stages.0.epochs=3.0": "training.stages.0.epochs: expected int, got float",
    "training.stages.0.epochs=1e2": "training.stages.0.epochs: expected int, got str; YAML reads "
    "1e2 as text, since a number with an exponent needs a point and a signed exponent: write 100",
    "training.stages.0.optimizer=adm": "training.stages.0.optimizer: expected one of adam, adamw, ",
    "training.stages.0.lr=1": "unknown key training.stages.0.lr; known here: optimizer, epochs",
    "training.stages=[]": "training.stages: expected a list of length >= 1",
    "training.stages=adam": "training.stages: expected a list, got str (the value is 'adam')",
    "training.stage1_optimizer=adam": "training.stage1_optimizer: write training.stages:",
    "training.val_fraction=1.5": "training.val_fraction: expected float < 1.0 (the value is 1.5)",
    "training.val_fraction=.nan": "training.val_fraction must be a finite number, not nan",
    "training.gammas={F: 0, U: 0}": "training.gammas: F and U are both 0",
    "optimizer.adam.lr=1e-3": "optimizer.adam.lr: expected float, got str; YAML reads 1e-3 as "
    "text, since a number with an exponent needs a point and a signed exponent: write 1.0e-03",
    "optimizer.adam.lr=5e-3": "write 5.0e-03",
    "optimizer.grad_clip=1e1": "optimizer.grad_clip: expected float | null, got str; YAML reads",
    "optimizer.grad_clip=.inf": "optimizer.grad_clip must be a finite number, not inf",
    "optimizer.adam.decay_steps=9": "optimizer.adam.decay_steps: older files mean a cosine over",
    "optimizer.adam.total_steps=0": "optimizer.adam.total_steps: expected int >= 1 (the value is 0",
    "optimizer.yogi={warmup_steps: 9, total_steps: 9}": "optimizer.yogi: total_steps must be lar",
    "model.cutoff=-1.0": "model.cutoff: expected float > 0.0 (the value is -1.0)",
    "model.cutoff=": "model.cutoff: expected float, got null",
    "model.allegro.avg_num_neighbors=.inf": "model.allegro.avg_num_neighbors must be a finite num",
    "model.priors={r0: 3.8}": "model.priors: r0 and kr go together: give both or neither",
    "model.priors={a: [1.0], b: []}": "model.priors: a and b must have the same number of entries",
    "model.priors={a: [.nan], b: [1.0]}": "model.priors.a.0 must be a finite number, not nan",
    "model.ml_model=mac": "model: ml_model must be one of allegro, dimenetpp, mace, painn, or ",
    "model.train_priors=true": "model: train_priors needs use_priors: true",
    "model.priors.use_spline_priors=true": "model.priors: use_spline_priors needs spline_file",
    "model.priors.splines={bond: {knots: [0, 1], coeffs: []}}": "model.priors.splines.bond: a spl",
    "training.pretrain_prior=true": "training.pretrain_prior needs model.use_priors: true",
    "data.max_buckets=17": "data.max_buckets: expected int <= 16 (the value is 17)",
    "export.priors=apart": "export.priors: expected one of embedded, native (the value is 'apart')",
    "energy_unit=kJ/mol": "energy_unit: expected one of kcal/mol, eV (the value is 'kJ/mol')",
    "model.cutoff=[1.0]": "model.cutoff: expected float, got a list",
    "data.max_frames=0": "data.max_frames: expected int",
    "data.split.by=replica": "data.split: split by replica needs validation",
    "data.split.validation=[1]": "data.split: validation has a meaning only with by: replica",
    "data=3": "data: expected object, got int (the value is 3)",
    "seed=-1": "seed: expected int >= 0 (the value is -1)",
    "seed=4294967296": "seed: expected int <= 2147483647",
    "training={1: 2}": "unknown key training.1: names of keys are text",
    "colour=blue": "unknown key colour; known here: data, model, training",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_value_gives_one_line_that_names_its_key(override: str, message: str) -> None:
    found = error_of(override)
    assert message in found
    assert found.startswith("c.yaml: ")


def test_the_number_that_an_error_proposes_is_read_as_that_number() -> None:
    for text in ("1e-3", "5e-3", "125e-6", "3E8", "1e22"):
        proposed = error_of(f"optimizer.adam.lr={text}").rpartition("write ")[2]
        assert parsed(f"optimizer.adam.lr={proposed}").optimizer.adam.lr == float(text)


@pytest.mark.parametrize("section", ["data", "model", "training"])
def test_a_missing_section_is_named(section: str) -> None:
    text = yaml.safe_dump({key: value for key, value in MINIMAL.items() if key != section})
    assert error_of(text=text) == f"c.yaml: {section} is missing"


def test_a_missing_key_is_named_with_its_section() -> None:
    assert error_of("training.stages.0={optimizer: adam}") == (
        "c.yaml: training.stages.0.epochs is missing"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this file holds nothing"),
        ("[1, 2]", "this file holds a list"),
        ("just words", "this file holds text"),
        ("a: b: c", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("data: &d {path: x, split: *d}", "data.split refers to itself"),
        ("a: &a [*a]", "a.0 refers to itself"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_a_text_that_is_no_configuration_gives_one_line(text: str, message: str) -> None:
    assert message in error_of(text=text)


def test_a_key_given_twice_is_refused_instead_of_the_last_one_winning() -> None:
    twice = TEXT.replace("path: d.npz", "path: d.npz\n  path: e.npz")
    assert yaml.safe_load(twice)["data"]["path"] == "e.npz"  # what plain YAML does
    assert "key 'path' is given twice (line 3)" in error_of(text=twice)


def test_yaml_tags_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = f"data: !!python/object/apply:pathlib.Path.touch [{mark}]"
    assert "could not determine a constructor" in error_of(text=text)
    assert not mark.exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, binary, large = tmp_path / "no.yaml", tmp_path / "b.yaml", tmp_path / "l.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    large.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    for path, message in (
        (missing, "no such file"),
        (binary, "not a text file in UTF-8"),
        (large, "larger than 4 MiB"),
        (tmp_path, "can't be read: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            config.load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("context", ["../x", "a/b", "/abs", ".hidden", "", "a b", "x;y", "a" * 101])
def test_model_context_cannot_lead_out_of_the_export_folder(context: str) -> None:
    with pytest.raises(ConfigError, match="model_context becomes part of file names"):
        parsed(model_context=context)


def test_an_ordinary_model_context_is_taken() -> None:
    assert parsed(model_context="chignolin_v1.2-b+c").model_context == "chignolin_v1.2-b+c"


# -- overrides ---------------------------------------------------------------------------------


def test_an_override_changes_one_value_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    made = config.load(path, ["training.stages.0.epochs=7", "optimizer.adam.lr=2.0e-3"])
    assert made.training.stages[0].epochs == 7
    assert made.optimizer.adam.lr == 2e-3
    assert config.changed_keys(config.load(path), made) == [
        ("optimizer.adam.lr", 1e-3, 2e-3),
        ("training.stages.0.epochs", 3, 7),
    ]


def test_the_last_of_two_overrides_of_one_key_wins() -> None:
    assert parsed("seed=1", "seed=2").seed == 2


def test_an_override_does_not_reach_a_section_that_shares_its_anchor() -> None:
    text = TEXT + "optimizer:\n  adam: &same {lr: 0.5}\n  yogi: *same\n"
    made = config.parse(text, "c.yaml", ["optimizer.adam.lr=0.25"])
    assert (made.optimizer.adam.lr, made.optimizer.yogi.lr) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("seed=[", "the value is not valid YAML"),
        ("training.stages.1.epochs=3", "'1' is no place in a list of 1"),
        ("training.stages.first.epochs=3", "'first' is no place in a list of 1"),
        ("training.stages.0.epochs.x=3", "training.stages.0.epochs is the value 3, not a section"),
        ("model.cutoff.x.y=3", "nothing can be set below model.cutoff.x"),
    ],
)
def test_a_wrong_override_is_quoted(override: str, message: str) -> None:
    found = error_of(override)
    assert found.startswith(f"--set {override}: ")
    assert message in found


# -- JSON and digest ---------------------------------------------------------------------------


def full() -> RunConfig:
    """A configuration with something other than the default wherever that is easy."""
    return parsed(
        "data={path: d.npz, max_frames: 9, seed: 3, split: {by: replica, validation: [1, 2]}}",
        "model.priors={r0: 3.8, kr: 190, a: [0.1], b: [-2.0e-3]}",
        "model.allegro={max_ell: 2, avg_num_neighbors: 7.5, symmetry: so3}",
        "training.ema_decay=0.99",
        "training.precision=float64",
        "optimizer={grad_clip: null, adam: {lr: 0.1, peak_lr: 0.3, warmup_steps: 4}}",
        "ensemble={enabled: true, n_models: 3}",
        "protein_name=Mücke",
    )


def test_canonical_json_gives_the_configuration_back() -> None:
    for made in (parsed(), full()):
        assert config.loads(config.dumps(made)) == made
        assert config.dumps(config.loads(config.dumps(made))) == config.dumps(made)


def test_the_order_of_keys_and_explicit_defaults_do_not_change_the_digest() -> None:
    backwards = yaml.safe_dump(dict(reversed(MINIMAL.items())), sort_keys=False)
    other = config.parse(backwards, "c.yaml", ["training.val_fraction=0.1", "model.cutoff=5"])
    assert config.digest(other) == config.digest(parsed())


@pytest.mark.parametrize(
    "override",
    [
        "training.val_fraction=0.2",
        "data.seed=1",
        "ensemble.base_seed=43",
        "optimizer.grad_clip=null",
    ],
)
def test_a_key_that_decides_what_is_trained_changes_the_digest(override: str) -> None:
    old, new = full(), config.parse(to_yaml(full()), "c.yaml", [override])
    if override.endswith("null"):
        old = config.parse(to_yaml(full()), "c.yaml", ["optimizer.grad_clip=2.0"])
    assert config.digest(old) != config.digest(new)
    assert [key for key, _, _ in config.changed_keys(old, new)] == [override.partition("=")[0]]


@pytest.mark.parametrize(
    "override",
    ["ensemble.n_models=9", "ensemble.save_all_models=true", "data.path=e.npz", "seed=5",
     "training.export_path=out", "export.priors=native", "model.priors.spline_file=moved.npz"],
)  # fmt: skip
def test_more_seeds_and_places_of_files_are_the_same_ensemble(override: str) -> None:
    old, new = full(), config.parse(to_yaml(full()), "c.yaml", [override])
    assert old != new
    assert config.digest(old) == config.digest(new)
    assert config.changed_keys(old, new) == []


def test_without_an_ensemble_the_top_level_seed_counts_and_the_base_seed_does_not() -> None:
    assert config.digest(parsed(seed=1)) != config.digest(parsed(seed=2))
    assert config.digest(parsed("ensemble.base_seed=1")) == config.digest(parsed())


def test_changed_keys_shows_stages_that_came_and_went() -> None:
    new = parsed("training.stages=[{optimizer: adam, epochs: 3}, {optimizer: yogi, epochs: 1}]")
    assert config.changed_keys(parsed(), new) == [
        ("training.stages.1.epochs", None, 1),
        ("training.stages.1.optimizer", None, "yogi"),
    ]


def test_other_splines_are_another_ensemble_and_differ_in_one_key() -> None:
    def with_coefficient(value: float) -> RunConfig:
        splines = {"bond": {"knots": [3.0, 4.0, 5.0], "coeffs": [[1, 2, 3, value], [1, 2, 3, 4]]}}
        priors = {"use_spline_priors": True, "splines": splines}
        return parsed(model={"cutoff": 5.0, "use_priors": True, "priors": priors})

    old, new = with_coefficient(4.0), with_coefficient(4.5)
    assert config.digest(old) != config.digest(new)
    assert [key for key, _, _ in config.changed_keys(old, new)] == ["model.priors.splines"]
    assert config.loads(config.dumps(new)) == new


@pytest.mark.parametrize(
    ("units", "energy_unit", "unit"),
    [
        ("kcal/mol", None, "kcal/mol"),
        ("kJ/mol", None, "kcal/mol"),
        ("eV", None, "eV"),
        ("Hartree", None, "eV"),
        ("kJ/mol", "eV", "eV"),
    ],
)
def test_the_unit_of_the_run_follows_the_data_unless_it_is_given(
    units: str, energy_unit: str | None, unit: str
) -> None:
    made = parsed(data={"path": "d.npz", "units": {"energy": units}}, energy_unit=energy_unit)
    assert made.unit == unit
