"""How batches reach the device: all frames lie there, or pieces come ahead of the training.

A piece is a small data set: the frames of some steps, with batches that count within it. The
program that trains on it is the one that trains on a whole set.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ensq.train.batches import Batches, in_batches
from ensq.train.dataset import Dataset
from ensq.train.hosted import Hosted, Kept
from ensq.train.labelled import Labelled
from ensq.train.models import Frames

PIECE_BYTES = 32 * 1024 * 1024  # on the device, where one is trained on and one waits
MOST_STEPS = 1024  # of a piece
# Batches of a group in a piece, where it has so many: a loop over one is compiled to another order
# of sums, and the losses would differ in their last digits from those of a resident set.
FEWEST = 2


Put = Callable[[Any], Any]


class Piece(NamedTuple):
    """Steps ``first`` to ``stop`` - 1 of an epoch."""

    training: tuple[Labelled, ...]
    order: Any  # Batches whose first row is step ``first``
    first: int
    stop: int


class ValidationPiece(NamedTuple):
    """Frames of one group in batches; only the first ``frames`` results are of frames."""

    group: int
    part: Labelled
    index: Any  # [S, B]
    frames: int


class Resident:
    """All frames lie on the device: one piece is all of them."""

    def __init__(self, dataset: Dataset, batch: int, dtype: Any, put: Put) -> None:
        self._training, self._dtype = put(dataset.training), dtype
        self._first = dataset.training[0].frames
        self._validation = []
        for group, part in enumerate(dataset.validation):
            if part.n_frames:
                frames, index = put((part, jnp.asarray(_walk(part.n_frames, batch))))
                self._validation.append(ValidationPiece(group, frames, index, part.n_frames))

    @property
    def example(self) -> Frames:
        """One frame, by which models are initialised."""
        return jax.tree_util.tree_map(lambda leaf: leaf[:1], self._first)

    def steps(self, batches: Batches, at: int) -> Piece:
        """The piece that holds step ``at`` of the epoch that ``batches`` is of."""
        order = batches._replace(weight=batches.weight.astype(self._dtype))
        return Piece(self._training, order, 0, len(batches.group))

    def validation(self) -> Iterator[ValidationPiece]:
        """All validation frames, group by group."""
        return iter(self._validation)

    def shapes(self) -> Iterator[ValidationPiece]:
        """What ``validation`` gives, for each group once: to compile by."""
        return iter(self._validation)


class _Walk(NamedTuple):
    """The validation frames of a group."""

    group: int
    part: Kept
    index: NDArray[np.int32]  # type: ignore[assignment]  # [S, B], not tuple.index
    room: int  # batches of a piece


class Fed:
    """Frames stay on the host; a thread prepares the next piece while the device works."""

    def __init__(self, hosted: Hosted, batch: int, dtype: Any, put: Put) -> None:
        self._hosted, self._batch, self._dtype, self._put = hosted, batch, dtype, put
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feeding")
        weakref.finalize(self, self._thread.shutdown, wait=False, cancel_futures=True)
        self._batches: Batches | None = None
        self._bounds: list[int] = []  # steps at which a piece of the epoch begins
        self._now: tuple[int, Piece] | None = None  # the piece of this number
        self._next: tuple[int, Future[Piece]] | None = None

    @property
    def example(self) -> Frames:
        first = next(part for part in self._hosted.training if part.n_frames)
        return jax.tree_util.tree_map(jnp.asarray, first.read(np.arange(1)).frames)

    def steps(self, batches: Batches, at: int) -> Piece:
        if batches is not self._batches:
            rooms = self._rooms(batches)
            self._batches, self._bounds = batches, _bounds(batches.group, rooms)
            self._now = self._next = None
        number = int(np.searchsorted(self._bounds, at, side="right")) - 1
        if self._now is None or self._now[0] != number:
            self._now = None  # its memory is for the next one
            self._now = number, self._piece(number)
            self._next = None
            if number + 2 < len(self._bounds):
                self._next = number + 1, self._thread.submit(self._make, batches, number + 1)
        return self._now[1]

    def _piece(self, number: int) -> Piece:
        assert self._batches is not None
        if self._next is not None and self._next[0] == number:
            return self._next[1].result()
        return self._make(self._batches, number)

    def _rooms(self, batches: Batches) -> list[int]:
        """Batches of each group that a piece has room for: so many that its shape is fixed."""
        counts = np.bincount(batches.group, minlength=len(self._hosted.training))
        largest = sum(
            count * part.frame_bytes * self._batch
            for count, part in zip(counts.tolist(), self._hosted.training, strict=True)
        )
        share = min(1.0, PIECE_BYTES / max(1, largest), MOST_STEPS / len(batches.group))
        return [max(min(count, FEWEST), int(share * count)) for count in counts.tolist()]

    def _make(self, batches: Batches, number: int) -> Piece:
        """Read the frames of a piece, lay them out, and send them to the device."""
        start, stop = self._bounds[number], self._bounds[number + 1]
        rooms, B = self._rooms(batches), batches.index.shape[1]
        group = batches.group[start:stop]
        length = min(sum(rooms), len(batches.group))
        index = np.zeros((length, B), np.int32)
        training = []
        for place, (part, room) in enumerate(zip(self._hosted.training, rooms, strict=True)):
            mine = np.flatnonzero(group == place)
            index[mine] = np.arange(len(mine) * B).reshape(-1, B)
            training.append(part.read(batches.index[start:stop][mine].ravel(), room=room * B))
        weight = batches.weight[start:stop].astype(self._dtype)
        order = Batches(_filled(group, length), index, _filled(weight, length))
        parts, batches = self._put(jax.device_put((tuple(training), order)))
        return Piece(parts, batches, start, stop)

    def validation(self) -> Iterator[ValidationPiece]:
        pieces = [
            (walk, at) for walk in self._walks() for at in range(0, len(walk.index), walk.room)
        ]
        waiting = self._thread.submit(self._make_validation, *pieces[0])
        for following in [*pieces[1:], None]:
            now = waiting.result()
            if following is not None:
                waiting = self._thread.submit(self._make_validation, *following)
            yield now

    def shapes(self) -> Iterator[ValidationPiece]:
        for walk in self._walks():
            B = walk.index.shape[1]

            def shape(leaf: Any, rows: int = walk.room * B) -> Any:
                return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

            part = jax.tree_util.tree_map(shape, walk.part.read(np.arange(1)))
            index = jax.ShapeDtypeStruct((walk.room, B), np.int32)
            yield ValidationPiece(walk.group, part, index, 0)

    def _walks(self) -> Iterator[_Walk]:
        for group, part in enumerate(self._hosted.validation):
            if part.n_frames:
                index = _walk(part.n_frames, self._batch)
                room = PIECE_BYTES // (part.frame_bytes * index.shape[1])
                yield _Walk(group, part, index, min(len(index), max(FEWEST, room)))

    def _make_validation(self, walk: _Walk, at: int) -> ValidationPiece:
        """The batches of a group from number ``at`` on."""
        chosen, B = walk.index[at : at + walk.room], walk.index.shape[1]
        frames = walk.part.read(chosen.ravel(), room=walk.room * B)
        index = np.arange(walk.room * B, dtype=np.int32).reshape(walk.room, B)
        real = min(chosen.size, walk.part.n_frames - at * B)
        part, batches = self._put(jax.device_put((frames, index)))
        return ValidationPiece(walk.group, part, batches, real)


Feed = Resident | Fed


def feed(dataset: Dataset, batch: int, dtype: Any, put: Put) -> Feed:
    """How the frames of a data set reach the device; ``put`` brings a tree to all devices."""
    if dataset.hosted is not None:
        return Fed(dataset.hosted, batch, dtype, put)
    return Resident(dataset, batch, dtype, put)


def _walk(frames: int, batch: int) -> NDArray[np.int32]:
    """All frames of a group in their order, in batches."""
    return in_batches(np.arange(frames), min(batch, frames)).index


def _filled(values: NDArray[Any], length: int) -> NDArray[Any]:
    """The values with zeros behind."""
    out = np.zeros((length, *values.shape[1:]), values.dtype)
    out[: len(values)] = values
    return out


def _bounds(group: NDArray[np.int32], rooms: list[int]) -> list[int]:
    """Where pieces begin, and the end: each takes as many steps as its groups have room for."""
    bounds, used = [0], [0] * len(rooms)
    for step, number in enumerate(group.tolist()):
        if used[number] == rooms[number]:
            bounds.append(step)
            used = [0] * len(rooms)
        used[number] += 1
    return [*bounds, len(group)]
