"""The sections ``training`` and ``optimizer`` of the older form, in ensq's."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ensq.config.notes import Notes
from ensq.config.structs import OPTIMIZERS
from ensq.errors import ConfigError

_STAGES = ("stage1_optimizer", "stage2_optimizer")
_NO_EFFECT = {
    "batch_cache": "all frames are held in memory",
    "checkpoint_path": "checkpoints lie in the run folder, a folder for each attempt",
}
_PROFILING = ("enabled", "trace_dir", "trace_rank0_only", "log_compiles")
# Older files may leave these out; what they meant then is not known.
_OPEN = ("val_fraction", "batch_per_device", "gammas")
_OPTIMIZER_KEYS = ("decay_steps", "warmup_epochs", "grad_clip", "f_star", "epochs")
# decay_steps where a section leaves it out; the cosine ended after twice as many steps.
_DECAY_STEPS = 100
_LR = 1e-3


def older_training_keys(training: dict[str, Any]) -> Iterator[str]:
    """The keys of ``training`` that only the older form has."""
    older = {*_STAGES, *_NO_EFFECT, "profiling", *(f"epochs_{name}" for name in OPTIMIZERS)}
    yield from (key for key in training if key in older)


def older_optimizer_keys(optimizer: dict[str, Any]) -> Iterator[str]:
    """The keys of ``optimizer`` that only the older form has."""
    for name in OPTIMIZERS:
        if isinstance(section := optimizer.get(name), dict):
            yield from (f"{name}.{key}" for key in section if key in _OPTIMIZER_KEYS)


def used_optimizers(training: Any) -> list[Any]:
    """The optimisers that the stages of a translated ``training`` name."""
    stages = training.get("stages") if isinstance(training, dict) else None
    if not isinstance(stages, list):
        return []
    return [stage.get("optimizer") for stage in stages if isinstance(stage, dict)]


def translate_training(training: dict[str, Any], optimizer: Any, notes: Notes) -> dict[str, Any]:
    """``training`` in ensq's form; ``optimizer``, as the file has it, may tell the epochs."""
    new = dict(training)
    new["stages"] = _stages(new, optimizer if isinstance(optimizer, dict) else {}, notes)
    if new["stages"] is None:
        del new["stages"]
    for key, why in _NO_EFFECT.items():
        if key in new:
            del new[key]
            notes.no_effect(f"training.{key}", why)
    _profiling(new, notes)
    _checkpoint_freq(new, notes)
    if new.get("val_fraction") == 0 and new["val_fraction"] is not False:
        raise ConfigError(
            "training.val_fraction is 0: the best epoch is found on frames that don't train; give "
            "a share between 0 and 1, as in 0.1"
        )
    absent = [key for key in _OPEN if key not in new]
    if absent:
        notes.translated("training", f"not in the file, so ensq's defaults: {', '.join(absent)}")
    return new


def _stages(new: dict[str, Any], optimizer: dict[str, Any], notes: Notes) -> Any:
    """The list of stages; the older keys for it are taken out of ``new``."""
    named = {key: new.pop(key) for key in _STAGES if key in new}
    epochs = {name: new.pop(f"epochs_{name}") for name in OPTIMIZERS if f"epochs_{name}" in new}
    if new.get("stages"):
        for key in named:
            notes.trap(f"training.{key}", "training.stages is given too, and it alone counts")
        _unused_epochs(epochs, optimizer, (), notes)
        return _without_empty(new["stages"], notes)
    if not named:
        _unused_epochs(epochs, optimizer, (), notes)
        return new.get("stages")
    stages: list[dict[str, Any]] = []
    sources: dict[str, str] = {}
    for key, name in named.items():
        if name in (None, "", "none"):
            notes.no_effect(f"training.{key}", "names no optimizer, so there is no such stage")
            continue
        if name not in OPTIMIZERS:
            raise ConfigError(f"training.{key}: expected one of {', '.join(OPTIMIZERS)}")
        source, count = _epochs_of(name, epochs, optimizer, key)
        sources[source] = name
        notes.translated(
            f"training.{key}", f"-> training.stages.{len(stages)}: {name}, {count} epochs"
        )
        stages.append({"optimizer": name, "epochs": count})
    for source, name in sources.items():
        notes.translated(source, f"-> epochs of the stage with {name}")
    _unused_epochs(epochs, optimizer, sources.values(), notes)
    return _without_empty(stages, notes)


def _epochs_of(
    name: str, epochs: dict[str, Any], optimizer: dict[str, Any], stage: str
) -> tuple[str, Any]:
    """The key that tells an optimiser's epochs, and its value."""
    if name in epochs:
        return f"training.epochs_{name}", epochs[name]
    section = optimizer.get(name)
    if isinstance(section, dict) and "epochs" in section:
        return f"optimizer.{name}.epochs", section["epochs"]
    raise ConfigError(
        f"training.epochs_{name} is missing: how many epochs training.{stage}: {name} trains"
    )


def _unused_epochs(
    epochs: dict[str, Any], optimizer: dict[str, Any], used: Collection[str], notes: Notes
) -> None:
    for name in epochs:
        if name not in used:
            notes.no_effect(f"training.epochs_{name}", f"no stage takes its epochs of {name} here")
    for name in OPTIMIZERS:
        section = optimizer.get(name)
        has = isinstance(section, dict) and "epochs" in section
        if has and (name not in used or name in epochs):
            notes.no_effect(f"optimizer.{name}.epochs", "the stage's epochs stand elsewhere")


