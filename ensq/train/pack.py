"""A pack: members of one ensemble that train together, stacked on a leading axis.

One compiled program steps all members on the same batches (``vmap``). Each member keeps its own
optimiser state, clipping, losses and best parameters; a member whose loss is no longer finite is
frozen and never touches its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chemtrain.learn import max_likelihood
from numpy.typing import NDArray

from ensq.config import RunConfig
from ensq.train import loss as losses
from ensq.train import optimizers
from ensq.train.dataset import Dataset, Labelled, without_shift
from ensq.train.models import EnergyModel, build_model

Params = Any  # a nested dict of arrays


class Lanes(NamedTuple):
    """State on the device; every leaf has the members [K] as its first axis."""

    params: Params
    optimizer: Any  # of the present stage
    average: Params  # moving average of params; an empty tuple if there is none
    best: Params  # evaluated parameters of the best epoch
    steps: jax.Array  # [K] int32, gradient steps since the start of the training
    alive: jax.Array  # [K] bool, false once a loss was not finite
    batch_losses: jax.Array  # [K, steps per epoch], of the epoch under way


class Batches(NamedTuple):
    """The order of one epoch: the same for every member."""

    index: NDArray[np.int32]  # type: ignore[assignment]  # [S, B] training frames; not tuple.index
    weight: NDArray[np.float32]  # [S, B], 0 for places that fill the last batch

    @property
    def frames(self) -> NDArray[Any]:
        """[S] frames in each batch."""
        return self.weight.sum(axis=1)


class Validation(NamedTuple):
    """Errors of every member on every validation frame, on the host."""

    force: NDArray[Any]  # [K, V] sum of squared errors over real components
    energy: NDArray[Any]  # [K, V] U - U_ref


def batches_of_epoch(n_frames: int, batch: int, seed: int, epoch: int) -> Batches:
    """Every training frame once, shuffled by data seed and epoch; the last batch is filled up."""
    order = np.random.default_rng([seed, 2, epoch]).permutation(n_frames).astype(np.int32)
    return _in_batches(order, batch)


def stack(trees: list[Any]) -> Any:
    """Join the members' trees on a new leading axis."""
    return jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *trees)


def lane(tree: Any, member: int) -> Any:
    """One member's tree as NumPy arrays."""
    return jax.tree_util.tree_map(lambda leaf: np.asarray(leaf[member]), tree)


