"""Text in YAML to plain values, whoever wrote it: bounded in time and memory, and never run.

YAML's safe loader makes plain values only; no tag names a class or a function. What it leaves open
is how large a small file becomes: an alias stands for a whole section as often as it is named, and
a number may have a million digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml

from ensq.errors import ConfigError

# A full form with tables of splines for 20 species has 60,000 values; 32 sections within each
# other, names of 200 characters and texts of 4096 (a path's limit) are beyond any use.
MAX_VALUES = 200_000
MAX_DEPTH = 32
MAX_KEY = 200
MAX_TEXT = 4096
# Of all texts together and one for each value, after aliases are filled in.
MAX_EXPANDED = 4 * 1024 * 1024
_MAX_MERGED = 10_000  # entries that `<<` brings into one section
_MAX_DIGITS = 100
_LARGEST = 2**63  # JSON, in which configurations are recorded, is read with 64-bit integers
# Where text may have lines: free values for a factory of one's own.
_FREE = "model.options"

# libyaml's parser, where PyYAML has it, is ten times as fast.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str) -> Any:
    """Plain values. Raises ConfigError, whose text doesn't name the source."""
    try:
        _check_size(text)
        return yaml.load(text, _Loader)
    except ConfigError:
        raise
    except Exception as error:  # PyYAML raises whatever its parts raise, as for `!!int ''`
        raise ConfigError(f"not valid YAML: {_one_line(error)}") from error


def check(tree: Any) -> None:
    """Raise ConfigError for what no key takes: NaN, endless trees, text that is none."""
    done: dict[int, int] = {}  # a node that is named often is looked at once
    _size(tree, "", 0, done)


def clipped(text: str, length: int = 500) -> str:
    """Text for a message, not longer than that."""
    return text if len(text) <= length else text[: length - 1] + "…"


class _Loader(_Base):  # type: ignore[misc]
    """YAML's safe loader, except that a key given twice is an error: the last would win unseen."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names, unless it is out of all measure."""
        if "checked" not in vars(node):  # merging leaves keys twice that are given once
            vars(node)["checked"] = True
            _check_keys(node)
        merged = 0
        for source in _merged(node):
            self.flatten_mapping(source)
            merged += 1 + len(source.value)
            if merged > _MAX_MERGED:
                raise yaml.YAMLError(f"<< brings more than {_MAX_MERGED} keys into one section")
        super().flatten_mapping(node)

    def number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > _MAX_DIGITS:
            raise yaml.YAMLError(
                f"a number of {len(node.value)} characters{_line(node)}; {_MAX_DIGITS} are the most"
            )
        whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.number)


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                name = clipped(repr(key.value), 80)
                raise yaml.YAMLError(f"key {name} is given twice{_line(key)}")
            seen.add(key.value)


def _line(place: yaml.Node | yaml.Event) -> str:
    return "" if place.start_mark is None else f" (line {place.start_mark.line + 1})"


def _merged(node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from (source for source in sources if isinstance(source, yaml.MappingNode))


def _check_size(text: str) -> None:
    """Count values and depth before anything is made of them."""
    values = depth = 0
    for event in yaml.parse(text, _Base):
        if isinstance(event, yaml.NodeEvent):
            values += 1
            if values > MAX_VALUES:
                raise ConfigError(
                    f"more than {MAX_VALUES} values, so not a configuration (tables of splines "
                    "belong into model.priors.spline_file)"
                )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"nested too deeply{_line(event)}: {MAX_DEPTH} levels at most")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _size(node: Any, where: str, depth: int, done: dict[int, int]) -> int:
    """What a node comes to with its aliases filled in, after it was looked at."""
    if not isinstance(node, dict | list):
        return _value(node, where)
    if id(node) in done:
        size = done[id(node)]
        if size < 0:
            raise ConfigError(f"{where} refers to itself")
        return size
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where}: nested too deeply: {MAX_DEPTH} levels at most")
    done[id(node)] = -1
    size = 1
    for key, item in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(node, dict):
            size += _key(key, where)
        size += _size(item, f"{where}.{key}" if where else f"{key}", depth + 1, done)
        if size > MAX_EXPANDED:
            raise ConfigError(
                f"{where or 'the whole'} becomes larger than {MAX_EXPANDED >> 20} MiB when its "
                "aliases (*name) are filled in"
            )
    done[id(node)] = size
    return size


def _key(key: Any, where: str) -> int:
    below = clipped(f"{key}", 80)
    below = f"{where}.{below}" if where else below
    if not isinstance(key, str):
        raise ConfigError(f"unknown key {below}: names of keys are text")
    if not key.isprintable():
        raise ConfigError(f"unknown key {below!r}: it holds characters that can't be seen")
    if len(key) > MAX_KEY:
        raise ConfigError(f"unknown key {below}: names of keys have {MAX_KEY} characters at most")
    return len(key)


def _value(value: Any, where: str) -> int:
    """Look at a single value; its size."""
    if isinstance(value, str):
        free = where == _FREE or where.startswith(f"{_FREE}.")
        if not free and len(value) > MAX_TEXT:
            raise ConfigError(f"{where}: a text of {len(value)} characters; {MAX_TEXT} at most")
        wrong = next((c for c in value if not c.isprintable() and not (free and c in "\n\t")), None)
        if wrong is not None:
            raise ConfigError(
                f"{where}: the text holds U+{ord(wrong):04X}, a character that can't be seen; "
                "take it out"
            )
        return 1 + len(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ConfigError(f"{where}: {clipped(str(value), 60)} is larger than 64 bits hold")
    if value is not None and not isinstance(value, bool | int | float):
        kind = type(value).__name__
        raise ConfigError(f"{where} is a {kind} to YAML: put it in quotes to make it text")
    return 1


def _one_line(error: BaseException) -> str:
    return clipped(" ".join(str(error).split()) or type(error).__name__, 200)
