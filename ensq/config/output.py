"""The configuration written out: the full YAML form, and the JSON Schema for editors."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import yaml

from ensq.config.structs import RunConfig

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line, so that the table of a spline has a row in each."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        flat = not any(isinstance(item, dict | list | tuple) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_tree(config: RunConfig) -> dict[str, Any]:
    """The full form as plain values, in the order of the structs."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    return tree


def to_yaml(config: RunConfig) -> str:
    """The full form, defaults included, in the order of the structs; ensq reads it back."""
    text: str = yaml.dump(
        to_tree(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return text


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the configuration, with the structs' docstrings."""
    schema = msgspec.json.schema(RunConfig)
    return {"$schema": _DRAFT, "title": "Configuration of ensq", **_tidied(schema)}


def schema_text() -> str:
    """The schema as it is printed and committed."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _tidied(node: Any) -> Any:
    """Docstrings in one line, and no section's defaults beside those of its keys."""
    if isinstance(node, list | tuple):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {}
    for key, item in node.items():
        if key == "description" and isinstance(item, str):
            tidy[key] = " ".join(item.split())
        elif key != "default" or not isinstance(item, dict):
            tidy[key] = _tidied(item)
    return tidy