class Program:
    """The compiled functions for one configuration and data set; packs of one size share them."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.model: EnergyModel = build_model(config.model, without_shift(dataset.statistics))
        self.dtype = jnp.dtype(config.training.precision)
        self.batch = min(config.training.batch_per_device, dataset.n_training)
        self.steps_per_epoch = -(-dataset.n_training // self.batch)
        self._loss = losses.init_loss(config.training.gammas)
        self._optimizers = [
            optimizers.build(config.optimizer, stage, stage.epochs * self.steps_per_epoch)
            for stage in config.training.stages
        ]
        self._init = jax.jit(partial(self.model.init, dtype=self.dtype))
        self._run: dict[int, Callable[..., Lanes]] = {}
        self._evaluate = jax.jit(jax.vmap(self._evaluate_member, in_axes=(0, None, None)))
        self._evaluators: dict[int, Any] = {}  # compiled, by the number of members
        self._warm: set[tuple[int, int]] = set()  # (stage, members) that are compiled
        self._keep_best = jax.jit(_keep_best)
        size = min(self.batch, dataset.n_validation)
        walk = _in_batches(np.arange(dataset.n_validation, dtype=np.int32), size)
        self._validation = dataset.validation, jnp.asarray(walk.index)

    # -- state ---------------------------------------------------------------------------------

    def stage_of(self, epoch: int) -> int:
        """The stage that trains epoch ``epoch`` (0 is the first)."""
        for number, stage in enumerate(self.config.training.stages):
            if epoch < stage.epochs:
                return number
            epoch -= stage.epochs
        return len(self.config.training.stages) - 1

    def starts_stage(self, epoch: int) -> bool:
        """Whether ``epoch`` is the first of a stage, which begins with a new optimiser state."""
        return epoch == 0 or self.stage_of(epoch) != self.stage_of(epoch - 1)

    def new_member(self, seed: int) -> Lanes:
        """The state of one member (no leading axis) before its first step."""
        params = self._init(jax.random.PRNGKey(seed))
        averaged = self.config.training.ema_decay is not None
        return Lanes(
            params=params,
            optimizer=self._optimizers[0].init(params),
            average=params if averaged else (),
            best=params,
            steps=jnp.zeros((), jnp.int32),
            alive=jnp.ones((), bool),
            batch_losses=jnp.zeros(self.steps_per_epoch, self.dtype),
        )

    def template(self, epoch: int, step: int) -> Lanes:
        """A state of the right structure and shapes for a checkpoint at this place.

        Between two epochs the optimiser is still that of the epoch before.
        """
        member = self.new_member(0)
        stage = self.stage_of(epoch if step or not epoch else epoch - 1)
        optimizer = self._optimizers[stage].init(member.params)
        return member._replace(optimizer=optimizer)

    def begin_stage(self, lanes: Lanes, epoch: int) -> Lanes:
        """A new optimiser state; parameters go on from the stage before."""
        init = jax.vmap(self._optimizers[self.stage_of(epoch)].init)
        return lanes._replace(optimizer=init(lanes.params))

    def evaluated(self, lanes: Lanes) -> Params:
        """The parameters that are validated and exported: averaged ones if there are any."""
        return lanes.params if lanes.average == () else lanes.average

    def learning_rate(self, epoch: int, step: int) -> float:
        """The rate of a step of an epoch (both from 0)."""
        stage = self.config.training.stages[self.stage_of(epoch)]
        settings = optimizers.settings_of(self.config.optimizer, stage)
        before = sum(s.epochs for s in self.config.training.stages[: self.stage_of(epoch)])
        count = (epoch - before) * self.steps_per_epoch + step
        rate = optimizers.schedule(settings, stage.epochs * self.steps_per_epoch)
        return float(rate(count))

    # -- training ------------------------------------------------------------------------------

    def is_compiled(self, members: int, epoch: int) -> bool:
        """Whether an epoch of a pack of this size runs without compiling first."""
        return (self.stage_of(epoch), members) in self._warm

    def compile(self, lanes: Lanes, epoch: int, batches: Batches) -> Lanes:
        """Compile what an epoch needs, so that its time is that of the training alone.

        The steps are compiled by running none of them, which leaves the state as it is.
        """
        members = int(lanes.alive.shape[0])
        lanes = self.run_steps(lanes, epoch, batches, 0, 0)
        self._evaluator(self.evaluated(lanes), members)
        self._warm.add((self.stage_of(epoch), members))
        return lanes

    def _evaluator(self, params: Params, members: int) -> Any:
        if members not in self._evaluators:
            self._evaluators[members] = self._evaluate.lower(params, *self._validation).compile()
        return self._evaluators[members]

    def run_steps(self, lanes: Lanes, epoch: int, batches: Batches, start: int, stop: int) -> Lanes:
        """Train steps ``start`` to ``stop`` - 1 of an epoch, without a round trip in between.

        How an epoch is cut into calls does not change its result: the bounds are traced, so that
        every call runs the same compiled step.
        """
        stage = self.stage_of(epoch)
        if stage not in self._run:
            run = partial(self._run_lanes, self._optimizers[stage])
            self._run[stage] = jax.jit(run, donate_argnums=0)
        weight = batches.weight.astype(self.dtype)
        return self._run[stage](
            lanes, self.dataset.training, batches.index, weight, np.int32(start), np.int32(stop)
        )

    def _run_lanes(
        self,
        optimizer: Any,
        lanes: Lanes,
        training: Labelled,
        index: jax.Array,
        weight: jax.Array,
        start: jax.Array,
        stop: jax.Array,
    ) -> Lanes:
        def body(step: jax.Array, lanes: Lanes) -> Lanes:
            batch = jax.tree_util.tree_map(lambda leaf: leaf[index[step]], training)
            one = partial(self._step, optimizer, batch=batch, weight=weight[step], step=step)
            return jax.vmap(one)(lanes)

        return jax.lax.fori_loop(start, stop, body, lanes)

    def _step(
        self, optimizer: Any, member: Lanes, *, batch: Labelled, weight: jax.Array, step: jax.Array
    ) -> Lanes:
        """One gradient step of one member; a step that is not finite leaves it as it was."""
        loss, gradient = jax.value_and_grad(self.batch_loss)(member.params, batch, weight)
        params, state = max_likelihood.step_optimizer(
            member.params, member.optimizer, gradient, optimizer
        )
        average = member.average
        if self.config.training.ema_decay is not None:
            # Warmed up, so that a short training is not held back by its start.
            n = member.steps.astype(self.dtype)
            decay = jnp.minimum(self.config.training.ema_decay, (1 + n) / (10 + n))
            average = jax.tree_util.tree_map(
                lambda old, new: decay * old + (1 - decay) * new, average, params
            )
        alive = member.alive & jnp.isfinite(loss) & jnp.isfinite(optax.global_norm(gradient))
        moved = member._replace(
            params=params, optimizer=state, average=average, steps=member.steps + 1
        )
        kept = jax.tree_util.tree_map(lambda new, old: jnp.where(alive, new, old), moved, member)
        return kept._replace(alive=alive, batch_losses=member.batch_losses.at[step].set(loss))

    def batch_loss(self, params: Params, batch: Labelled, weight: jax.Array) -> jax.Array:
        """The loss of one member on one batch; ``weight`` [B] is 0 for frames that fill up."""
        gammas = self.config.training.gammas
        if gammas.F:
            energy, force = self.model.energy_and_forces(params, batch.frames)
        else:
            energy = self.model.per_bead_energy(params, batch.frames).sum(axis=-1)
            force = jnp.zeros_like(batch.F)
        predictions = {"F": force, "U": energy}
        targets: dict[str, jax.Array] = {
            "F_weight": batch.frames.mask * weight[:, None],
            "U_weight": weight,
        }
        if gammas.F:
            targets["F"] = batch.F
        if gammas.U:
            targets["U"] = batch.U
        return self._loss(predictions, targets)

    # -- validation ----------------------------------------------------------------------------

    def validate(self, params: Params) -> Validation:
        """Errors of every member over the whole validation set, in its fixed order."""
        members = int(jax.tree_util.tree_leaves(params)[0].shape[0])
        errors: losses.Errors = self._evaluator(params, members)(params, *self._validation)
        return Validation(
            *(np.asarray(part, np.float64)[:, : self.dataset.n_validation] for part in errors)
        )

    def _evaluate_member(
        self, params: Params, labelled: Labelled, frames: jax.Array
    ) -> losses.Errors:
        def of_batch(index: jax.Array) -> losses.Errors:
            batch = jax.tree_util.tree_map(lambda leaf: leaf[index], labelled)
            energy, force = self.model.energy_and_forces(params, batch.frames)
            return losses.frame_errors(energy, force, batch.U, batch.F, batch.frames.mask)

        errors = jax.lax.map(of_batch, frames)
        return losses.Errors(*(part.reshape(-1) for part in errors))

    def keep_best(self, lanes: Lanes, improved: NDArray[np.bool_]) -> Lanes:
        """Take the evaluated parameters as the best ones where ``improved`` [K]."""
        return self._keep_best(lanes, self.evaluated(lanes), jnp.asarray(improved))


def _keep_best(lanes: Lanes, evaluated: Params, improved: jax.Array) -> Lanes:
    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return lanes._replace(best=jax.tree_util.tree_map(choose, evaluated, lanes.best))


def _in_batches(order: NDArray[np.int32], size: int) -> Batches:
    """These frames in batches of ``size``; the last one is filled with frame 0 at weight 0."""
    steps = -(-len(order) // size)
    index = np.zeros(steps * size, np.int32)
    weight = np.zeros(steps * size, np.float32)
    index[: len(order)], weight[: len(order)] = order, 1
    return Batches(index.reshape(steps, size), weight.reshape(steps, size))
