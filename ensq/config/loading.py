"""From a YAML file and overrides to a ``RunConfig``, with errors that name the key."""

from __future__ import annotations

import copy
import difflib
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ensq.config import yamltext
from ensq.config.legacy import older_keys, translate
from ensq.config.lint import lint
from ensq.config.notes import Note
from ensq.config.splines import filled_in
from ensq.config.structs import RunConfig
from ensq.errors import ConfigError

_REQUIRED = ("data", "model", "training")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<key>.*)`")
_NUMBER_AS_TEXT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_MAX_BYTES = 4 * 1024 * 1024

_AFTER = " (the file is in an older form; keys are named as in ensq's)"

# Keys of the older form, which --set does not take: it comes after the translation.
_HINTS = {
    "decay_steps": "older files mean a cosine over 2 x decay_steps; write total_steps, which "
    "includes the warm-up",
    "warmup_epochs": "older files mean gradient steps by it; write warmup_steps",
    "stage1_optimizer": "write training.stages: [{optimizer: …, epochs: …}]",
    "stage2_optimizer": "write training.stages: [{optimizer: …, epochs: …}]",
}


@dataclass(frozen=True)
class Loaded:
    """A configuration, and what there is to say about the file that it came from."""

    config: RunConfig
    notes: tuple[Note, ...]


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file, of ensq's form or the older one, and apply ``KEY=VALUE``s.

    Raises ConfigError, whose text names the file and the key.
    """
    return load_with_notes(path, overrides).config


def load_with_notes(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """The same, with what was translated and what deserves a look."""
    config, notes = _parse(_read(path), str(path), overrides)
    config = filled_in(config, path)
    return Loaded(config, (*notes, *lint(config)))


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in ``text``; ``source`` is what errors call it.

    A file of splines is not read: the text has no place to look beside.
    """
    return parse_with_notes(text, source, overrides).config


def parse_with_notes(text: str, source: str, overrides: Sequence[str] = ()) -> Loaded:
    """The same, with notes."""
    config, notes = _parse(text, source, overrides)
    return Loaded(config, (*notes, *lint(config)))


def _parse(text: str, source: str, overrides: Sequence[str]) -> tuple[RunConfig, list[Note]]:
    """The configuration and what was translated. Overrides are in ensq's form and come after."""
    tree = _tree(text, source)
    notes: list[Note] = []
    older = bool(older_keys(tree))
    if older:
        try:
            tree, notes = translate(tree)
        except ConfigError as error:
            raise ConfigError(f"{source}: {yamltext.clipped(str(error))}") from error
    for override in overrides:
        _apply(tree, override)
        _check_tree(tree, source)
    _mean_off(tree)
    try:
        config = msgspec.convert(tree, RunConfig, strict=True)
    except msgspec.ValidationError as error:
        message = f"{source}: {_explain(str(error), tree)}"
        raise ConfigError(message + (_AFTER if older else "")) from error
    return config, notes


def _mean_off(tree: dict[str, Any]) -> None:
    """Take `mode: off` for what it says: YAML reads a bare off as false."""
    section = tree.get("early_stopping")
    if isinstance(section, dict) and section.get("mode") is False:
        tree["early_stopping"] = {**section, "mode": "off"}


def _tree(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yamltext.load(text)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{source}: a configuration is a mapping with the sections {', '.join(_REQUIRED)}; "
            f"this file holds {_kind(tree)}"
        )
    _check_tree(tree, source)
    return tree


def _check_tree(tree: dict[str, Any], source: str) -> None:
    try:
        yamltext.check(tree)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)  # of a device or a pipe no size is known before
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than 4 MiB, so not a configuration")
        # Line ends as in a file that is opened as text.
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in its name
        raise ConfigError(f"{str(path)!r} is no file name") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one value; the path must lead through mappings and existing list places."""
    key, equals, text = override.partition("=")
    override = yamltext.clipped(override, 100)  # from here on for messages only
    if not equals or not key:
        raise ConfigError(f"--set {override}: write KEY=VALUE, as in training.stages.0.epochs=3")
    try:
        value = yamltext.load(text)
    except ConfigError as error:
        raise ConfigError(f"--set {override}: the value is {error}") from error
    node: Any = tree
    *parents, last = key.split(".")
    if len(parents) > yamltext.MAX_DEPTH:
        raise ConfigError(f"--set {override}: there are no sections that deep")
    for depth, part in enumerate(parents):
        node = _enter(node, part, override, ".".join(parents[: depth + 1]))
    if isinstance(node, list):
        node[_place(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"--set {override}: {'.'.join(parents)} is {_kind(node)}, not a section")


def _enter(node: Any, part: str, override: str, so_far: str) -> Any:
    """What stands below ``part``, as a copy: by an anchor it may stand elsewhere too."""
    if isinstance(node, list):
        place = _place(node, part, override)
        node[place] = copy.copy(node[place])
        return node[place]
    if isinstance(node, dict):
        node[part] = {} if node.get(part) is None else copy.copy(node[part])
        return node[part]
    where = yamltext.clipped(so_far, 100)
    raise ConfigError(f"--set {override}: nothing can be set below {where}")


def _place(items: list[Any], text: str, override: str) -> int:
    if len(text) < 10 and text.isdecimal() and int(text) < len(items):
        return int(text)
    text = yamltext.clipped(text, 40)
    raise ConfigError(
        f"--set {override}: {text!r} is no place in a list of {len(items)} (0 is the first)"
    )


def _explain(message: str, tree: Any) -> str:
    """One line from msgspec's message: key in dot notation, what was wrong, what to write."""
    match = _AT.match(message)
    assert match is not None
    what, parts = match["what"], _parts(match["path"] or "")
    where = ".".join(parts)
    if unknown := _UNKNOWN.match(what):
        return _explain_unknown(parts, unknown["key"])
    if missing := _MISSING.match(what):
        return f"{'.'.join([*parts, missing['key']])} is missing"
    value = _value_at(tree, parts)
    wants_int = what.startswith("Expected `int")
    what = what.replace("`array", "`a list")  # msgspec speaks JSON
    what = yamltext.clipped(what.replace("`", "").replace("Expected", "expected"))
    if parts:
        what = what.removeprefix(f"{parts[-1]}: ")
    if what.startswith("Invalid enum value") and (allowed := _choices_at(parts)):
        what = f"expected one of {', '.join(allowed)}"
    text = f"{where}: {what}" if where else what
    number = _number_in(value)
    if number is not None:
        shown = f"{number:.0f}" if wants_int and number.is_integer() else _with_exponent(number)
        return (
            f"{text}; YAML reads {value} as text, since a number with an exponent needs a point "
            f"and a signed exponent: write {shown}"
        )
    if value is not None and not isinstance(value, dict | list):
        shown = repr(value)
        text += f" (the value is {shown if len(shown) < 60 else shown[:57] + '…'})"
    return text


