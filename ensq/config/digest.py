"""The configuration as canonical JSON, its digest, and what differs between two of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ensq.config import yamltext
from ensq.config.structs import RunConfig
from ensq.errors import ConfigError
from ensq.rundir import sha256

# What may change without making it another ensemble: how many seeds, what is exported, when members
# stop early, how SLURM is asked, where the data and the splines lie (the data's digest is recorded,
# the splines stand in the form), on the disk and while they are trained on, how memory is saved.
_FREE = (
    ("ensemble", "n_models"),
    ("ensemble", "save_all_models"),
    ("export",),
    ("early_stopping",),
    ("slurm",),
    ("training", "export_path"),
    ("training", "micro_batch"),
    ("data", "path"),
    ("data", "placement"),
    ("model", "priors", "spline_file"),
)
_SPLINES = "model.priors.splines."


def dumps(config: RunConfig) -> str:
    """The full configuration, defaults included, as canonical JSON."""
    return json.dumps(msgspec.to_builtins(config), sort_keys=True, separators=(",", ":"))


def loads(text: str) -> RunConfig:
    """The configuration from the JSON of ``dumps``, as a database or a result file holds it.

    Raises ConfigError if it is something else.
    """
    try:
        return msgspec.json.decode(text.encode(), type=RunConfig)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        what = yamltext.clipped(str(error), 200)
        raise ConfigError(
            f"the recorded configuration can't be read: {what}; the database or the file that "
            "holds it was changed or is of another version of ensq"
        ) from error


def identity(config: RunConfig) -> dict[str, Any]:
    """The part of the configuration that decides what is trained."""
    full: dict[str, Any] = msgspec.to_builtins(config)
    for *sections, key in _FREE:
        node = full
        for section in sections:
            node = node[section]
        del node[key]
    if config.ensemble.enabled:
        del full["seed"]  # ignored when an ensemble is trained
    else:
        del full["ensemble"]["base_seed"]
    return full


def digest(config: RunConfig) -> str:
    """SHA-256 over the part of the configuration that decides what is trained."""
    text = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    return sha256(text.encode())


def changed_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """The keys in dot notation, with both values, in which two configurations differ.

    Of splines, which are tables of numbers, the digests are compared as one.
    """
    before, after = _flatten(identity(old)), _flatten(identity(new))
    for flat in (before, after):
        _draw_splines_together(flat)
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _draw_splines_together(flat: dict[str, Any]) -> None:
    table = {key: flat.pop(key) for key in list(flat) if key.startswith(_SPLINES)}
    if table:
        text = json.dumps(table, sort_keys=True)
        flat[_SPLINES[:-1]] = f"SHA-256 {sha256(text.encode())[:12]}…"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    items: list[tuple[str, Any]]
    if isinstance(value, dict) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat
