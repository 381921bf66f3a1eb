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
import yaml

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
        _check_tree(tree, source)
        try:
            tree, notes = translate(tree)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        except RecursionError as error:
            raise ConfigError(f"{source}: nested too deeply") from error
    for override in overrides:
        _apply(tree, override)
    _check_tree(tree, source)
    try:
        config = msgspec.convert(tree, RunConfig, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        message = f"{source}: {_explain(str(error), tree)}"
        raise ConfigError(message + (_AFTER if older else "")) from error
    return config, notes


def _tree(text: str, source: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {_first_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{source}: a configuration is a mapping with the sections {', '.join(_REQUIRED)}; "
            f"this file holds {_kind(tree)}"
        )
    return tree


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice is an error: the last would win unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise yaml.YAMLError(f"key {key.value!r} is given twice (line {line})")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_tree(tree: dict[str, Any], source: str) -> None:
    """What no key takes: a NaN, an infinity, or a name that is no text."""
    nodes: list[tuple[str, Any]] = [("", tree)]
    seen: set[int] = set()  # YAML's anchors can make a tree enormous, or endless
    while nodes:
        where, node = nodes.pop()
        if isinstance(node, float) and not math.isfinite(node):
            raise ConfigError(f"{source}: {where} must be a finite number, not {node}")
        if not isinstance(node, dict | list) or id(node) in seen:
            continue
        seen.add(id(node))
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            below = f"{where}.{key}" if where else f"{key}"
            if isinstance(node, dict) and not isinstance(key, str):
                raise ConfigError(f"{source}: unknown key {below}: names of keys are text")
            nodes.append((below, item))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than 4 MiB, so not a configuration")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one value; the path must lead through mappings and existing list places."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: write KEY=VALUE, as in training.stages.0.epochs=3")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    node: Any = tree
    *parents, last = key.split(".")
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
    raise ConfigError(f"--set {override}: nothing can be set below {so_far}")


def _place(items: list[Any], text: str, override: str) -> int:
    if text.isdecimal() and int(text) < len(items):
        return int(text)
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
    what = what.replace("`", "").replace("Expected", "expected")
    if parts:
        what = what.removeprefix(f"{parts[-1]}: ")
    if what.startswith("Invalid enum value") and (allowed := _choices_at(parts)):
        what = f"expected one of {', '.join(allowed)}"
    text = f"{where}: {what}" if where else what
    if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value.strip()):
        number = float(value)
        shown = f"{number:.0f}" if wants_int and number.is_integer() else _with_exponent(number)
        return (
            f"{text}; YAML reads {value} as text, since a number with an exponent needs a point "
            f"and a signed exponent: write {shown}"
        )
    if value is not None and not isinstance(value, dict | list):
        shown = repr(value)
        text += f" (the value is {shown if len(shown) < 60 else shown[:57] + '…'})"
    return text


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
    return names.get(type(value).__name__, f"the value {value!r}")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
