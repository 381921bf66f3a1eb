"""Mutated configurations and extended XYZ files."""

from __future__ import annotations

import copy
import gzip
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from fuzz_tools import bytes_mutated

ROOT = Path(__file__).parents[1]
Mutator = Callable[[random.Random], bytes]

HOSTILE_NAMES = (
    "\x1b]0;owned\x07", "\x1b[2J\x1b[H", "a\rb", "a\nb", "\x9b31m", "\u202egnp.exe", "a\x00b",
    "\u2028", "$(touch canary)", "`touch canary`", "; touch canary", "'; DROP TABLE jobs; --",
    "../../canary", "/etc/passwd", "%n%n%s", "{0.__class__}", "x" * 5000, "\ud800", "-rf", "~root",
    "con", "",
)  # fmt: skip


def one_of(*mutators: Mutator, weights: Sequence[int] | None = None) -> Mutator:
    """Each input by one of these."""
    return lambda rng: rng.choices(mutators, weights)[0](rng)


def flips_of(seeds: Sequence[bytes]) -> Mutator:
    return lambda rng: bytes_mutated(rng, rng.choice(seeds))


# -- configurations ----------------------------------------------------------------------------


def _nested(rng: random.Random) -> str:
    depth = rng.choice((10, 60, 200, 2000, 20000))
    return rng.choice(("[" * depth + "]" * depth, "{a: " * depth + "1" + "}" * depth))


def _laughs(rng: random.Random) -> str:
    """A value that is small as text and enormous when its aliases are written out."""
    width, depth = rng.choice(((2, 5), (10, 3), (10, 9), (9, 30), (40, 40)))
    inner = rng.choice(("lol", "[lol, lol]", "{a: 1}", "1.0"))
    lines = [f"&l0 {inner}"]
    for level in range(1, depth):
        lines.append(f"&l{level} [{', '.join([f'*l{level - 1}'] * width)}]")
    return "[" + ", ".join(lines) + "]"


def _merges(rng: random.Random) -> str:
    """The same by merge keys."""
    width, depth = rng.choice(((2, 3), (10, 8), (3, 30)))
    lines = ["&m0 {a: 1, b: 2}"]
    for level in range(1, depth):
        lines.append(f"&m{level} {{<<: [{', '.join([f'*m{level - 1}'] * width)}]}}")
    return "[" + ", ".join(lines) + "]"


_VALUES = (
    "null", "~", "true", "no", "0", "-1", "1", "-0.0", ".nan", ".inf", "-.inf", "1e999", "1e-3",
    "0x1F", "0o17", "017", "1_000", "190:20:30", "1:1:1:1:1.5", "9" * 400, "9" * 5000,
    "-" + "9" * 400, "1.0e+308", "1.7976931348623157e+308", "5e-324", "2147483648",
    "9223372036854775808", "[]", "{}", "[[]]", "[1]", "[null]", "{a: 1}", "{1: 2}", "{null: 1}",
    "{[a]: 1}", "{{a: 1}: 2}", "? [a, b]\n: c", "''", "'\\x00'", '"\\0"', '"\\e[2J"', '"\\u202e"',
    '"\\ud800"', '"\\x9b"', "2001-01-01", "2001-99-99", "2001-01-01 25:61:61",
    "!!timestamp 2001-01-01", "!!timestamp x", "!!int x", "!!int ''", "!!int 0b", "!!int '0x'",
    "!!float x", "!!float ''", "!!bool x", "!!null x", "!!binary x", "!!binary aGVsbG8=",
    "!!binary é", "!!set {a, b}", "!!omap [a: 1]", "!!omap x", "!!pairs [a: 1]", "!!seq x",
    "!!map x", "!!str [a]", "!!python/object/apply:os.system ['touch canary']",
    "!!python/name:os.system", "!!python/object/new:os.system ['touch canary']",
    "!!python/module:os", "!!python/tuple [1]",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch canary']", "!custom x", "!!", "!",
    "&a [*a]", "&a {b: *a}", "*nothing", "{<<: *nothing}", "{<<: 1}", "{<<: [1]}", "{<<: {a: 1}}",
    "{<<: {<<: {}}}", "&x {<<: *x}", "{a: 1, a: 2}", "{<<: {a: 1}, <<: {a: 2}}", "|\n  text",
    ">\n  text", "@", "`", "%TAG", "---", "...", "- a\n- b", "a: b: c", "\t", "#", "'", '"',
    "x" * 100_000, "[" + "1," * 5000 + "1]", "os:system", "builtins:exec", "subprocess:run",
    "../../x:y", "allegro;touch canary", "1x0e" * 200, "128x0e + 999999x1o", "0x0e", "-1x0e",
    "1x99e",
)  # fmt: skip


