"""Optimisers of a stage: clip by global norm, optimiser, weight decay, learning rate by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from ensq.config.structs import OptimizerConfig, OptimizerSettings, StageConfig


def settings_of(config: OptimizerConfig, stage: StageConfig) -> OptimizerSettings:
    """The settings of a stage's optimiser."""
    settings: OptimizerSettings = getattr(config, stage.optimizer)
    return settings


def schedule(settings: OptimizerSettings, stage_steps: int) -> optax.Schedule:
    """Learning rate by gradient step: linear warm-up, then a cosine.

    Args:
        settings: ``lr`` rises to ``peak_lr`` over ``warmup_steps``, then falls to ``end_lr``,
            reached after ``total_steps`` steps, warm-up included.
        stage_steps: Steps of the stage, the default of ``total_steps``.
    """
    peak = settings.lr if settings.peak_lr is None else settings.peak_lr
    end = settings.lr / 10 if settings.end_lr is None else settings.end_lr
    total = stage_steps if settings.total_steps is None else settings.total_steps
    warmup = min(settings.warmup_steps, max(total - 1, 0))
    cosine = optax.cosine_decay_schedule(peak, max(total - warmup, 1), alpha=end / peak)
    if warmup == 0:
        return cosine
    return optax.join_schedules(
        [optax.linear_schedule(settings.lr, peak, warmup), cosine], boundaries=[warmup]
    )


def build(config: OptimizerConfig, stage: StageConfig, stage_steps: int) -> Any:
    """The optax chain of one stage, for one member; a pack maps it over its members."""
    settings = settings_of(config, stage)
    parts = [] if config.grad_clip is None else [optax.clip_by_global_norm(config.grad_clip)]
    scaling = _SCALINGS[stage.optimizer](settings)
    if settings.weight_decay:
        decay = optax.add_decayed_weights(settings.weight_decay, mask=_decayed)
        # After the scaling: decoupled from the gradient, as in AdamW (Loshchilov & Hutter, 2019).
        parts += [decay, scaling] if settings.decay_by_gradient else [scaling, decay]
    else:
        parts.append(scaling)
    parts.append(optax.scale_by_learning_rate(schedule(settings, stage_steps)))
    return optax.chain(*parts)


def _decayed(params: Any) -> Any:
    """Which parameters decay: the network's. A bond length of the priors has no business at 0."""
    return {
        part: jax.tree_util.tree_map(lambda _, decays=part != "priors": decays, tree)
        for part, tree in params.items()
    }


def _adam(settings: OptimizerSettings) -> Any:
    eps = 1e-8 if settings.eps is None else settings.eps
    return optax.scale_by_adam(b1=settings.beta1, b2=settings.beta2, eps=eps)


def _adabelief(settings: OptimizerSettings) -> Any:
    eps = 1e-16 if settings.eps is None else settings.eps
    return optax.scale_by_belief(b1=settings.beta1, b2=settings.beta2, eps=eps)


def _yogi(settings: OptimizerSettings) -> Any:
    eps = 1e-3 if settings.eps is None else settings.eps
    return optax.scale_by_yogi(b1=settings.beta1, b2=settings.beta2, eps=eps)


def _lion(settings: OptimizerSettings) -> Any:
    return optax.scale_by_lion(b1=settings.beta1, b2=settings.beta2)


def _nesterov(settings: OptimizerSettings) -> Any:
    return optax.trace(decay=settings.momentum, nesterov=True)


def _momentum(settings: OptimizerSettings) -> Any:
    return optax.trace(decay=settings.momentum)


def _plain(_settings: OptimizerSettings) -> Any:
    return optax.identity()


_SCALINGS: dict[str, Callable[[OptimizerSettings], Any]] = {
    "adam": _adam,
    "adamw": _adam,
    "adabelief": _adabelief,
    "yogi": _yogi,
    "lion": _lion,
    "sgd_nesterov": _nesterov,
    # The names are kept from existing users' files, whose code means these by them.
    "polyak_sgd": _momentum,
    "fromage": _plain,
}
