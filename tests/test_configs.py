"""The shipped configurations and the commented template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from ensq import config
from ensq.config.structs import RunConfig
from ensq.enqueue import check

CONFIGS = Path(__file__).parent.parent / "configs"
TEMPLATE = CONFIGS / "config_template.yaml"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def differences(tree: Any, struct: type[Struct], at: str = "") -> list[str]:
    """Keys of the struct that the tree lacks, has too many of, or gives another value."""
    if not isinstance(tree, dict):
        return [f"{at} is not a section"]
    known = {field.name: field for field in fields(struct)}
    found = [f"{at}{key} is unknown" for key in tree if key not in known]
    for name, field in known.items():
        if name not in tree:
            found.append(f"{at}{name} is missing")
        elif isinstance(field.type, type) and issubclass(field.type, Struct):
            found += differences(tree[name], field.type, f"{at}{name}.")
        elif field.default is not NODEFAULT:
            default = msgspec.json.decode(msgspec.json.encode(field.default))  # lists, not tuples
            if tree[name] != default or isinstance(tree[name], bool) != isinstance(default, bool):
                found.append(f"{at}{name} is {tree[name]!r}, the default is {default!r}")
    return found


def template() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text())
    return tree


def test_there_are_the_examples_and_the_template() -> None:
    assert {file.name for file in FILES} >= {
        *("ala2.yaml", "ala2_long.yaml", "chignolin.yaml", "chignolin_long.yaml"),
        *("two_peptides.yaml", "config_template.yaml"),
        *("a100_4gpu.yaml", "one_hour_limit.yaml", "postgresql.yaml"),
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_shipped_configuration_loads_and_fits_its_data(file: Path) -> None:
    split = check(file).split
    assert len(split.training) > len(split.validation) > 100


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_there_is_nothing_to_say_against_a_shipped_configuration(file: Path) -> None:
    assert config.load_with_notes(file).notes == ()


def test_the_template_has_every_key_with_its_default() -> None:
    assert differences(template(), RunConfig) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("ensemble.n_models", None, "ensemble.n_models is missing"),
        ("optimizer.fromage", None, "optimizer.fromage is missing"),
        ("model.allegro.max_ell", 2, "model.allegro.max_ell is 2, the default is 1"),
        ("ensemble.enabled", 0, "ensemble.enabled is 0, the default is False"),
        ("training.surprise", 1, "training.surprise is unknown"),
    ],
)
def test_a_template_that_lags_behind_the_structs_is_noticed(
    path: str, value: Any, expected: str
) -> None:
    tree = template()
    *parents, last = path.split(".")
    node = tree
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    assert differences(tree, RunConfig) == [expected]


def test_the_template_explains_every_key() -> None:
    """Each key has a comment on its line or above it, sections of optimisers but the first not."""
    lines = TEMPLATE.read_text().splitlines()
    optimizers = lines.index("  adamw:")
    commented = [line for line in lines[:optimizers] if "#" in line]
    keys = [line for line in lines[:optimizers] if ":" in line.split("#")[0]]
    assert len(commented) > 0.8 * len(keys)


def test_the_template_trains_one_model_unless_told_otherwise() -> None:
    loaded = config.load(TEMPLATE)
    assert not loaded.is_ensemble_enabled()
    assert loaded.seeds == (42,)
    assert config.load(TEMPLATE, ["ensemble.enabled=true"]).seeds == (42, 43, 44, 45, 46)


def test_the_quickstart_is_an_ensemble_of_four_that_saves_all() -> None:
    loaded = config.load(CONFIGS / "chignolin.yaml")
    assert loaded.seeds == (42, 43, 44, 45)
    assert loaded.get_ensemble_config().save_all_models
    assert loaded.model.priors.r0 == 3.873 and loaded.model.use_priors


def test_the_gamma_of_alanine_dipeptide_weighs_the_energy_per_atom() -> None:
    loaded = config.load(CONFIGS / "ala2.yaml")
    assert abs(loaded.training.gammas.U * 22**2 - 1) < 0.05
    assert loaded.data.units.energy == "eV" and not loaded.model.use_priors


def examples() -> list[str]:
    """The configurations in the documentation."""
    text = (CONFIGS.parent / "docs" / "configuration.md").read_text()
    return [block.partition("```")[0] for block in text.split("```yaml\n")[1:]]


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_in_the_documentation_are_sound(number: int) -> None:
    loaded = config.parse_with_notes(examples()[number], "docs/configuration.md")
    assert loaded.notes == ()
    assert loaded.config.is_ensemble_enabled()
    assert len(examples()) == 2