def _without_empty(stages: Any, notes: Notes) -> Any:
    """The stages that train; a stage of 0 epochs was a way to switch it off."""
    if not isinstance(stages, list):
        return stages
    left = []
    for place, stage in enumerate(stages):
        epochs = stage.get("epochs") if isinstance(stage, dict) else None
        if epochs == 0 and epochs is not False:
            notes.translated(f"training.stages.{place}", "0 epochs: the stage is left out")
        elif isinstance(epochs, float) and epochs.is_integer():
            left.append({**stage, "epochs": int(epochs)})
        else:
            left.append(stage)
    if stages and not left:
        raise ConfigError("training: no stage has an epoch to train")
    return left


def _profiling(new: dict[str, Any], notes: Notes) -> None:
    section = new.get("profiling")
    if section is not None and not isinstance(section, dict):
        return
    for key in section or {}:
        if key not in _PROFILING and not str(key).startswith("batch_profiler_"):
            raise ConfigError(
                f"unknown key training.profiling.{key}; known here: {', '.join(_PROFILING)}, "
                "batch_profiler_*"
            )
        notes.no_effect(f"training.profiling.{key}", "there is no profiler here")
    new.pop("profiling", None)


def _checkpoint_freq(new: dict[str, Any], notes: Notes) -> None:
    value = new.get("checkpoint_freq", 1)
    off = value is None or (isinstance(value, int | float) and value is not False and value <= 0)
    if off:
        new["checkpoint_freq"] = 1
        notes.translated(
            "training.checkpoint_freq", f"{'null' if value is None else value} -> 1: every epoch"
        )


def translate_optimizer(optimizer: dict[str, Any], used: list[Any], notes: Notes) -> dict[str, Any]:
    """``optimizer`` in ensq's form; the optimisers of ``used`` get a section in any case."""
    new = dict(optimizer)
    decays = False
    for name in OPTIMIZERS:
        section = new.get(name)
        if section is None and (name in used or name in new):
            section = {}
        if isinstance(section, dict):
            decays |= "decay_steps" in section and name != "fromage"
            new[name] = _settings(name, section, notes)
    if decays:
        notes.trap(
            "optimizer",
            "there the cosine ended after 2 x decay_steps gradient steps, warm-up included; "
            "total_steps says that number",
        )
    return new


def _settings(name: str, section: dict[str, Any], notes: Notes) -> dict[str, Any]:
    at = f"optimizer.{name}"
    new = dict(section)
    new.pop("epochs", None)  # told with the stages
    if "f_star" in new:
        del new["f_star"]
        notes.no_effect(f"{at}.f_star", "no step length is computed from the loss")
    if "grad_clip" in new:
        del new["grad_clip"]
        notes.no_effect(f"{at}.grad_clip", "only optimizer.grad_clip counts")
        notes.trap(f"{at}.grad_clip", "was ignored there without a word: optimizer.grad_clip ruled")
    if name == "fromage":
        return _fixed_rate(at, new, notes)
    if name == "polyak_sgd":
        notes.translated(at, "is really SGD with momentum 0.9, there as here")
    _warmup(at, new, notes)
    _cosine(at, new, notes)
    if new.get("weight_decay") and "decay_by_gradient" not in new:
        new["decay_by_gradient"] = True
        notes.translated(
            f"{at}.weight_decay", "added to the gradient before the optimizer: decay_by_gradient"
        )
    return new


def _fixed_rate(at: str, new: dict[str, Any], notes: Notes) -> dict[str, Any]:
    schedule = (
        "peak_lr",
        "end_lr",
        "warmup_steps",
        "warmup_epochs",
        "decay_steps",
        "total_steps",
    )
    for key in schedule:
        if key in new:
            del new[key]
            notes.no_effect(f"{at}.{key}", "the rate is fixed at lr")
    rate = new.setdefault("lr", _LR)
    notes.translated(at, f"is really plain SGD at a fixed rate: peak_lr = end_lr = lr = {rate}")
    return {**new, "peak_lr": rate, "end_lr": rate, "warmup_steps": 0, "total_steps": None}


def _warmup(at: str, new: dict[str, Any], notes: Notes) -> None:
    if "warmup_epochs" not in new:
        return
    steps = new.pop("warmup_epochs")
    if "warmup_steps" in new:
        notes.no_effect(f"{at}.warmup_epochs", "warmup_steps is given too, and it counts")
        return
    new["warmup_steps"] = _whole(f"{at}.warmup_epochs", steps, 0)
    notes.translated(f"{at}.warmup_epochs", f"{steps} -> warmup_steps: {steps}")
    notes.trap(f"{at}.warmup_epochs", "meant gradient steps there, not epochs")


def _cosine(at: str, new: dict[str, Any], notes: Notes) -> None:
    """The end of the cosine, in gradient steps from the stage's start."""
    if "total_steps" in new:
        if "decay_steps" in new:
            raise ConfigError(
                f"{at}: total_steps and decay_steps are both given, and mean the same; keep one "
                "(total_steps = 2 x decay_steps)"
            )
        return
    given = new.pop("decay_steps", None)
    total = 2 * (_DECAY_STEPS if given is None else _whole(f"{at}.decay_steps", given, 1))
    new["total_steps"] = total
    if given is None:
        notes.translated(
            f"{at}.decay_steps", f"left out, which meant {_DECAY_STEPS} -> total_steps: {total}"
        )
    else:
        notes.translated(f"{at}.decay_steps", f"{given} -> total_steps: {total}")
    warmup = new.get("warmup_steps", 0)
    if isinstance(warmup, int) and warmup >= total:
        new["warmup_steps"] = total - 1
        notes.hint(
            f"{at}.warmup_steps",
            f"{warmup} is not below 2 x decay_steps = {total}; cut to {total - 1}",
        )


def _whole(key: str, value: Any, least: int) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or int(value) != value or value < least:
        raise ConfigError(f"{key}: expected a whole number of at least {least} (it is {value!r})")
    return int(value)
