"""Checkpoints and results of strangers: whatever the bytes are, there is a CheckpointError."""

from __future__ import annotations

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_checkpoint import IDENTITY, STATE, record

from ensq import seal
from ensq.errors import CheckpointError
from ensq.train import checkpoint, sealed
from ensq.train.checkpoint import MemberResult

ARRAYS = {
    "params['network']['w']": np.ones((2, 3), np.float32),
    "force_errors": np.ones(4),
    "energy_errors": np.ones(4),
    "components": np.full(4, 9),
    "beads": np.full(4, 3),
    "protein": np.zeros(4, np.int64),
    "species_errors": np.ones((1, 2)),
    "species_components": np.full((1, 2), 18),
    "validation_index": np.arange(4),
    "history": np.ones((3, 6)),
}
RESULT_META = {
    "kind": "result",
    "seed": 1,
    "best_epoch": 2,
    "best_loss": (1.0).hex(),
    "final_loss": (1.0).hex(),
    "statistics": {
        "n_species": 2,
        "avg_num_neighbors": 3.5,
        "energy_shift": [0.0, -1.5],
        "energy_scale": 2.0,
        "elements": False,
    },
    "species_names": ["A", "B"],
    "protein_names": ["x"],
    "config": "{}",
    "config_digest": "c",
    "data_digest": "d",
    "versions": {"jax": "1"},
}


def result(arrays: dict[str, Any] | None = None, **meta: Any) -> bytes:
    """A result with some arrays and metadata changed; what is ... is left out."""
    full = {k: v for k, v in {**RESULT_META, **meta}.items() if v is not ...}
    tensors = {k: v for k, v in {**ARRAYS, **(arrays or {})}.items() if v is not ...}
    return sealed.to_bytes(tensors, full)