def _number_in(value: Any) -> float | None:
    """The number that a text with an exponent was meant to be."""
    if not isinstance(value, str) or not _NUMBER_AS_TEXT.fullmatch(value.strip()):
        return None
    number = float(value)
    return number if math.isfinite(number) and len(value) < 60 else None


def _with_exponent(number: float) -> str:
    """A number in the shortest form that YAML reads as that number."""
    forms = (f"{number:.{digits}e}" for digits in range(1, 17))
    return next(form for form in forms if float(form) == number)


def _explain_unknown(parts: list[str], key: str) -> str:
    known = _fields_at(parts)
    where = ".".join([*parts, key])
    text = f"unknown key {where!r}" if not where.isprintable() else f"unknown key {where}"
    if key in _HINTS:
        return f"{text}: {_HINTS[key]}"
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"{text}; did you mean {close[0]}?"
    return f"{text}; known here: {', '.join(known)}" if known else text


def _parts(path: str) -> list[str]:
    """`$.training.stages[0].epochs` as its parts."""
    return [part for part in re.split(r"\.|\[|\]", path.removeprefix("$")) if part]


def _value_at(tree: Any, parts: Sequence[str]) -> Any:
    node = tree
    for part in parts:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node


def _fields_at(parts: Sequence[str]) -> list[str]:
    """The keys that the struct at a path knows."""
    kind: Any = RunConfig
    for part in parts:
        if _is_struct(kind) and not part.isdecimal():  # a place in a list leads to its items' kind
            kind = typing.get_type_hints(kind).get(part)
        kind = _inner(kind)
    return list(kind.__struct_fields__) if _is_struct(kind) else []


def _choices_at(parts: Sequence[str]) -> list[str]:
    """The values that a key with a fixed set of them takes."""
    kind: Any = RunConfig
    for part in parts:
        kind = _inner(kind)
        if _is_struct(kind) and not part.isdecimal():
            kind = typing.get_type_hints(kind).get(part)
    kinds = (kind, *typing.get_args(kind))  # one of a union may be the set
    return [choice for one in kinds for choice in typing.get_args(one) if isinstance(choice, str)]


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _inner(kind: Any) -> Any:
    """The struct inside ``X | None`` or ``tuple[X, ...]``, else the type itself."""
    origin = typing.get_origin(kind)
    if origin in (tuple, typing.Union, types.UnionType):
        return next((arg for arg in typing.get_args(kind) if _is_struct(arg)), kind)
    return kind


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {"list": "a list", "str": "text", "dict": "a section"}
    # Not by names.get: a section of aliases may be enormous as text.
    kind = type(value).__name__
    return names[kind] if kind in names else yamltext.clipped(f"the value {value!r}", 80)
