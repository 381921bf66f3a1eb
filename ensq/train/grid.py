"""Several devices: members on one axis, the frames of a batch on the other.

Each device holds its members whole and looks at its part of every batch; the parts' gradients are
added up over the second axis, so that all devices of a member make the same step. With one device
there is no grid, and nothing of this is in the compiled program.

The devices may be those of several processes (``ensq.train.leading``). Each process then holds its
own part of every array, and all of them must compute the same things in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ensq.train.compat import shard_map  # before chemtrain and jax_md

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MEMBER, BATCH = "member", "batch"


def shape_for(devices: int, members: int) -> tuple[int, int]:
    """Devices along both axes: as many for the members as divide them evenly.

    Members need no exchange with each other, frames of a batch do. 8 devices and 4 members: 4 x 2.
    """
    most = max(n for n in range(1, devices + 1) if devices % n == 0 and members % n == 0)
    return most, devices // most


class Grid:
    """All devices, arranged for packs of some number of members."""

    def __init__(self, devices: Sequence[Any], shape: tuple[int, int]) -> None:
        self.shape = shape
        self._mesh = Mesh(np.asarray(devices, object).reshape(shape), (MEMBER, BATCH))
        self._members = NamedSharding(self._mesh, PartitionSpec(MEMBER))

    @property
    def shared(self) -> bool:
        """Whether some of its devices are another process's."""
        return not self._members.is_fully_addressable

    @property
    def batch(self) -> int:
        """Parts into which a batch is divided."""
        return self.shape[1]

    def spread(self, tree: Any) -> Any:
        """Members [K, ...] to the devices that train them."""
        return _put(tree, self._members)

    def of_members(self, function: Callable[[Any], Any], tree: Any) -> Any:
        """What a function makes of members there: new arrays, which lie as theirs do."""
        if not self.shared:
            return function(tree)
        return jax.jit(function, out_shardings=self._members)(tree)

    def map(self, function: Callable[..., Any], inside: Sequence[str], out: str) -> Any:
        """The function on each device's part; what each argument is divided by, and the result.

        ``members``: by its first axis; ``frames``: by its last but one and last axis, rows of
        frames [S, B]; ``all``: not at all; ``errors``: [K, S, B, ...], by members and frames.
        """
        return shard_map(function, self._mesh, tuple(_SPECS[name] for name in inside), _SPECS[out])


_SPECS = {
    "all": PartitionSpec(),
    "members": PartitionSpec(MEMBER),
    "frames": PartitionSpec(None, BATCH),
    "errors": PartitionSpec(MEMBER, None, BATCH),
}


class Devices:
    """The devices of a trainer."""

    def __init__(self, devices: Sequence[Any] | None = None) -> None:
        self._devices = list(jax.local_devices() if devices is None else devices)
        self._grids: dict[tuple[int, int], Grid] = {}
        everywhere = Mesh(np.asarray(self._devices, object), ("device",))
        self._everywhere = NamedSharding(everywhere, PartitionSpec())
        self._whole = jax.jit(lambda leaf: leaf, out_shardings=self._everywhere)

    def __len__(self) -> int:
        return len(self._devices)

    @property
    def shared(self) -> bool:
        """Whether some of them are another process's."""
        return not self._everywhere.is_fully_addressable

    def fetch(self, tree: Any) -> Any:
        """A copy on the host. Of arrays that no process has whole, leaf by leaf: one fits."""
        return jax.tree_util.tree_map(self._fetched, tree)

    def _fetched(self, leaf: Any) -> Any:
        if self.shared and not leaf.is_fully_replicated:
            # The next exchange may not begin before this one has ended on every device.
            leaf = jax.block_until_ready(self._whole(leaf))
        return np.array(leaf)

    def grid(self, members: int) -> Grid | None:
        """The grid for a pack of that size; None where there is one device."""
        if len(self) == 1:
            return None
        shape = shape_for(len(self), members)
        if shape not in self._grids:
            self._grids[shape] = Grid(self._devices, shape)
        return self._grids[shape]

    def everywhere(self, tree: Any) -> Any:
        """What every device needs whole."""
        return tree if len(self) == 1 else _put(tree, self._everywhere)

    def shape_everywhere(self, leaf: Any) -> Any:
        """The same for a shape: what a program is compiled for."""
        if len(self) == 1:
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._everywhere)


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """The tree on the devices of a sharding; every process has all of it on its host."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # it is there
        if sharding.is_fully_replicated:  # what lies on one of the devices is not copied there
            mine = [jax.device_put(leaf, one) for one in sharding.addressable_devices]
            return jax.make_array_from_single_device_arrays(np.shape(leaf), sharding, mine)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree_util.tree_map(put, tree)


def padded(rows: Any, multiple: int) -> Any:
    """[S, B] with zeros behind, so that B is a multiple: frame 0 at weight 0."""
    more = -rows.shape[1] % multiple
    return jax.numpy.pad(rows, ((0, 0), (0, more))) if more else rows
