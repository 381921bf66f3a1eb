"""A pack: members of one ensemble that train together, stacked on a leading axis.

One compiled program steps all members on the same batches (``vmap``). Each member keeps its own
optimiser state, clipping, losses and best parameters; a member whose loss is no longer finite is
frozen and never touches its neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from chemtrain.learn import max_likelihood
from numpy.typing import NDArray

from ensq.config import RunConfig
from ensq.train import loss as losses
from ensq.train import optimizers, pretrain
from ensq.train.batches import Batches, in_batches
from ensq.train.dataset import Dataset, without_shift
from ensq.train.feeding import ValidationPiece, feed
from ensq.train.labelled import Labelled
from ensq.train.models import EnergyModel, build_model

Params = Any  # a nested dict of arrays
PRIOR_BATCH = 256  # frames that the priors alone look at together: they need little memory


class Lanes(NamedTuple):
    """State on the device; every leaf has the members [K] as its first axis."""

    params: Params
    optimizer: Any  # of the present stage
    average: Params  # moving average of params; an empty tuple if there is none
    best: Params  # evaluated parameters of the best epoch
    steps: jax.Array  # [K] int32, gradient steps since the start of the training
    alive: jax.Array  # [K] bool, false once a loss was not finite
    batch_losses: jax.Array  # [K, steps per epoch], of the epoch under way


class Errors(NamedTuple):
    """Errors of every member on every validation frame, on the host."""

    force: NDArray[Any]  # [K, V] sum of squared errors over real components
    energy: NDArray[Any]  # [K, V] U - U_ref
    species: NDArray[Any]  # [K, P, S] sum of squared errors by protein and species


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
        gammas = config.training.gammas
        self.model: EnergyModel = build_model(config.model, without_shift(dataset.statistics))
        self.dtype = jnp.dtype(config.training.precision)
        self.batch = min(config.training.batch_per_device, max(dataset.sizes))
        self.steps_per_epoch = sum(-(-size // self.batch) for size in dataset.sizes)
        self.feed = feed(dataset, self.batch, self.dtype)
        self._losses = [
            losses.init_loss(msgspec.structs.replace(gammas, F=gammas.F * share))
            for share in _shares(dataset.real_beads, dataset.sizes)
        ]
        self._optimizers = [
            optimizers.build(config.optimizer, stage, stage.epochs * self.steps_per_epoch)
            for stage in config.training.stages
        ]
        self._init = jax.jit(self.model.init)
        self._example = self.feed.example
        self._priors: Params = None  # fitted before the first stage, if the configuration asks
        self._run: dict[int, Callable[..., Lanes]] = {}
        self._evaluate = jax.jit(jax.vmap(self._evaluate_member, in_axes=(0, None, None)))
        self._evaluators: dict[tuple[int, int], Any] = {}  # compiled, by group and members
        self._warm: set[tuple[int, int]] = set()  # (stage, members) that are compiled
        self._keep_best = jax.jit(_keep_best)

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

    @property
    def priors_fitted(self) -> bool:
        return self._priors is not None

    def fit_priors(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Fit the priors' parameters alone to the training frames: the same for all members."""
        settings = self.config.training
        self._priors, _ = pretrain.fit_priors(
            self._fresh(0).params,
            self.prior_loss,
            self.dataset.training,
            min_steps=settings.pretrain_prior_min_steps,
            max_steps=settings.pretrain_prior_max_steps,
            tol_grad=settings.pretrain_prior_tol_grad,
            say=say,
        )

    def new_member(self, seed: int) -> Lanes:
        """The state of one member (no leading axis) before its first step."""
        member = self._fresh(seed)
        if not self.config.training.pretrain_prior:
            return member
        if not self.priors_fitted:
            self.fit_priors()
        params = {**member.params, "priors": self._priors}
        averaged = params if self.config.training.ema_decay is not None else ()
        return member._replace(params=params, average=averaged, best=params)

    def _fresh(self, seed: int) -> Lanes:
        params = self._init(jax.random.PRNGKey(seed), self._example)
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
        member = self._fresh(0)
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
        for piece in self.feed.shapes():
            self._evaluator(self.evaluated(lanes), piece, members)
        self._warm.add((self.stage_of(epoch), members))
        return lanes

    def _evaluator(self, params: Params, piece: ValidationPiece, members: int) -> Any:
        key = (piece.group, members)
        if key not in self._evaluators:
            lowered = self._evaluate.lower(params, piece.part, piece.index)
            self._evaluators[key] = lowered.compile()
        return self._evaluators[key]

    def run_steps(self, lanes: Lanes, epoch: int, batches: Batches, start: int, stop: int) -> Lanes:
        """Train steps ``start`` to ``stop`` - 1 of an epoch, without a round trip in between.

        How an epoch is cut into calls does not change its result: the bounds are traced, so that
        every call runs the same compiled step.
        """
        stage = self.stage_of(epoch)
        if stage not in self._run:
            run = partial(self._run_lanes, self._optimizers[stage])
            self._run[stage] = jax.jit(run, donate_argnums=0)
        while True:
            piece = self.feed.steps(batches, start)
            end = min(stop, piece.stop)
            lanes = self._run[stage](
                lanes, piece.training, piece.order, *map(np.int32, (piece.first, start, end))
            )
            if end == stop:
                return lanes
            start = end

    def _run_lanes(
        self,
        optimizer: Any,
        lanes: Lanes,
        training: tuple[Labelled, ...],
        order: Any,
        first: jax.Array,
        start: jax.Array,
        stop: jax.Array,
    ) -> Lanes:
        def of_group(group: int, step: jax.Array, lanes: Lanes) -> Lanes:
            index, weight = order.index[step - first], order.weight[step - first]
            batch = jax.tree_util.tree_map(lambda leaf: leaf[index], training[group])
            one = partial(self._step, optimizer, group, batch, weight, step)
            return jax.vmap(one)(lanes)

        def body(step: jax.Array, lanes: Lanes) -> Lanes:
            if len(training) == 1:
                return of_group(0, step, lanes)
            # all members train on one group at a time, so that only its branch is run
            branches = [partial(of_group, group) for group in range(len(training))]
            return jax.lax.switch(order.group[step - first], branches, step, lanes)

        return jax.lax.fori_loop(start, stop, body, lanes)

    def _step(
        self,
        optimizer: Any,
        group: int,
        batch: Labelled,
        weight: jax.Array,
        step: jax.Array,
        member: Lanes,
    ) -> Lanes:
        """One gradient step of one member; a step that is not finite leaves it as it was."""
        loss, gradient = jax.value_and_grad(self.batch_loss)(member.params, batch, weight, group)
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

    def batch_loss(
        self,
        params: Params,
        batch: Labelled,
        weight: jax.Array,
        group: int = 0,
        model: EnergyModel | None = None,
    ) -> jax.Array:
        """The loss of one member on one batch; ``weight`` [B] is 0 for frames that fill up."""
        gammas = self.config.training.gammas
        model = model or self.model
        if gammas.F:
            energy, force = model.energy_and_forces(params, batch.frames)
        else:
            energy = model.per_bead_energy(params, batch.frames).sum(axis=-1)
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
        return self._losses[group](predictions, targets)

    def prior_loss(self, params: Params, training: tuple[Labelled, ...]) -> jax.Array:
        """The loss of the priors alone over all training frames."""
        alone = dataclasses.replace(self.model, network=None, train_priors=True)
        total = jnp.zeros((), self.dtype)
        for group, part in enumerate(training):

            def of_batch(
                place: tuple[jax.Array, jax.Array], part: Labelled = part, group: int = group
            ) -> jax.Array:
                batch = jax.tree_util.tree_map(lambda leaf: leaf[place[0]], part)
                return self.batch_loss(params, batch, place[1], group, alone) * jnp.sum(place[1])

            walk = in_batches(np.arange(part.n_frames), min(PRIOR_BATCH, part.n_frames))
            weight = jnp.asarray(walk.weight, self.dtype)
            # computed again for the gradient: memory does not grow with the number of frames
            again = jax.remat(of_batch)  # type: ignore[attr-defined]
            total += jnp.sum(jax.lax.map(again, (walk.index, weight)))
        return total / self.dataset.n_training

    # -- validation ----------------------------------------------------------------------------

    def validate(self, params: Params) -> Errors:
        """Errors of every member over the whole validation set, in its fixed order."""
        members = int(jax.tree_util.tree_leaves(params)[0].shape[0])
        parts = []
        for piece in self.feed.validation():
            errors = self._evaluator(params, piece, members)(params, piece.part, piece.index)
            parts.append([np.asarray(one, np.float64)[:, : piece.frames] for one in errors])
        place = self.dataset.validated.place
        force, energy, species = (
            np.concatenate(arrays, axis=1)[:, place] for arrays in zip(*parts, strict=True)
        )
        return Errors(force, energy, self._by_protein(species))

    def _by_protein(self, species: NDArray[Any]) -> NDArray[Any]:
        """[K, V, S] to [K, P, S], the sum over the frames of each protein."""
        validated = self.dataset.validated
        sums = np.zeros((len(species), *validated.species_components.shape))
        for protein in range(sums.shape[1]):
            sums[:, protein] = species[:, validated.protein == protein].sum(axis=1)
        return sums

    def _evaluate_member(
        self, params: Params, labelled: Labelled, frames: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Errors [V], [V] and [V, species] of the frames of one group, and of the fill."""
        n_species = self.dataset.statistics.n_species

        def of_batch(index: jax.Array) -> tuple[jax.Array, ...]:
            batch = jax.tree_util.tree_map(lambda leaf: leaf[index], labelled)
            energy, force = self.model.energy_and_forces(params, batch.frames)
            mask, species = batch.frames.mask, batch.frames.species
            errors = losses.frame_errors(energy, force, batch.U, batch.F, mask)
            return *errors, losses.species_errors(force, batch.F, mask, species, n_species)

        errors = jax.lax.map(of_batch, frames)
        return tuple(part.reshape(-1, *part.shape[2:]) for part in errors)

    def keep_best(self, lanes: Lanes, improved: NDArray[np.bool_]) -> Lanes:
        """Take the evaluated parameters as the best ones where ``improved`` [K]."""
        return self._keep_best(lanes, self.evaluated(lanes), jnp.asarray(improved))


def _keep_best(lanes: Lanes, evaluated: Params, improved: jax.Array) -> Lanes:
    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return lanes._replace(best=jax.tree_util.tree_map(choose, evaluated, lanes.best))


def _shares(real: tuple[float, ...], frames: tuple[int, ...]) -> list[float]:
    """For each group its real components per frame against those of the whole set.

    The mean over the components of a batch, times this, weighs every component of the set alike,
    whichever group it is in. 1 where there is one group.
    """
    if len(real) == 1:
        return [1.0]
    overall = sum(real) / sum(frames)
    return [beads / count / overall for beads, count in zip(real, frames, strict=True)]
