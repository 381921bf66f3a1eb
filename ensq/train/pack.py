"""A pack: members of one ensemble that train together, stacked on a leading axis.

One compiled program steps all members on the same batches (``vmap``). Each member keeps its own
optimiser state, clipping, losses and best parameters; a member whose loss is no longer finite is
frozen and never touches its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ensq.config import RunConfig
from ensq.train import grid, optimizers, pretrain
from ensq.train import loss as losses
from ensq.train.batches import Batches
from ensq.train.dataset import Dataset, without_shift
from ensq.train.feeding import ValidationPiece, feed
from ensq.train.labelled import Labelled
from ensq.train.models import EnergyModel, build_model
from ensq.train.objective import Objective, Params, shares_of
from ensq.train.stepping import Lanes, Stepper

__all__ = ["Errors", "Lanes", "Program", "lane", "stack"]


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
    """The compiled functions for one configuration and data set; packs of one size share them.

    Args:
        config: The run's configuration.
        dataset: Its data.
        devices: What to compute on; all that JAX sees here if None.
    """

    def __init__(
        self, config: RunConfig, dataset: Dataset, devices: Sequence[Any] | None = None
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.devices = grid.Devices(devices)
        self.model: EnergyModel = build_model(config.model, without_shift(dataset.statistics))
        self.dtype = jnp.dtype(config.training.dtype)
        self.batch = min(config.training.batch_per_device, max(dataset.sizes))
        self.steps_per_epoch = sum(-(-size // self.batch) for size in dataset.sizes)
        self.feed = feed(dataset, self.batch, self.dtype, self.devices.everywhere)
        mixed = config.training.precision == "mixed"
        self.objective = Objective(
            config.training.gammas,
            shares_of(dataset.real_beads, dataset.sizes),
            self.model.in_mixed_precision() if mixed else self.model,
            self.dtype,
        )
        self._optimizers = [
            optimizers.build(config.optimizer, stage, stage.epochs * self.steps_per_epoch)
            for stage in config.training.stages
        ]
        self._init = jax.jit(self.model.init)
        self._example = self.feed.example
        self._priors: Params = None  # fitted before the first stage, if the configuration asks
        self._run: dict[tuple[int, Any], Callable[..., Lanes]] = {}  # by stage and shape of grid
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
            self.objective.prior_loss,
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
        devices = self.devices.grid(_members(lanes.params))
        made = init(lanes.params) if devices is None else devices.of_members(init, lanes.params)
        return self.spread(lanes._replace(optimizer=made))

    def spread(self, lanes: Lanes) -> Lanes:
        """The lanes on the devices that train them."""
        devices = self.devices.grid(_members(lanes.params))
        return lanes if devices is None else devices.spread(lanes)

    def take(self, lanes: Lanes, kept: NDArray[Any]) -> Lanes:
        """The lanes of some members alone, by their places."""
        return self.spread(jax.tree_util.tree_map(lambda leaf: leaf[kept], lanes))

    def fetch(self, lanes: Lanes, *fields: str) -> Sequence[Any]:
        """Copies of parts of the state on the host."""
        return [self.devices.fetch(getattr(lanes, name)) for name in fields]

    def structures(self) -> list[Any]:
        """How the tree of a state is built in each stage."""
        member = self._fresh(0)
        states = [one.init(member.params) for one in self._optimizers]
        return [jax.tree_util.tree_structure(member._replace(optimizer=one)) for one in states]

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
        members = _members(lanes.params)
        lanes = self.run_steps(lanes, epoch, batches, 0, 0)
        for piece in self.feed.shapes():
            self._evaluator(self.evaluated(lanes), piece, members)
        self._warm.add((self.stage_of(epoch), members))
        return lanes

    def _evaluator(self, params: Params, piece: ValidationPiece, members: int) -> Any:
        key = (piece.group, members)
        if key not in self._evaluators:
            shapes = jax.tree_util.tree_map(self.devices.shape_everywhere, piece[1:3])
            run = jax.jit(partial(self._evaluate, self.devices.grid(members)))
            self._evaluators[key] = run.lower(params, *shapes).compile()
        return self._evaluators[key]

    def run_steps(self, lanes: Lanes, epoch: int, batches: Batches, start: int, stop: int) -> Lanes:
        """Train steps ``start`` to ``stop`` - 1 of an epoch, without a round trip in between.

        How an epoch is cut into calls does not change its result: the bounds are traced, so that
        every call runs the same compiled step.
        """
        run = self._steps(self.stage_of(epoch), _members(lanes.params))
        while True:
            piece = self.feed.steps(batches, start)
            end = min(stop, piece.stop)
            bounds = map(np.int32, (piece.first, start, end))
            lanes = run(lanes, piece.training, piece.order, *bounds)
            if end == stop:
                return lanes
            start = end

    def _steps(self, stage: int, members: int) -> Callable[..., Lanes]:
        devices = self.devices.grid(members)
        key = (stage, devices and devices.shape)
        if key not in self._run:
            settings = self.config.training
            stepper = Stepper(
                self.objective,
                self._optimizers[stage],
                ema_decay=settings.ema_decay,
                micro_batch=settings.micro_batch,
                devices=devices,
            )
            self._run[key] = jax.jit(stepper.run, donate_argnums=0)
        return self._run[key]

    # -- validation ----------------------------------------------------------------------------

    def validate(self, params: Params) -> Errors:
        """Errors of every member over the whole validation set, in its fixed order."""
        members = _members(params)
        parts = []
        for piece in self.feed.validation():
            errors = self._evaluator(params, piece, members)(params, piece.part, piece.index)
            found = map(self.devices.fetch, errors)
            parts.append([np.asarray(one, np.float64)[:, : piece.frames] for one in found])
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

    def _evaluate(
        self, devices: grid.Grid | None, params: Params, labelled: Labelled, index: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Errors [K,V], [K,V] and [K,V,species] of the frames [S,B] of one group, in a row."""
        of_members: Any = jax.vmap(self._evaluate_member, in_axes=(0, None, None))
        batch = index.shape[1]
        if devices is not None:
            of_members = devices.map(of_members, ("members", "all", "frames"), "errors")
            index = grid.padded(index, devices.batch)
        errors = of_members(params, labelled, index)
        return tuple(
            part[:, :, :batch].reshape(part.shape[0], -1, *part.shape[3:]) for part in errors
        )

    def _evaluate_member(
        self, params: Params, labelled: Labelled, frames: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Errors [S,B], [S,B] and [S,B,species]."""
        n_species = self.dataset.statistics.n_species

        def of_batch(index: jax.Array) -> tuple[jax.Array, ...]:
            batch = jax.tree_util.tree_map(lambda leaf: leaf[index], labelled)
            energy, force = self.model.energy_and_forces(params, batch.frames)
            mask, species = batch.frames.mask, batch.frames.species
            errors = losses.frame_errors(energy, force, batch.U, batch.F, mask)
            return *errors, losses.species_errors(force, batch.F, mask, species, n_species)

        evaluated: tuple[jax.Array, ...] = jax.lax.map(of_batch, frames)
        return evaluated

    def keep_best(self, lanes: Lanes, improved: NDArray[np.bool_]) -> Lanes:
        """Take the evaluated parameters as the best ones where ``improved`` [K]."""
        return self._keep_best(lanes, self.evaluated(lanes), np.asarray(improved))


def _keep_best(lanes: Lanes, evaluated: Params, improved: jax.Array) -> Lanes:
    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return lanes._replace(best=jax.tree_util.tree_map(choose, evaluated, lanes.best))


def _members(params: Params) -> int:
    return int(jax.tree_util.tree_leaves(params)[0].shape[0])