def _value(rng: random.Random) -> str:
    kind = rng.randrange(20)
    if kind == 0:
        return _nested(rng)
    if kind == 1:
        return _laughs(rng)
    if kind == 2:
        return _merges(rng)
    if kind == 3:
        return "".join(f"\\x{ord(c):02x}" if ord(c) < 256 else c for c in "\x1b[31m").join('""')
    if kind < 6:
        return yaml.dump(rng.choice(HOSTILE_NAMES), allow_unicode=rng.random() < 0.5).strip()
    return rng.choice(_VALUES)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place of a tree that a value can be put at, as container and key."""
    found: list[tuple[Any, Any]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, item in items:
        found.append((tree, key))
        if isinstance(item, dict | list) and item:
            found += _places(item)
    return found


def _own_trees() -> list[Any]:
    from ensq.config import load
    from ensq.config.output import to_tree

    names = ("ala2.yaml", "chignolin.yaml", "two_peptides.yaml", "config_template.yaml")
    trees = [yaml.safe_load((ROOT / "configs" / name).read_text()) for name in names]
    full = to_tree(load(ROOT / "configs" / "chignolin.yaml"))
    trees.append(
        yaml.safe_load(yaml.safe_dump(full | {"model": full["model"] | {"options": {"a": 1}}}))
    )
    return trees


def _older_trees() -> list[Any]:
    files = sorted((Path(__file__).parent / "legacy_configs").glob("*.yaml"))
    return [yaml.safe_load(file.read_text()) for file in files]


def with_values(trees: Sequence[Any]) -> Mutator:
    """Odd values, and now and then an odd key, at places of a valid configuration."""

    def mutate(rng: random.Random) -> bytes:
        tree = copy.deepcopy(rng.choice(trees))
        values = []
        for number in range(rng.choice((1, 1, 1, 2, 4))):
            places = _places(tree)
            if not places:
                break
            holder, key = rng.choice(places)
            hole = f"HOLE{number}HOLE"
            how = rng.randrange(10)
            if how < 7:
                holder[key] = hole
                values.append((hole, _value(rng)))
            elif how == 7 and isinstance(holder, dict):
                holder[hole] = holder.pop(key)
                values.append(
                    (hole, rng.choice(("x", "1", "null", "[a]", "'\\x1b'", '"\\e[2J"', "<<")))
                )
            elif how == 8:
                other_holder, other = rng.choice(places)
                holder[key] = copy.deepcopy(other_holder[other])
            else:
                del holder[key]
        text = yaml.safe_dump(tree, sort_keys=False, width=10**6)
        for hole, value in values:
            text = text.replace(hole, value)
        return text.encode("utf-8", "surrogatepass")

    return mutate


def _whole(rng: random.Random) -> bytes:
    """Files that are nothing but an odd value, or have one at their end."""
    start = rng.choice((b"", b"model: {cutoff: 5.0}\n", b"\xef\xbb\xbf", b"\xff\xfe", b"---\n"))
    return start + _value(rng).encode("utf-8", "surrogatepass") + rng.choice((b"", b"\n", b"\x00"))


def _merged(rng: random.Random) -> bytes:
    """A valid file beside bombs in a section that takes anything."""
    bomb = rng.choice((_laughs, _merges, _nested))(rng)
    where = rng.choice(("options", "allegro", "priors"))
    return (
        f"data: {{path: x.npz}}\nmodel: {{cutoff: 5.0, {where}: {{a: {bomb}}}}}\n"
        "training: {stages: [{optimizer: adam, epochs: 1}]}\n"
    ).encode()


def config_mutator() -> Mutator:
    files = [
        *(ROOT / "configs").glob("*.yaml"),
        *(Path(__file__).parent / "legacy_configs").glob("*"),
    ]
    return one_of(
        flips_of([file.read_bytes() for file in sorted(files)]),
        with_values(_own_trees()),
        with_values(_older_trees()),
        _whole,
        _merged,
        weights=(3, 4, 4, 1, 1),
    )


def override_mutator() -> Mutator:
    """``KEY=VALUE``s, one a line."""
    keys = (
        "training.stages.0.epochs", "model.options", "model.options.a.b", "data.path", "seed", "",
        ".", "a..b", "training.stages.99999999999999999999", "training.stages.-1", "model",
        "training.stages.٣", "training.stages.²", "seed.x", "\x1b[2J", "model.priors.a.0",
        "x" * 3000, "ensemble.n_models",
    )  # fmt: skip

    def mutate(rng: random.Random) -> bytes:
        lines = [f"{rng.choice(keys)}={_value(rng)}" for _ in range(rng.choice((1, 2, 3)))]
        text = "\x1e".join(lines)
        data = text.encode("utf-8", "surrogatepass")
        return bytes_mutated(rng, data, 2) if rng.random() < 0.3 else data

    return mutate


def stored_config_mutator() -> Mutator:
    """The canonical JSON of a configuration, as it stands in a database."""
    from ensq.config import dumps, load

    text = dumps(load(ROOT / "configs" / "chignolin.yaml")).encode()
    odd = (
        b"null",
        b"1e999",
        b"NaN",
        b"9" * 400,
        b"[" * 3000,
        b'"\\u0000"',
        b'"\\ud800"',
        b"{}",
        b"-1",
        b"1.5",
    )

    def values(rng: random.Random) -> bytes:
        spans = [m.span(1) for m in re.finditer(rb":([^,{}\[\]]+)", text)]
        start, stop = rng.choice(spans)
        return text[:start] + rng.choice(odd) + text[stop:]

    return one_of(flips_of([text]), values)


# -- extended XYZ ------------------------------------------------------------------------------

_WATER = """\
3
Lattice="9.0 0 0 0 9.0 0 0 0 9.0" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 replica=1
O 0.0 0.0 {0} 0.1 0.2 0.3
H 0.9 0.1 0.0 0.1 -.2 0.3
H -.3 0.9 0.0 0.0 0.0 -.6
"""
_OTHER = """\
4
Properties=species:S:1:pos:R:3:forces:R:3:Z:I:1 energy=-1.25 config_type=ethyl pbc="F F F" replica=2
C 0.0 0.0 {0} 1.1 0.2 0.3 6
H 1.1 0.0 0.0 1.1 -.2 0.3 1
H 0.0 1.1 0.0 0.0 0.0 -.6 1
H 0.0 0.0 1.1 0.0 0.0 -.6 1
"""
_HEAD = 5  # lines of the first frame
_XYZ = "".join(frame.format(n / 100) for n in range(5) for frame in (_WATER, _OTHER))
_COUNTS = (
    "0",
    "-1",
    "1",
    "2",
    "1000000000",
    "9" * 30,
    "9" * 5000,
    "٣",
    "²",
    "3.0",
    "1e9",
    "",
    " 3 ",
    "3 x",
)
_PROPERTIES = (
    "species:S:1:pos:R:3", "species:S:1:pos:R:100000000", "species:S:1:pos:R:-3",
    "species:S:1:pos:R:0", "species:S:1", "pos:R:3", "pos:R:3:species:S:1",
    "species:S:1:pos:R:3:pos:R:3", "species:S:1:pos:R", "species:S:1:pos:Q:3:forces:R:3",
    "species:S:1:pos:S:3:forces:R:3", "species:R:1:pos:R:3:forces:R:3", "Z:I:1:pos:R:3:forces:R:3",
    "species:S:1:pos:R:3:forces:R:2", "species:S:1:pos:R:3:forces:L:3", ":::", "",
    "species:S:1:pos:R:3:numbers:I:1", "species:S:1:pos:R:3:positions:R:3",
    "species:S:1:pos:R:9999999999999",
    "species:S:1:pos:R:3:forces:R:3:" + "a:R:1:" * 3000 + "b:R:1",
    "species:S:1:pos:R:3:" + "x:R:99999:" * 99, "species:S:1:pos:R:3:__class__:R:3",
    "species:S:1:pos:R:3:forces:R:1:forces:R:2", "species:S:1:pos:R:3:mass:R:3",
)  # fmt: skip
_INFO = (
    "energy=nan", "energy=inf", "energy=abc", 'energy="1 2 3"', "energy=T", "energy=" + "9" * 400,
    "energy=[1,2", "energy=_JSON 1", 'energy="_JSON {}"', 'energy="_JSON [[[["',
    'a="_JSON ' + "[" * 3000 + '"', "replica=1.5", "replica=" + "9" * 30, "replica=-1",
    'protein="\\x1b[2J"', "protein=\x1b[2J", "protein=a,b", "protein={1 2}", 'pbc="T T"',
    'pbc="X X X"', "pbc=T", 'pbc="1 1 1 1"', "pbc=", 'Lattice="1 2 3"',
    'Lattice="a b c d e f g h i"', 'Lattice="nan 0 0 0 1 0 0 0 1"', 'Lattice="0 0 0 0 0 0 0 0 0"',
    'Lattice="1e308 0 0 0 1e308 0 0 0 1e308"', 'Lattice="1e-300 0 0 0 1 0 0 0 1"',
    'Lattice="1 1 1 1 1 1 1 1 1"', "Lattice=", 'Lattice="9 9 9"', 'virial="1 2 3 4 5 6 7 8 9"',
    'stress="1"', "stress=x", "free_energy=1", "dipole=x", 'magmoms="1 2"', "forces=1",
    "positions=1", "numbers=1", "cell=1", "info=1", "calc=x", '"', "'", "{", "[", '"a b"=1', "=1",
    "a=b=c", 'a="b\\"', "a=[[1,2],[3]]", 'a="' + "x" * 100_000 + '"', "b " * 20000,
    "a=" + "[" * 500, "\x00", "\x0b", "a={1 2 3", "config_type=" + "c" * 5000, "config_type=\u202e",
    "species=1", "pbc=F", "Properties=x",
)  # fmt: skip
_ATOMS = (
    "H nan 0 0 0 0 0", "H inf 0 0 0 0 0", "H 1e308 0 0 0 0 0", "H a b c 0 0 0", "H 0 0", "H", "",
    "Xx 0 0 0 0 0 0", "X 0 0 0 0 0 0", "\x1b[2J 0 0 0 0 0 0", "1 0 0 0 0 0 0",
    "H 0 0 0 0 0 0 0 0 0 0", "999 0 0 0 0 0 0", "H 0,0 0 0 0 0 0", "H 0x1 0 0 0 0 0",
    "H 1_0 0 0 0 0 0", "H\x000 0 0 0 0 0", "H" * 10000 + " 0 0 0 0 0 0", "H " + "0 " * 50000,
    "é 0 0 0 0 0 0", "H ٣ 0 0 0 0 0", "H 0 0 0 0 0 0\r", "H 1e-400 0 0 0 0 0", "-1 0 0 0 0 0 0",
)  # fmt: skip


def _lines(rng: random.Random) -> bytes:
    """A valid file with odd counts, comments and atoms."""
    lines = _XYZ.splitlines()
    if rng.random() < 0.5:
        lines = lines[:_HEAD]
    for _ in range(rng.choice((1, 1, 2, 3))):
        match rng.randrange(6):
            case 0:
                lines[rng.choice((0, _HEAD)) % len(lines)] = rng.choice(_COUNTS)
            case 1:
                lines[1] = re.sub(
                    r"Properties=\S*", lambda _: f"Properties={rng.choice(_PROPERTIES)}", lines[1]
                )
            case 2:
                lines[1] += " " + rng.choice(_INFO)
            case 3:
                lines[1] = rng.choice(_INFO) + " " + lines[1]
            case 4:
                lines[rng.randrange(2, len(lines))] = rng.choice(_ATOMS)
            case _:
                a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
                lines[a], lines[b] = lines[b], lines[a]
    end = rng.choice(("\n", "\n", "\n", "\r\n", ""))
    return (rng.choice(("\n", "\n", "\r\n", "\r")).join(lines) + end).encode(
        "utf-8", "surrogatepass"
    )


def _sizes(rng: random.Random) -> bytes:
    """Frames of very different sizes, or one of many atoms."""
    head = "Properties=species:S:1:pos:R:3:forces:R:3 energy=0.0"

    def frame(atoms: int) -> str:
        body = "".join(f"H {2 * i}.0 0 0 0 0 0\n" for i in range(atoms))
        return f"{atoms}\n{head}\n{body}"

    small, large = rng.choice(((1, 200), (500, 3), (300, 3000), (0, 20000), (20, 1)))
    return (frame(2) * small + frame(large)).encode()


def xyz_mutator() -> Mutator:
    return one_of(flips_of([_XYZ.encode()]), _lines, _sizes, weights=(40, 59, 1))


def xyz_gz_mutator() -> Mutator:
    packed = gzip.compress(_XYZ.encode(), mtime=0)

    def bomb(rng: random.Random) -> bytes:
        unit = rng.choice((b"\n", b"1", b"2\n\nH 0 0 0\nH 1 1 1\n", b"\x00", b"999999999\n"))
        return gzip.compress(unit * (rng.choice((2**19, 2**23, 2**25)) // len(unit)), mtime=0)

    def rest(rng: random.Random) -> bytes:
        return gzip.compress(_lines(rng), mtime=0)

    return one_of(flips_of([packed]), rest, bomb, weights=(70, 29, 1))