def raw(header: str | bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def with_meta(text: str, **tensors: Any) -> bytes:
    """A safetensors file whose tensors are as declared, and whose metadata are this text."""
    return raw(json.dumps({"__metadata__": {"ensq": text}, **tensors}))


def read_all(data: bytes) -> None:
    """Try each reader: it gives something, or raises CheckpointError."""
    for reader in (
        checkpoint.read_position,
        checkpoint.read_result,
        lambda content: checkpoint.restore(content, STATE, IDENTITY),
    ):
        try:
            reader(data)
        except CheckpointError as error:
            assert len(str(error)) < 1000


META = json.dumps({"format": 3, **RESULT_META})
CHECKPOINT = {"format": 3, "kind": "checkpoint", "epoch": 2, "step": 3, "seed": 5, "best_epoch": 2}
CHECKPOINT |= {"config_digest": "c" * 64, "data_digest": "d" * 64, "best_loss": "0x1p0"}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
STRANGE = {
    "empty": b"",
    "short": b"\x01",
    "header longer than the file": raw("{}", length=2**20),
    "header of 2^64 bytes": raw("{}", length=2**64 - 1),
    "header of 20 MB": raw(b" " * (20 * 2**20)),
    "header is a list": raw("[]"),
    "header is a number": raw("1"),
    "header nests deeply": raw("[" * 100_000),
    "metadata nests deeply": with_meta("[" * 100_000),
    "metadata nests deeply in an object": with_meta('{"a":' * 100_000),
    "metadata are a list": raw('{"__metadata__": []}'),
    "metadata are no text": raw('{"__metadata__": {"ensq": {"format": 3}}}'),
    "metadata are a number": with_meta("3"),
    "not Unicode": raw(b'{"__metadata__": "\xff\xfe"}'),
    "a huge integer": with_meta('{"format": ' + "9" * 10_000 + "}"),
    "format is true": with_meta('{"format": true, "kind": "result"}'),
    "format is a float": with_meta('{"format": 3.0, "kind": "result"}'),
    "kind is a list": with_meta('{"format": 3, "kind": []}'),
    "a long kind": with_meta(json.dumps({"format": 3, "kind": "x" * 10**6})),
    "NaN": with_meta('{"format": 3, "kind": "result", "seed": NaN}'),
    "a huge shape": with_meta(
        META, history={"dtype": "F64", "shape": [2**40, 6], "data_offsets": [0, 8]}
    ),
    "a shape that overflows": with_meta(
        META, history={"dtype": "F64", "shape": [2**62, 2**62], "data_offsets": [0, 0]}
    ),
    "an empty huge shape": with_meta(
        META, history={"dtype": "F64", "shape": [0, 2**63], "data_offsets": [0, 0]}
    ),
    "100 dimensions": with_meta(
        META, history={"dtype": "F64", "shape": [0] * 100, "data_offsets": [0, 0]}
    ),
    "a negative shape": with_meta(
        META, history={"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}
    ),
    "a type that NumPy has not": with_meta(META, history={**EMPTY, "dtype": "BF16"}),
    "a type that nobody has": with_meta(META, history={**EMPTY, "dtype": "X128"}),
    "an array beyond the file": with_meta(META, history={**EMPTY, "data_offsets": [0, 2**50]}),
    "no arrays": with_meta(META),
    "a long name": with_meta(META, **{"x" * 20_000: {**EMPTY, "data_offsets": [0, 2**50]}}),
    "a long type": with_meta(META, history={**EMPTY, "dtype": "x" * 20_000}),
    "a parameter inside another": result({"params['network']": np.ones(1)}),
    "a deep tree": result({"params" + "['a']" * 100_000: np.ones(1)}),
    "a strange parameter": result({"params[0]": np.ones(1)}),
    "a parameter of text": result({"params['x']": np.ones(1, bool)}),
    "no parameter": result({"params": np.ones(1)}),
    **{
        f"checkpoint {key} {value!r}"[:40]: with_meta(json.dumps({**CHECKPOINT, key: value}))
        for key, value in (
            ("epoch", -1), ("epoch", 1.5), ("epoch", "2"), ("epoch", True), ("epoch", 10**30),
            ("epoch", None), ("step", -1), ("step", 2**63), ("step", [1]),
        )
    },
}  # fmt: skip


def test_the_result_that_is_changed_below_is_one() -> None:
    found = checkpoint.read_result(result())
    assert isinstance(found, MemberResult)
    np.testing.assert_array_equal(found.params["network"]["w"], np.ones((2, 3)))
    assert found.statistics == RESULT_META["statistics"]


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE.keys())
def test_strange_bytes_are_refused_by_every_reader(data: bytes) -> None:
    for reader in (
        checkpoint.read_position,
        checkpoint.read_result,
        lambda content: checkpoint.restore(content, STATE, IDENTITY),
    ):
        with pytest.raises(CheckpointError) as caught:
            reader(data)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": None}, "seed"),
        ({"seed": ...}, "'seed' is missing"),
        ({"best_epoch": "2"}, "best_epoch"),
        ({"best_loss": 1.0}, "best_loss"),
        ({"best_loss": "nan"}, "best_loss"),
        ({"final_loss": "inf"}, "final_loss"),
        ({"final_loss": "0x1p99999"}, "too large"),
        ({"final_loss": "what"}, "hexadecimal"),
        ({"species_names": "AB"}, "species_names"),
        ({"species_names": ["A", 1]}, "species_names"),
        ({"species_names": ["A"]}, "species"),
        ({"protein_names": {"a": 1}}, "protein_names"),
        ({"statistics": []}, "statistics"),
        ({"statistics": {}}, "is missing"),
        ({"statistics": {**RESULT_META["statistics"], "n_species": 10**9}}, "species"),
        ({"statistics": {**RESULT_META["statistics"], "energy_shift": 5}}, "len"),
        ({"statistics": {**RESULT_META["statistics"], "energy_shift": ["a", "b"]}}, "energy_shift"),
        ({"statistics": {**RESULT_META["statistics"], "energy_scale": True}}, "energy_scale"),
        ({"statistics": {**RESULT_META["statistics"], "energy_scale": 10**400}}, "too large"),
        ({"config": {}}, "config"),
        ({"config_digest": None}, "config_digest"),
        ({"data_digest": 5}, "data_digest"),
        ({"versions": ["a"]}, "versions"),
        ({"versions": {"a": 1}}, "not a text"),
        ({"versions": ...}, "'versions' is missing"),
    ],
)
def test_every_field_of_a_result_is_of_its_type(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError, match="a result does not hold what it should") as caught:
        checkpoint.read_result(result(**changes))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({key: ...} for key in ARRAYS if not key.startswith("params")),
        {"force_errors": np.ones(5)},
        {"force_errors": np.ones((4, 1))},
        {"force_errors": np.array(1.0)},
        {"force_errors": np.ones(4, np.int64)},
        {"protein": np.ones(4)},
        {"validation_index": np.ones(4, bool)},
        {"species_errors": np.ones((2, 1))},
        {"history": np.ones((3, 5))},
        {"history": np.full((3, 6), np.nan)},
        {"history": np.full((3, 6), np.inf)},
    ],
    ids=lambda value: f"{next(iter(value))} {getattr(next(iter(value.values())), 'shape', '')}",
)
def test_every_array_of_a_result_is_of_its_type_and_shape(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="a result does not hold what it should"):
        checkpoint.read_result(result(changes))


