"""Files of the older form (CG protein training of the same field), translated into ensq's own.

A file is of the older form if it holds a key that only that form has; a file that is valid as it
stands is never touched. What is in ensq's form already stays. Keys that neither form knows stay
too, so that the strict reading refuses them as everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from ensq.config.legacy_model import older_model_keys, translate_model
from ensq.config.legacy_training import (
    older_optimizer_keys,
    older_training_keys,
    translate_optimizer,
    translate_training,
    used_optimizers,
)
from ensq.config.notes import Note, Notes
from ensq.errors import ConfigError

_PREPROCESSING = {
    "buffer_multiplier": "frames are kept as they are, without a box around them",
    "park_multiplier": "padded beads are masked, so they need no place far away",
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
# Values of these keys are text even where they look like numbers.
_TEXT_KEYS = frozenset(
    (
        *("protein_name", "model_id", "model_context", "path", "export_path", "checkpoint_path"),
        *("trace_dir", "spline_file", "hidden_irreps", "readout_irreps", "options"),
    )
)
_LARGEST_WHOLE = 2**53  # above it a float doesn't know its neighbours


def older_keys(tree: dict[str, Any]) -> list[str]:
    """The keys, in dot notation, that only the older form has."""
    return list(_older_keys(tree))


def _older_keys(tree: dict[str, Any]) -> Iterator[str]:
    if "preprocessing" in tree:
        yield "preprocessing"
    for section, keys in (
        ("model", older_model_keys),
        ("training", older_training_keys),
        ("optimizer", older_optimizer_keys),
    ):
        if isinstance(tree.get(section), dict):
            yield from (f"{section}.{key}" for key in keys(tree[section]))


def translate(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Note]]:
    """The same settings in ensq's form, and what there is to say about them.

    Args:
        tree: A file of the older form, as YAML gives it; it is left as it is.

    Raises:
        ConfigError: Naming a key that can't be translated.
    """
    notes = Notes()
    new = _numbers(tree, notes)
    _text(new, notes)
    _preprocessing(new, notes)
    if isinstance(new.get("data"), dict):
        new["data"] = _data(new["data"], notes)
    if isinstance(new.get("model"), dict):
        new["model"] = translate_model(new["model"], notes)
    training, optimizer = new.get("training"), new.get("optimizer")
    optimizer = {} if optimizer is None else optimizer
    if isinstance(training, dict):
        new["training"] = training = translate_training(training, optimizer, notes)
        _pretraining(new, notes)
    if isinstance(optimizer, dict):
        new["optimizer"] = translate_optimizer(optimizer, used_optimizers(training), notes)
    _traps(tree, notes)
    return new, notes.found


def _numbers(tree: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """A copy in which numbers that are text (``1e-3``, to YAML) are numbers."""
    copies: dict[int, Any] = {}  # an anchor's node is copied once, however often it is named
    open_nodes: set[int] = set()

    def copied(node: Any, where: str) -> Any:
        if isinstance(node, str):
            return _number(node, where, notes)
        if isinstance(node, float):
            return _whole(node)
        if not isinstance(node, dict | list):
            return node
        if id(node) in open_nodes:
            raise ConfigError(f"{where} refers to itself")
        if id(node) not in copies:
            open_nodes.add(id(node))
            if isinstance(node, dict):
                copies[id(node)] = {
                    key: item if key in _TEXT_KEYS else copied(item, f"{where}.{key}")
                    for key, item in node.items()
                }
            else:
                copies[id(node)] = [copied(item, f"{where}.{i}") for i, item in enumerate(node)]
            open_nodes.discard(id(node))
        return copies[id(node)]

    return {
        key: item if key in _TEXT_KEYS else copied(item, str(key)) for key, item in tree.items()
    }


def _number(text: str, where: str, notes: Notes) -> Any:
    if not _NUMBER.fullmatch(text.strip()) or not math.isfinite(float(text)):
        return text
    value = float(text)
    notes.translated(where, f"{text.strip()!r} is text to YAML; read as the number {value:g}")
    return _whole(value)


def _whole(value: float) -> int | float:
    """As an integer if it is one: ``1.0e+3`` steps were 1000 there; decimals take either."""
    return int(value) if value.is_integer() and abs(value) < _LARGEST_WHOLE else value


def _text(new: dict[str, Any], notes: Notes) -> None:
    for key in ("protein_name", "model_id", "model_context"):
        value = new.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            new[key] = str(value)
            notes.translated(key, f"the number {value} is taken as text")


def _preprocessing(new: dict[str, Any], notes: Notes) -> None:
    section = new.get("preprocessing")
    if section is not None and not isinstance(section, dict):
        return
    left = {}
    for key, value in (section or {}).items():
        if key in _PREPROCESSING:
            notes.no_effect(f"preprocessing.{key}", _PREPROCESSING[key])
        else:
            left[key] = value
    new.pop("preprocessing", None)
    for key in left:
        known = ", ".join(_PREPROCESSING)
        raise ConfigError(f"unknown key preprocessing.{key}; known here: {known}")


def _data(data: dict[str, Any], notes: Notes) -> dict[str, Any]:
    new = dict(data)
    if new.get("max_frames") == -1:
        new["max_frames"] = None
        notes.translated("data.max_frames", "-1 -> null: all frames")
    return new


def _pretraining(new: dict[str, Any], notes: Notes) -> None:
    """A fit of priors that are switched off was nothing there; here it would be an error."""
    model = new.get("model")
    priors = isinstance(model, dict) and model.get("use_priors")
    if not priors and new["training"].get("pretrain_prior") is True:
        new["training"]["pretrain_prior"] = False
        notes.no_effect("training.pretrain_prior", "model.use_priors is off: nothing to fit")


def _traps(tree: dict[str, Any], notes: Notes) -> None:
    """What the older code did with every such file, or with those that have these keys."""
    data, training = _section(tree, "data"), _section(tree, "training")
    notes.trap(
        "training",
        "there the reported loss was the last epoch's, the parameters were the best epoch's; "
        "here both are the best epoch's",
    )
    notes.trap(
        "training.val_fraction",
        "there a small validation set silently became the training set; here too few frames "
        "are an error",
    )
    notes.trap(
        "data.path",
        "there the number of species and the room for neighbours came from frame 0 alone; "
        "here from all frames",
    )
    if "split" not in data:
        notes.trap(
            "data.split",
            "there the last frames validated, unshuffled; here a shuffled share does. "
            "`by: tail` takes the end of each trajectory",
        )
    _trap_of_max_frames(data, notes)
    if "checkpoint_path" in training or _section(tree, "ensemble").get("enabled") is True:
        notes.trap(
            "training.checkpoint_path",
            "there all members wrote into one checkpoint folder; here each attempt of each "
            "member has its own",
        )
    if isinstance(_section(training, "gammas").get("U"), int | float) and training["gammas"]["U"]:
        notes.hint(
            "training.gammas.U", "the data must hold U (energies): `ensq config check --data` tells"
        )


def _trap_of_max_frames(data: dict[str, Any], notes: Notes) -> None:
    if data.get("max_frames") in (None, -1):
        text = "there, without max_frames, frames were never shuffled; here by data.seed"
    else:
        text = (
            "there frames were shuffled only if the data hold more than max_frames; here the "
            "choice and the split always go by data.seed"
        )
    notes.trap("data.max_frames", text)


def _section(tree: dict[str, Any], key: str) -> dict[str, Any]:
    section = tree.get(key)
    return section if isinstance(section, dict) else {}
