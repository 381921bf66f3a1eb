"""Configurations of strangers: small texts that would become enormous, and values that are none."""

from __future__ import annotations

import random
import time
from pathlib import Path

import fuzz_config
import pytest
import yaml

from ensq import config
from ensq.config import yamltext
from ensq.errors import ConfigError

TEXT = """\
data: {path: set.npz}
model: {cutoff: 5.0, options: OPTIONS}
training: {stages: [{optimizer: adam, epochs: 1}]}
"""


def with_options(value: str) -> str:
    return TEXT.replace("OPTIONS", value)


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "c.yaml")
    message = str(caught.value)
    assert message.startswith("c.yaml: ")
    assert "\n" not in message and len(message) < 1000
    return message


def levels(first: str, pattern: str, count: int, width: int = 10) -> str:
    """A list of sections, each of which names the one before ``width`` times."""
    lines = [f"&a0 {first}"]
    for n in range(1, count):
        lines.append(f"&a{n} " + pattern.replace("…", ", ".join([f"*a{n - 1}"] * width)))
    return f"[{', '.join(lines)}]"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (levels("[lol]", "[…]", 30), "becomes larger than 4 MiB when its aliases"),
        (levels("{k: 1}", "{k: 1, <<: […]}", 30), "c.yaml: "),  # newer PyYAML merges a key once
        (
            levels(f"{{{', '.join(f'key{n}: 1' for n in range(3000))}}}", "{<<: […]}", 3),
            "<< brings",
        ),
        ("&a [*a]", "model.options.0 refers to itself"),
        ("&a {b: {c: *a}}", "model.options.b.c refers to itself"),
        ("[" * 40 + "]" * 40, "nested too deeply (line 2): 32 levels"),
        ("[" * 5000 + "]" * 5000, "c.yaml: "),
        ("[" + "1," * 200_000 + "]", "more than 200000 values"),
        ("9" * 101, "a number of 101 characters (line 2)"),
        ("1:" * 100_000 + "1", "a number of 200001 characters"),
        ("0x" + "f" * 5000, "a number of 5002 characters"),
        ("{a: 9223372036854775808}", "model.options.a: 9223372036854775808 is larger than 64 bits"),
        ("{a: 2001-01-01}", "model.options.a is a date to YAML: put it in quotes"),
        ("{a: 2001-99-99}", "not valid YAML: month must be in 1..12"),
        ("{a: !!set {b, c}}", "model.options.a is a set to YAML"),
        ("{a: !!binary aGVsbG8=}", "model.options.a is a bytes to YAML"),
        ("{a: !!omap [b: 1]}", "model.options.a"),
        ("{a: !!int ''}", "not valid YAML"),
        ("{a: !!float x}", "not valid YAML"),
        ("{a: !!bool x}", "not valid YAML"),
        ("{a: !!timestamp x}", "not valid YAML"),
        ('{a: "\\0"}', "model.options.a: the text holds U+0000"),
        ('{a: "\\ud800"}', "c.yaml: "),  # libyaml refuses it, PyYAML takes it
        ('{"\\e[2J": 1}', "unknown key 'model.options.\\x1b[2J'"),
        (f"{{{'k' * 201}: 1}}", "names of keys have 200 characters at most"),
        ("{1: 2}", "unknown key model.options.1: names of keys are text"),
    ],
)
def test_hostile_value_is_refused_at_once(value: str, message: str) -> None:
    start = time.process_time()
    assert message in error_of(with_options(value))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x85", "\x9b", "\u202e", "\u200b", "\n"])
def test_text_that_could_drive_a_terminal_is_refused(character: str) -> None:
    tree = yaml.safe_load(with_options("{}"))
    tree["protein_name"] = f"a{character}b"
    message = error_of(yaml.safe_dump(tree))
    assert f"protein_name: the text holds U+{ord(character):04X}" in message


def test_free_text_may_have_lines() -> None:
    value = config.parse(with_options('{a: "b\\n\\tc"}'), "c.yaml").model.options
    assert value == {"a": "b\n\tc"}


def test_aliases_and_merges_of_ordinary_size_are_taken() -> None:
    text = with_options("{a: &a {x: 1, y: 2}, b: {<<: *a, y: 3}, c: [*a, *a]}")
    options = config.parse(text, "c.yaml").model.options
    assert options["b"] == {"x": 1, "y": 3}
    assert options["c"] == [{"x": 1, "y": 2}] * 2


def test_section_that_merges_may_be_merged_before_it_is_made() -> None:
    """PyYAML merges in place: the key that a section gives anew then stands in it twice."""
    text = with_options("{a: &a {key: 1}, m: {n: &b {<<: *a, key: 2}}, c: {<<: *b}}")
    options = config.parse(text, "c.yaml").model.options
    assert options["m"]["n"] == options["c"] == {"key": 2}


def test_plain_safe_loader_would_take_a_bomb() -> None:
    """The control of the limits: what is refused above is no error to YAML."""
    tree = yaml.safe_load(with_options(levels("[lol]", "[…]", 30)))
    assert len(tree["model"]["options"]) == 30


def test_endless_file_is_refused(tmp_path: Path) -> None:
    """Its size isn't known before it is read, as for a pipe."""
    link = tmp_path / "c.yaml"
    link.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        config.load(link)


@pytest.mark.parametrize(
    "override",
    [
        "model.options=2001-99-99",
        "model.options=!!int ''",
        "model.options=&a [*a]",
        "model.cutoff=" + "9" * 5000,
        "training.stages." + "9" * 5000 + "=1",
        "model.options." + "a." * 100 + "b=1",
        "\udcff=1",
        "model.options.\x1b=1",
        "protein_name=a\udcff",
    ],
)
def test_hostile_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(with_options("{}"), "c.yaml", [override])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[" * 10**5, '{"data": 1}', "\udcff", '{"data": {"path": 1}}']
)
def test_recorded_configuration_that_was_changed_is_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError, match="the recorded configuration can't be read"):
        config.loads(text)


def test_parser_in_python_sets_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyYAML was built without libyaml."""
    monkeypatch.setattr(yamltext, "_Base", yaml.SafeLoader)
    for value in ("[" * 5000, "[" + "1," * 200 + "]", levels("[1]", "[…]", 30)):
        try:
            yamltext._check_size(with_options(value))
        except (ConfigError, yaml.YAMLError):
            assert value.startswith("[[")


def test_mutated_configurations_are_taken_or_refused(tmp_path: Path) -> None:
    """A short form of scripts/fuzz.py with mutations of its own."""
    for loader in fuzz_config.LOADERS:
        for number in range(100):
            path = tmp_path / f"input{loader.suffix}"
            path.write_bytes(loader.make(random.Random(f"{loader.name}-{number}")))
            try:
                loader.load(path)
            except ConfigError as error:
                assert len(str(error)) < 2000
