"""Mutated checkpoints and results: safetensors with lying headers, sealed or not."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_text import HOSTILE_NAMES, Mutator, flips_of, one_of
from fuzz_tools import Loader, bytes_mutated

from ensq.train import checkpoint
from ensq.train.checkpoint import HISTORY_COLUMNS, Identity, MemberResult, Record

_IDENTITY = Identity("a" * 64, "b" * 64)
_STATE = {
    "params": {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)},
    "step": np.int32(4),
}
_HISTORY = [tuple(float(i + j) for j in range(len(HISTORY_COLUMNS))) for i in range(2)]
_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**30, "", "x", "0x1p4000", "nan", "inf", "1e999", [], {}, [1],
    {"a": 1}, "9" * 5000, [[[]]], *HOSTILE_NAMES[:6],
)  # fmt: skip


def seed_files(folder: Path) -> tuple[bytes, bytes]:
    """A valid checkpoint and a valid result."""
    from ensq.config import dumps, load

    record = Record(seed=42, best_epoch=2, best_loss=0.5, history=list(_HISTORY))
    path = folder / "seed.safetensors"
    checkpoint.write_checkpoint(path, _STATE, record, 2, 0, _IDENTITY)
    configs = Path(__file__).parents[1] / "configs"
    result = MemberResult(
        params={"layer": {"w": np.ones((3, 2), np.float32)}},
        seed=42,
        best_epoch=2,
        best_loss=0.5,
        final_loss=0.75,
        force_errors=np.ones(4),
        energy_errors=np.ones(4),
        components=np.full(4, 12),
        beads=np.full(4, 4),
        protein=np.zeros(4, int),
        species_errors=np.ones((1, 2)),
        species_components=np.ones((1, 2)),
        validation_index=np.arange(4),
        history=np.array(_HISTORY),
        statistics={
            "n_species": 2,
            "avg_num_neighbors": 3.0,
            "energy_shift": [0.0, 0.0],
            "energy_scale": 1.0,
            "elements": False,
        },
        species_names=("A", "B"),
        protein_names=("p",),
        config=dumps(load(configs / "chignolin.yaml")),
        identity=_IDENTITY,
        versions={"jax": "1"},
    )
    return path.read_bytes(), checkpoint.result_bytes(result)


def _split(data: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def odd_header(seed: bytes) -> Mutator:
    """Tensors that lie about shape, type and place; other values in ensq's own part."""

    def mutate(rng: random.Random) -> bytes:
        header, body = _split(seed)
        for _ in range(rng.choice((1, 1, 2, 4))):
            names = [name for name in header if name != "__metadata__"]
            name = rng.choice(names)
            match rng.randrange(7):
                case 0 if len(names) > 2:
                    del header[name]
                case 1:
                    header[
                        rng.choice(
                            (*HOSTILE_NAMES[:8], "params" + "['a']" * 3000, "params", "params['']")
                        )
                    ] = header[name]
                case 2:
                    header[name]["dtype"] = rng.choice(
                        ("F64", "F16", "BF16", "I8", "U64", "BOOL", "F8_E4M3", "X", "", 1)
                    )
                case 3:
                    header[name]["shape"] = rng.choice(
                        ([], [0], [-1], [2**62, 4], [2**40], [1.5], "x", [1] * 100, [4], [2, 6])
                    )
                case 4:
                    header[name]["data_offsets"] = rng.choice(
                        ([0, 0], [8, 0], [0, 2**63], [-1, 8], [0], [0, len(body)], "x")
                    )
                case _:
                    _odd_meta(header, rng)
        return _joined(header, body)

    return mutate


def _odd_meta(header: Any, rng: random.Random) -> None:
    own = header["__metadata__"]["ensq"]
    try:
        meta = json.loads(own)
        key = rng.choice(list(meta))
        if rng.random() < 0.2:
            del meta[key]
        else:
            meta[key] = rng.choice(_ODD)
        header["__metadata__"]["ensq"] = json.dumps(meta)
    except (ValueError, TypeError, IndexError, AttributeError, RecursionError):
        return
    if rng.random() < 0.1:
        header["__metadata__"]["ensq"] = rng.choice(
            ("[" * 100_000, "{}", "null", "1", "", '{"a":' * 50_000, "9" * 5000, "NaN", '"\\ud800"')
        )


def odd_length(seed: bytes) -> Mutator:
    """The length of the header, and headers that are none."""

    def mutate(rng: random.Random) -> bytes:
        header, body = _split(seed)
        text = rng.choice(
            (
                b"[" * 100_000,
                b"{" * 100,
                b"{}",
                b"null",
                b"",
                b"\xff",
                b'{"a":' * 50_000,
                json.dumps(header).encode(),
            )
        )
        length = rng.choice((len(text), 0, 1, 2**63, 2**64 - 1, 2**31, 100_000_001, len(text) + 1))
        return struct.pack("<Q", length) + text + rng.choice((body, b""))

    return mutate


def mutator(seed: bytes) -> Mutator:
    def inside(rng: random.Random) -> bytes:
        (length,) = struct.unpack("<Q", seed[:8])
        header = bytes_mutated(rng, seed[8 : 8 + length])
        return _joined(header, seed[8 + length :])

    return one_of(
        flips_of([seed]), inside, odd_header(seed), odd_length(seed), weights=(25, 25, 45, 5)
    )


def loaders(folder: Path) -> dict[str, Callable[[], Loader]]:
    first, second = seed_files(folder)

    def restore(path: Path) -> None:
        data = path.read_bytes()
        checkpoint.read_position(data)
        checkpoint.restore(data, _STATE, _IDENTITY)

    def result(path: Path) -> None:
        checkpoint.read_result(path.read_bytes())

    return {
        "checkpoint": lambda: Loader("checkpoint", ".safetensors", mutator(first), restore),
        "result": lambda: Loader("result", ".safetensors", mutator(second), result),
    }
