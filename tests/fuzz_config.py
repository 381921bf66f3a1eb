"""Hostile configurations: YAML of both forms, overrides, and the JSON that a database records."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import yaml
from fuzz_tools import Loader, bytes_mutated

from ensq import config

_HERE = Path(__file__).parent
_SMALL = b"""\
data: {path: set.npz, split: {by: replica, validation: [1]}, keys: {R: pos}}
model:
  cutoff: 5.0
  ml_model: allegro
  allegro: {max_ell: 1, num_layers: 1}
  options: {a: [1, 2, {b: c}]}
  use_priors: true
  priors: {r0: 3.8, kr: 20.0, a: [1.0, 2.0], b: [0.5, 0.25]}
training:
  stages:
    - {optimizer: adam, epochs: 3}
    - {optimizer: lion, epochs: 2}
  gammas: {F: 1.0, U: 0.1}
optimizer: {grad_clip: 1.0, adam: {lr: 1.0e-3, warmup_steps: 10}}
ensemble: {enabled: true, n_models: 3, base_seed: 42}
model_context: small
protein_name: chignolin
"""
_SCALARS = (  # noqa: SIM905 (a list of quoted marks would be no easier to read)
    "~ true yes .nan .inf -.inf 1e999 -1 0 1 0x10 0o17 0b1 1_0 1:30:00 1:1.5 2001-01-01 "
    "2001-99-99 2001-12-14t21:59:43.10-05:00 99999999999999999999999 1.5 -0.0 1e-400 '' "
    "\"\\0\" \"\\ud800\" \"\\x1b[2J\" \"\\x9b\" \"\\u202e\" $(touch_x) `touch_x` ; ../../../x "
    "/etc/passwd [] {} [[]] !!null !!int !!float !!bool !!binary !!set !!omap !!pairs *a &a "
    "!!timestamp !!python/object:os.system !!python/object/apply:os.system ! !x !<x> << = <<:"
).split()  # fmt: skip
_TAGGED = (
    "!!int ''", "!!int abc", "!!int '0b'", "!!int '0x'", "!!int '-'", "!!int '1:x'", "!!float ''",
    "!!float x", "!!bool x", "!!bool ''", "!!timestamp x", "!!binary '%'", "!!binary é", "!!null x",
    "!!set {a, b}", "!!set [a]", "!!omap [a: 1]", "!!omap {a: 1}", "!!pairs [a: 1, a: 2]",
    "!!seq {}", "!!map []", "!!str {}", "!!str 1", "!!merge x", "!!python/name:os.system ''",
    "!!python/object/apply:os.system ['touch canary']", "!!python/object/new:os.system [x]",
    "!!python/module:os ''", "!!python/tuple [1]", "? [a]\n: 1", "{[a]: 1}", "{{a: 1}: 1}",
    "{1: 2}", "{null: 1}", "{a: 1, a: 2}", "{? : 1}", "|\n  text", ">\n  text", "'a''b'",
    "%YAML 9.9",
)  # fmt: skip
_ANY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308,
    1e-320, float("nan"), float("inf"), "", "a", "1e-3", "1e5", "1e400", "9" * 400, "nan",
    "\x1b[31m", "\x85", "\u202egpj", "\u2028", "../../etc/passwd", "/dev/zero", "/dev/fd/0",
    "$(touch canary)", "os:system", "x.y:z", "a" * 5000, "mace", "trace", [], {}, [[]], [1, "a"],
    {"a": 1}, {"": 1}, [{"optimizer": "adam"}], {"optimizer": {}}, [0] * 300, b"bytes", "none",
    "128x0e + 128x1o",
)  # fmt: skip


def _seeds() -> list[bytes]:
    older = sorted((_HERE / "legacy_configs").glob("*.yaml"))
    return [_SMALL, _SMALL, *(path.read_bytes() for path in older)]


def _make(rng: random.Random) -> bytes:
    seed = rng.choice(_seeds())
    how = rng.randrange(10)
    if how < 3:
        return bytes_mutated(rng, seed)
    if how < 6:
        return _retold(rng, seed)
    if how < 8:
        return _reworded(rng, seed.decode()).encode("utf-8", "surrogatepass")
    return rng.choice(_BOMBS)(rng).encode("utf-8", "surrogatepass")


def _retold(rng: random.Random, seed: bytes) -> bytes:
    """Other values, keys and places in the tree."""
    tree = yaml.safe_load(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        holder, key = _place(rng, tree)
        value = copy.deepcopy(rng.choice(_ANY))
        what = rng.randrange(5)
        if what <= 2:
            holder[key] = value
        elif what == 3:
            del holder[key]
        elif isinstance(holder, dict):
            name = rng.choice((*map(str, _ANY[:20]), "preprocessing", "decay_steps", 1, None, 1.5))
            holder[name] = value
        if not tree:
            break
    if rng.random() < 0.5:
        return yaml.dump(tree, allow_unicode=rng.random() < 0.5, width=1000).encode(
            "utf-8", "surrogatepass"
        )
    return json.dumps(tree, default=str).encode()


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    places: list[tuple[Any, Any]] = []
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            places += [(node, key) for key in keys]
            nodes += [node[key] for key in keys]
    return rng.choice(places) if places else ({"x": 1}, "x")


def _reworded(rng: random.Random, text: str) -> str:
    """Other words in the text, with YAML's own marks among them."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        place = rng.randrange(len(lines))
        words = lines[place].split(" ")
        word = rng.choice((*_SCALARS, *_TAGGED))
        what = rng.randrange(6)
        if what <= 2:
            words[rng.randrange(len(words))] = word
        elif what == 3 and ":" in lines[place]:
            words = [lines[place].split(":")[0] + ":", word]
        elif what == 4:
            words.append(word)
        else:
            words = [*words, "\n", rng.choice(lines)]
        lines[place] = " ".join(words)
        text = "\n".join(lines)
    return text


