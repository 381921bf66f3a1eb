"""Gradient steps of a pack: the loop over the batches of an epoch, as one program."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import optax
from chemtrain.learn import max_likelihood

from ensq.train import grid, loss
from ensq.train.labelled import Labelled
from ensq.train.objective import Objective, Params


class Lanes(NamedTuple):
    """State on the device; every leaf has the members [K] as its first axis."""

    params: Params
    optimizer: Any  # of the present stage
    average: Params  # moving average of params; an empty tuple if there is none
    best: Params  # evaluated parameters of the best epoch
    steps: jax.Array  # [K] int32, gradient steps since the start of the training
    alive: jax.Array  # [K] bool, false once a loss was not finite
    batch_losses: jax.Array  # [K, steps per epoch], of the epoch under way


class Stepper:
    """Steps of one stage.

    Args:
        objective: What is minimised.
        optimizer: The optax chain of one member.
        ema_decay: Of the moving average; None without one.
        micro_batch: Frames that are looked at together; the gradient of a batch is summed over
            such parts. None: all of a batch.
        devices: How the devices stand for this pack; None for one device.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Any,
        *,
        ema_decay: float | None,
        micro_batch: int | None,
        devices: grid.Grid | None,
    ) -> None:
        self._objective, self._optimizer = objective, optimizer
        self._ema_decay, self._micro_batch = ema_decay, micro_batch
        self._devices = devices
        self._axis = None if devices is None else grid.BATCH

    def run(
        self,
        lanes: Lanes,
        training: tuple[Labelled, ...],
        order: Any,
        first: jax.Array,
        start: jax.Array,
        stop: jax.Array,
    ) -> Lanes:
        """Steps ``start`` to ``stop`` - 1; the first row of ``order`` is step ``first``."""
        multiple = 1 if self._devices is None else self._devices.batch
        if self._micro_batch is not None:
            each = -(-order.index.shape[1] // multiple)  # of one device
            multiple *= min(self._micro_batch, each)
        index, weight = (grid.padded(rows, multiple) for rows in (order.index, order.weight))
        loop: Any = self._loop
        if self._devices is not None:
            inside = ("members", "all", "all", "frames", "frames", "all", "all", "all")
            loop = self._devices.map(loop, inside, "members")
        moved: Lanes = loop(lanes, training, order.group, index, weight, first, start, stop)
        return moved

    def _loop(
        self,
        lanes: Lanes,
        training: tuple[Labelled, ...],
        groups: jax.Array,
        indices: jax.Array,
        weights: jax.Array,
        first: jax.Array,
        start: jax.Array,
        stop: jax.Array,
    ) -> Lanes:
        def of_group(group: int, step: jax.Array, lanes: Lanes) -> Lanes:
            index, weight = indices[step - first], weights[step - first]
            batch = jax.tree_util.tree_map(lambda leaf: leaf[index], training[group])
            return jax.vmap(partial(self._step, group, batch, weight, step))(lanes)

        def body(step: jax.Array, lanes: Lanes) -> Lanes:
            if len(training) == 1:
                return of_group(0, step, lanes)
            # all members train on one group at a time, so that only its branch is run
            branches = [partial(of_group, group) for group in range(len(training))]
            return jax.lax.switch(groups[step - first], branches, step, lanes)

        return jax.lax.fori_loop(start, stop, body, lanes)

    def _step(
        self, group: int, batch: Labelled, weight: jax.Array, step: jax.Array, member: Lanes
    ) -> Lanes:
        """One gradient step of one member; a step that is not finite leaves it as it was."""
        loss, gradient = self._loss_and_gradient(member.params, batch, weight, group)
        params, state = max_likelihood.step_optimizer(
            member.params, member.optimizer, gradient, self._optimizer
        )
        average = member.average
        if self._ema_decay is not None:
            # Warmed up, so that a short training is not held back by its start.
            n = member.steps.astype(loss.dtype)
            decay = jnp.minimum(self._ema_decay, (1 + n) / (10 + n))
            average = jax.tree_util.tree_map(
                lambda old, new: decay * old + (1 - decay) * new, average, params
            )
        alive = member.alive & jnp.isfinite(loss) & jnp.isfinite(optax.global_norm(gradient))
        moved = member._replace(
            params=params, optimizer=state, average=average, steps=member.steps + 1
        )
        kept = jax.tree_util.tree_map(lambda new, old: jnp.where(alive, new, old), moved, member)
        return kept._replace(alive=alive, batch_losses=member.batch_losses.at[step].set(loss))

    def _loss_and_gradient(
        self, params: Params, batch: Labelled, weight: jax.Array, group: int
    ) -> tuple[jax.Array, Params]:
        """Of the whole batch, whatever part of it is here."""
        of_part = jax.value_and_grad(self._objective.batch_loss)
        together = self._micro_batch or len(weight)
        if self._axis is None and together >= len(weight):
            whole: tuple[jax.Array, Params] = of_part(params, batch, weight, group)
            return whole
        total = loss.Totals(jnp.sum(batch.frames.mask * weight[:, None]), jnp.sum(weight))
        if self._axis is not None:
            total = jax.lax.psum(total, self._axis)

        def add(sum_so_far: Any, part: tuple[Labelled, jax.Array]) -> tuple[Any, None]:
            more = of_part(params, *part, group, total=total)
            return jax.tree_util.tree_map(jnp.add, sum_so_far, more), None

        if together >= len(weight):
            summed = of_part(params, batch, weight, group, total=total)
        else:
            parts = jax.tree_util.tree_map(
                lambda leaf: leaf.reshape(-1, together, *leaf.shape[1:]), (batch, weight)
            )
            nothing = (jnp.zeros((), weight.dtype), jax.tree_util.tree_map(jnp.zeros_like, params))
            summed, _ = jax.lax.scan(add, nothing, parts)
        return summed if self._axis is None else jax.lax.psum(summed, self._axis)
