"""Seals: any change of a sealed file is noticed, whatever and wherever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ensq import seal

MARK = seal.PLACEHOLDER.encode().rstrip(b"0")
SMALL = seal.seal(json.dumps({seal.KEY: seal.PLACEHOLDER, "epoch": 3}).encode() + b"\0\xff")


def test_a_sealed_file_is_whole_and_holds_no_zeros_any_more() -> None:
    assert seal.is_whole(SMALL)
    assert seal.PLACEHOLDER.encode() not in SMALL
    assert json.loads(SMALL[:-2])["epoch"] == 3


def test_every_flipped_bit_every_truncation_and_every_appended_byte_of_a_small_file() -> None:
    for place in range(len(SMALL)):
        for bit in range(8):
            changed = bytearray(SMALL)
            changed[place] ^= 1 << bit
            assert not seal.is_whole(bytes(changed)), (place, bit)
    for length in range(len(SMALL)):
        assert not seal.is_whole(SMALL[:length]), length
    for byte in range(256):
        assert not seal.is_whole(SMALL + bytes([byte])), byte
        assert not seal.is_whole(bytes([byte]) + SMALL), byte


@given(before=st.binary(max_size=99), after=st.binary(max_size=99), data=st.data())
@example(before=b"", after=seal.PLACEHOLDER.encode(), data=None)
def test_any_data_around_the_placeholder_can_be_sealed_and_any_change_is_noticed(
    before: bytes, after: bytes, data: Any
) -> None:
    assume(MARK not in before)  # the first mark counts: the next test
    sealed = seal.seal(before + seal.PLACEHOLDER.encode() + after)
    assert seal.is_whole(sealed)
    if data is None:  # a second mark is content like any other
        assert not seal.is_whole(sealed[:-1] + b"1")
        return
    start = data.draw(st.integers(0, len(sealed)))
    end = data.draw(st.integers(start, len(sealed)))
    instead = data.draw(st.binary(max_size=9))
    changed = sealed[:start] + instead + sealed[end:]
    assert seal.is_whole(changed) == (changed == sealed)


def test_a_mark_before_the_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the seal"):
        seal.seal(MARK + seal.PLACEHOLDER.encode())


@given(st.binary(max_size=400))
@example(b"")
@example(seal.PLACEHOLDER.encode())
@example(seal.PLACEHOLDER.encode()[:-1])
def test_what_was_never_sealed_is_not_whole(data: bytes) -> None:
    assert not seal.is_whole(data)


def test_the_seal_works_in_the_header_of_a_safetensors_file(tmp_path: Path) -> None:
    meta = json.dumps({seal.KEY: seal.PLACEHOLDER, "text": 'a "b"'})
    sealed = seal.seal(safetensors.numpy.save({"w": np.arange(9.0)}, {"ensq": meta}))
    assert seal.is_whole(sealed)
    np.testing.assert_array_equal(safetensors.numpy.load(sealed)["w"], np.arange(9.0))
    assert not seal.is_whole(sealed[:-1] + b"\x01")


@pytest.mark.parametrize(
    "data", [b"", b"no mark", seal.PLACEHOLDER.encode()[:-1], SMALL], ids=[*"abc", "sealed already"]
)
def test_without_a_free_place_nothing_is_sealed(data: bytes) -> None:
    with pytest.raises(ValueError, match="no place for the seal"):
        seal.seal(data)


def test_a_mark_of_somebody_elses_before_the_writers_own_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the seal"):
        seal.seal(b"ensq-seal-sha256: hello " + seal.PLACEHOLDER.encode())