def _with_options(rng: random.Random, value: str) -> str:
    """A valid configuration with this text as a free value, or elsewhere."""
    where = rng.choice(("options: {a: [1, 2, {b: c}]}", "cutoff: 5.0", "r0: 3.8", "R: pos"))
    key = where.split(":")[0]
    return _SMALL.decode().replace(where, f"{key}: {value}")


def _laughs(rng: random.Random) -> str:
    """A few lines that stand for billions."""
    width, depth = rng.choice(((2, 40), (9, 9), (50, 5), (1000, 3)))
    items = ["[lol]" if rng.random() < 0.5 else "{k: lol}"]
    lines = [f"a0: &a0 {items[0]}"]
    for n in range(1, depth):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]")
    block = "\n".join(f"    {line}" for line in lines)
    return _with_options(rng, f"\n{block}" if rng.random() < 0.7 else f"*a{depth - 1}")


def _merges(rng: random.Random) -> str:
    """Merged mappings that double with every line."""
    width, depth = rng.choice(((2, 40), (9, 9), (1000, 3), (1, 3)))
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for n in range(1, depth):
        lines.append(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}]}}")
    return _with_options(rng, "\n" + "\n".join(f"    {line}" for line in lines))


def _deep(rng: random.Random) -> str:
    depth = rng.choice((30, 99, 300, 1000, 5000, 100_000))
    pairs = (("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("[[], ", "]"))
    opening, closing = rng.choice(pairs)
    text = opening * depth + "1" + closing * rng.choice((0, depth))
    return text if rng.random() < 0.3 else _with_options(rng, text)


def _digits(rng: random.Random) -> str:
    n = rng.choice((30, 400, 5000, 100_000))
    digits = rng.choice(
        ("9" * n, "0x" + "f" * n, "0b" + "1" * n, "0" + "7" * n, ":".join("1" * n), "." + "9" * n,
         "1" * n + ".5", "1:" * n + "1.5", "1" + "_" * n, "1." + "0" * n + "e+5", f"1.0e+{'9' * n}",
         f"1e{'9' * n}")
    )  # fmt: skip
    return _with_options(rng, rng.choice(("", "-", "'", "!!int ", "!!float ")) + digits)


def _itself(rng: random.Random) -> str:
    return rng.choice(
        ("&a [*a]", "&a {b: *a}", "&a {<<: *a}", "&a {<<: [*a, *a]}", _with_options(rng, "&a [*a]"),
         _with_options(rng, "&a {b: {c: *a}}"), _with_options(rng, "&a !!set {*a : 1}"),
         "&a\n" + _SMALL.decode() + "preprocessing: *a\n", _SMALL.decode() + "z: &z {y: *z}\n")
    )  # fmt: skip


def _long(rng: random.Random) -> str:
    n = rng.choice((1000, 20_000, 200_000))
    keys = ",".join(f"k{place}: 1" for place in range(n // 40))
    value = rng.choice(
        ("a" * n, "'" + "\\" * n, '"' + "\\u202e" * (n // 6) + '"', "[" + "1," * (n // 20) + "]",
         f"{{{keys}}}", "&" + "a" * n + " 1", "*" + "a" * n, "!" + "a" * n + " 1", "# " + "c" * n,
         "|\n" + "      x\n" * (n // 20), "{" + "a" * n + ": 1}", "!!binary " + "A" * n,
         " " * n + "1", "\t" * n)
    )  # fmt: skip
    return _with_options(rng, value)


_BOMBS = (_laughs, _merges, _deep, _digits, _itself, _long)


def _use(loaded: config.Loaded) -> None:
    """What enqueueing makes of a configuration."""
    text = config.dumps(loaded.config)
    assert config.digest(config.loads(text)) == config.digest(loaded.config)
    from ensq.config.output import to_yaml

    to_yaml(loaded.config).encode()
    "\n".join([*config.report(loaded.notes), *config.summary_lines(loaded.notes, "c")]).encode()


def _load(path: Path) -> None:
    _use(config.load_with_notes(path))


# -- overrides -----------------------------------------------------------------------------------

_KEYS = (  # noqa: SIM905
    "training.stages.0.epochs training.stages.1 training.stages model.cutoff model.options "
    "model.options.a.2.b model.options.a.0 seed ensemble.n_models data.path model.priors.a.1 "
    "optimizer.adam.lr x training.stages.9.epochs training.stages.-1 model.priors.a.x . .. '' "
    "data.split.validation.0 training.stages.٣ training.stages.² model.cutoff.x"
).split()


def _make_override(rng: random.Random) -> bytes:
    key = rng.choice(_KEYS)
    value = rng.choice((*_SCALARS, *_TAGGED, *map(str, _ANY)))
    text = f"{key}={value}"
    if rng.random() < 0.2:
        text = f"{key}={rng.choice((_deep, _digits, _itself, _long))(rng)}"
    data = text.encode("utf-8", "surrogatepass")
    return bytes_mutated(rng, data, 1) if rng.random() < 0.3 else data


def _load_override(path: Path) -> None:
    # As the system hands over arguments that are no UTF-8.
    override = path.read_bytes().decode("utf-8", "surrogateescape")
    _use(config.parse_with_notes(_SMALL.decode(), "c.yaml", [override]))


# -- as recorded ---------------------------------------------------------------------------------


def _make_recorded(rng: random.Random) -> bytes:
    seed = config.dumps(config.parse(_SMALL.decode(), "c.yaml"))
    if rng.random() < 0.5:
        return bytes_mutated(rng, seed.encode())
    if rng.random() < 0.2:
        return rng.choice((b"[" * 10**5, b'{"a":' * 10**5, b"", b"null", b"9" * 10**5, b"1e999"))
    tree = json.loads(seed)
    for _ in range(rng.choice((1, 2, 5))):
        holder, key = _place(rng, tree)
        holder[key] = copy.deepcopy(rng.choice(_ANY))
    return json.dumps(tree, default=str).encode()


def _load_recorded(path: Path) -> None:
    # SQLite gives text, however it was put in.
    loaded = config.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    config.changed_keys(loaded, config.parse(_SMALL.decode(), "c.yaml"))
    config.digest(loaded)


LOADERS = (
    Loader("config", ".yaml", _make, _load),
    Loader("override", ".txt", _make_override, _load_override),
    Loader("recorded", ".json", _make_recorded, _load_recorded),
)
