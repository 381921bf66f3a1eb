"""The JSON Schema of the configuration, as editors use it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from legacy_tools import NAMES, write_samples

from ensq import config
from ensq.config.output import json_schema, schema_text, to_yaml

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
COMMITTED = ROOT / "configs" / "config.schema.json"


def errors(tree: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(json_schema()).iter_errors(tree)]


def test_the_committed_schema_is_the_one_that_is_printed() -> None:
    """If not: `ensq config schema > configs/config.schema.json`."""
    assert COMMITTED.read_text() == schema_text()
    assert json.loads(schema_text()) == json_schema()


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"].startswith("https://json-schema.org/")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_shipped_configuration_fits_the_schema(file: Path) -> None:
    assert errors(yaml.safe_load(file.read_text())) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_full_form_fits_the_schema(tmp_path: Path, name: str) -> None:
    loaded = config.load(write_samples(tmp_path) / f"{name}.yaml")
    assert errors(yaml.safe_load(to_yaml(loaded))) == []


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("model.cutof", 3.0),
        ("model.cutoff", "far"),
        ("model.cutoff", -1.0),
        ("model.allegro.max_ell", 4),
        ("training.stages", []),
        ("training.val_fraction", 1.0),
        ("data.units.energy", "cal"),
        ("ensemble.n_models", 0),
        ("data", None),
    ],
)
def test_what_the_reading_refuses_the_schema_refuses(at: str, value: Any) -> None:
    tree = copy.deepcopy(yaml.safe_load((ROOT / "configs" / "config_template.yaml").read_text()))
    node = tree
    *parents, last = at.split(".")
    for part in parents:
        node = node[part]
    node[last] = value
    assert errors(tree) != []


def test_sections_are_described() -> None:
    for name, struct in json_schema()["$defs"].items():
        assert struct["description"].strip().endswith((".", ":")), name
        assert "\n" not in struct["description"]