def a_checkpoint(folder: Path) -> bytes:
    path = folder / "c.safetensors"
    checkpoint.write_checkpoint(path, STATE, record(), 2, 3, IDENTITY)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return a_checkpoint(tmp_path_factory.mktemp("whole"))


@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data(), of_result=st.booleans())
def test_a_file_with_a_piece_changed_is_read_or_refused(
    whole: bytes, data: Any, of_result: bool
) -> None:
    content = result() if of_result else whole
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 30)))
    read_all(content[:start] + data.draw(st.binary(max_size=30)) + content[end:])


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
INNER = LEAF | st.lists(LEAF, max_size=4)
JSON = INNER | st.lists(INNER, max_size=4) | st.dictionaries(st.text(max_size=9), INNER, max_size=4)


@hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(key=st.sampled_from([*RESULT_META, *CHECKPOINT, *RESULT_META["statistics"]]), value=JSON)  # type: ignore[misc]
@example(key="elements", value=[])
def test_any_json_in_any_field_is_read_or_refused(key: str, value: Any) -> None:
    meta = {"format": 3, **RESULT_META, key: value}
    meta["statistics"] = {**RESULT_META["statistics"], key: value}  # type: ignore[dict-item]
    text = json.dumps(meta)
    read_all(bytes(safetensors.numpy.save(ARRAYS, {"ensq": text})))
    text = json.dumps({**CHECKPOINT, key: value})
    read_all(bytes(safetensors.numpy.save(ARRAYS, {"ensq": text})))


def test_strange_files_take_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:  # a file with a hole takes no room
        file.truncate(2**43)
    with pytest.raises(CheckpointError, match="it is of 8796093022208 bytes"):
        checkpoint.read_verified(tmp_path / "huge", None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in STRANGE.values():
        read_all(data)
    read_all(with_meta("[" + 3_000_000 * "[]," + "1]"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024  # KiB


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, why in (
        ("pipe", "no plain file"),
        ("folder", "no plain file|Is a directory"),
        ("zero", "no plain file"),
        ("none", "No such file"),
    ):
        with pytest.raises(CheckpointError, match=why):
            checkpoint.read_verified(tmp_path / name, None)


def test_a_file_is_verified_by_its_digest_or_by_its_seal(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    digest = checkpoint.write_checkpoint(path, STATE, record(), 2, 3, IDENTITY)
    data = checkpoint.read_verified(path, digest)
    assert checkpoint.read_verified(path, None) == data
    assert seal.is_whole(data)
    for place in range(0, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.read_verified(path, None)
