"""Replicas on the device, and their neighbours, which the host finds anew when they get old."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ensq.train.compat import enable_x64  # before chemtrain and jax_md

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ensq import data
from ensq.errors import DataError
from ensq.train.dynamics import step
from ensq.train.dynamics.step import Beads, Forces, Layout, Limits, Settings, Walk
from ensq.train.neighbours import Neighbours, build_neighbours, count_neighbours, is_periodic
from ensq.train.predicting import Predictor, of_members

SKIN = 2.0  # Angstrom beyond the cutoff, in which neighbours are kept
MARGIN = 1e-3  # Angstrom taken off the skin for rounding
NEARLY_ALL = 0.7  # of the beads are neighbours: then all are, and none is ever looked for again
ASKED = 100  # steps at once, some seconds at most
ROUND = 4  # places for neighbours come in so many, with some to spare: fewer programs


@dataclass(frozen=True)
class Look:
    """All replicas at one moment, on the host; a stopped one is where its last good step left it.

    Sums and extremes are of the steps since the last look.
    """

    step: int
    position: NDArray[Any]  # [R,N,3]
    alive: NDArray[Any]  # [R] bool
    done: NDArray[Any]  # [R] good steps
    potential: NDArray[Any]  # [R] float64
    kinetic: NDArray[Any]  # [R] mean kinetic energy
    epsilon: NDArray[Any]  # [R,N]
    peak: NDArray[Any]  # [R] largest epsilon
    bonds: NDArray[Any]  # [R,2] shortest and longest
    nearest: NDArray[Any]  # [R] distance of watched pairs now, the cutoff at most
    pair: NDArray[Any]  # [R,2] which
    closest: NDArray[Any]  # [R] smallest of them
    closest_pair: NDArray[Any]  # [R,2] which


@dataclass(frozen=True)
class Stop:
    """Why a replica was stopped."""

    reason: str  # one of ``REASONS``
    value: float
    which: int  # the bond, the pair (i * N + j), or the bead with the largest epsilon


class Dynamics:
    """Langevin dynamics of R replicas with the mean energy of an ensemble."""

    def __init__(
        self,
        predictor: Predictor,
        starts: data.Data,
        settings: Settings,
        mass: NDArray[Any],
        limits: Limits,
        *,
        skin: float = SKIN,
        all_pairs: bool | None = None,
    ) -> None:
        """
        Args:
            predictor: Of the members; its precision is that of the dynamics.
            starts: [R] first frames, with the model's species.
            settings: Temperature and so on.
            mass: [R,N] in unified atomic mass units; anything positive on padding.
            limits: What stops a replica; NumPy arrays.
            skin: Angstrom beyond the cutoff.
            all_pairs: Whether all beads are neighbours; None: where nearly all are.

        Raises DataError if the model needs open boundaries and the frames have none, or it has no
        finite energy for one of them.
        """
        if predictor.model.priors is not None and is_periodic(starts.cell):
            data.check_open(starts, "the frames to start from")
        self._predictor, self._starts = predictor, starts
        self._cutoff, self._skin = predictor.model.cutoff, skin
        self._periodic = is_periodic(starts.cell)
        self._pairs = limits.pairs
        self._width, self._all = 0, all_pairs
        self.rebuilt = 0  # how often neighbours were found
        with self.precision():
            self._bath = settings.bath(predictor.dtype)
            self._beads = Beads(
                jnp.asarray(starts.species, jnp.int32), jnp.asarray(starts.mask, predictor.dtype)
            )
            self._limits = _on_device(limits, predictor.dtype)
            position = jnp.asarray(starts.R, predictor.dtype)
            self._layout = self._neighbours(position)
            self._walk: Walk = _begin(
                predictor,
                predictor.params,
                self._bath,
                position,
                jnp.asarray(mass, predictor.dtype),
                self._beads,
                self._layout,
                self._limits,
            )
        self._held: Look | None = None
        self._check_start()

    def precision(self) -> Any:
        """A context in which arrays have the precision of the dynamics."""
        return self._predictor.precision()

    def looks(
        self, steps: int, every: int, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Look]:
        """The start, then every ``every`` steps until ``steps``; ends when no replica goes on, or,
        with what there is, when ``stopped`` says so, which is asked every ``ASKED`` steps."""
        made = 0
        yield self._look(made)
        while made < steps and np.asarray(self._walk.alive).any() and not stopped():
            self._forget()
            end = min(made + every, steps)
            while made < end:
                wanted = min(ASKED, end - made)
                self._walk_on(wanted)
                made += wanted
                if stopped():
                    break
            yield self._look(made)

    def stops(self) -> list[Stop | None]:
        """[R] why each replica was stopped, if it was."""
        reason, value, which = (
            np.asarray(x) for x in (self._walk.reason, self._walk.value, self._walk.which)
        )
        return [
            Stop(step.REASONS[int(code)], float(number), int(place)) if code else None
            for code, number, place in zip(reason, np.nan_to_num(value), which, strict=True)
        ]

    def _forget(self) -> None:
        with self.precision():
            self._walk = step.forget(self._walk)

    def _walk_on(self, steps: int) -> None:
        with self.precision():
            while steps:
                self._walk, count = _advance(
                    self._predictor,
                    self._predictor.params,
                    self._bath,
                    self._walk,
                    self._beads,
                    self._layout,
                    self._limits,
                    jnp.asarray(steps, jnp.int32),
                )
                steps -= int(count)
                if steps:
                    self._layout = self._neighbours(self._walk.md.position)

    def _neighbours(self, position: jax.Array) -> Layout:
        """Neighbours within cutoff and skin, in places enough for all."""
        starts, host = self._starts, np.asarray(position, np.float64)
        self.rebuilt += 1
        reach, cutoff = 0.5 * self._skin - MARGIN, self._cutoff + self._skin
        if not self._all:
            counts = count_neighbours(
                host, starts.mask, cutoff, starts.cell, periodic=self._periodic
            )
            self._choose(int(counts.max(initial=1)), host.shape[1])
        if self._all:
            self._width = max(1, host.shape[1] - 1)
            reach = cutoff = np.inf
        found = build_neighbours(
            host,
            starts.mask,
            cutoff,
            None if self._all else starts.cell,
            width=self._width,
            periodic=self._periodic,
        )
        dtype, offset = self._predictor.dtype, found.offset
        return Layout(
            nbr=jnp.asarray(found.index),
            rev=jnp.asarray(found.reverse),
            mask=jnp.asarray(found.mask, dtype),
            offset=None if offset is None else jnp.asarray(offset, dtype),
            origin=position,
            reach=jnp.asarray(reach, dtype),
            free=self._free(found),
        )

    def _free(self, found: Neighbours) -> jax.Array | None:
        """Which neighbours are watched pairs."""
        if self._pairs is None:
            return None
        return jnp.asarray(found.mask & np.take_along_axis(self._pairs, found.index, axis=2))

    def _choose(self, most: int, beads: int) -> None:
        """How many places a bead has for neighbours: never fewer than before."""
        if self._all is None:
            self._all = not self._periodic and most >= NEARLY_ALL * (beads - 1)
        if not self._all and most > self._width:
            spare = -(-(most + 1) // ROUND) * ROUND
            self._width = spare if self._periodic else max(1, min(spare, beads - 1))

    def _look(self, at: int) -> Look:
        walk = self._walk
        counted = np.asarray(walk.counted)
        fresh, last = counted > 0, self._held

        def held(values: Any, name: str) -> NDArray[Any]:
            values = np.asarray(values, np.float64)
            if last is None:
                return values
            old = getattr(last, name)
            return np.where(fresh.reshape(-1, *(1,) * (values.ndim - 1)), values, old)

        look = Look(
            step=at,
            position=np.asarray(walk.md.position),
            alive=np.asarray(walk.alive),
            done=np.asarray(walk.done),
            potential=np.asarray(walk.energy, np.float64),
            kinetic=held(np.asarray(walk.heat, np.float64) / np.maximum(counted, 1), "kinetic"),
            epsilon=np.asarray(walk.epsilon, np.float64),
            peak=held(walk.peak, "peak"),
            bonds=held(np.stack([walk.shortest, walk.longest], axis=1), "bonds"),
            nearest=np.minimum(np.asarray(walk.nearest, np.float64), self._cutoff),
            pair=self._beads_of(walk.pair),
            closest=held(np.minimum(np.asarray(walk.closest), self._cutoff), "closest"),
            closest_pair=self._beads_of(walk.closest_pair),
        )
        self._held = look
        return look

    def _beads_of(self, pair: Any) -> NDArray[Any]:
        """[R,2] beads of pairs [R]."""
        beads = self._starts.mask.shape[1]
        return np.sort(np.stack(np.divmod(np.asarray(pair), beads), axis=1), axis=1)

    def _check_start(self) -> None:
        code = np.asarray(self._walk.reason)
        bad = np.flatnonzero(code == step.NOT_FINITE)
        if bad.size:
            raise DataError(
                f"replica {bad[0]}: the model gives no finite energy or forces for the frame that "
                "it starts from; are two beads at one place, or is the unit of length wrong?"
            )


def _forces(predictor: Predictor, params: Any) -> Forces:
    return step.ensemble_forces(partial(of_members, predictor.model, False), params)


# One program for all dynamics of a predictor, which is compared by identity.
@partial(jax.jit, static_argnums=0)
def _begin(predictor: Predictor, params: Any, *arguments: Any) -> Walk:
    return step.begin(_forces(predictor, params), *arguments)


@partial(jax.jit, static_argnums=0)
def _advance(predictor: Predictor, params: Any, *arguments: Any) -> tuple[Walk, jax.Array]:
    return step.advance(_forces(predictor, params), *arguments)


def _on_device(limits: Limits, dtype: str) -> Limits:
    places = {"bonds": jnp.int32, "used": bool}
    return Limits(
        **{
            name: jnp.asarray(values, places.get(name, dtype))
            for name, values in limits._asdict().items()
            if name != "pairs" and values is not None
        }
    )


__all__ = ["SKIN", "Dynamics", "Look", "Stop", "enable_x64"]
