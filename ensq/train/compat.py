"""What chemtrain 0.2.0 and jax-md need to run on current JAX, NumPy and protobuf.

Imported before either of them. Each patch puts back what a newer package has taken away, does
nothing where it is still there, and tells why it exists; ``applied`` names those that were needed.
No patch changes a number. jax_md_mod, without which jax_md fails, is imported here as well.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.experimental
import numpy as np

_TREE = ("tree_map", "tree_flatten", "tree_unflatten", "tree_leaves", "tree_structure")
_MODEL = "chemtrain.deploy._protobuf.model_pb2"


class Patch(NamedTuple):
    """One thing that is missing in newer packages."""

    name: str
    reason: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


def _lacks(module: Any, name: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # those are still there
        return not hasattr(module, name)


def _put_tree_back() -> None:
    for name in _TREE:
        if _lacks(jax, name):
            setattr(jax, name, getattr(jax.tree_util, name))


def _put_bridge_back() -> None:
    from jax.extend import backend

    library = importlib.import_module("jax.lib")
    bridge = ModuleType("jax.lib.xla_bridge")
    bridge.get_backend = backend.get_backend  # type: ignore[attr-defined]
    library.xla_bridge = bridge  # type: ignore[attr-defined]
    sys.modules.setdefault(bridge.__name__, bridge)


def _bridge_is_gone() -> bool:
    try:
        return _lacks(importlib.import_module("jax.lib.xla_bridge"), "get_backend")
    except ImportError:
        return True


def _put_network_types_back() -> None:
    from jax_md import nn

    for name in ("InitFn", "CallFn"):
        if _lacks(nn, name):
            setattr(nn, name, Callable)


def _network_types_are_gone() -> bool:
    importlib.import_module("jax_md_mod")  # before jax_md, which fails without it
    nn = importlib.import_module("jax_md.nn")
    return any(_lacks(nn, name) for name in ("InitFn", "CallFn"))


def _put_math_back() -> None:
    np.math = math  # type: ignore[attr-defined]


def _generated_code_is_too_old() -> bool:
    import google.protobuf

    return int(google.protobuf.__version__.split(".")[0]) >= 4


def _make_messages_anew() -> None:
    """The classes of chemtrain-deploy's model file, from the description in chemtrain's own code.

    What a protobuf compiler of version 3 wrote can't be imported with version 4 or later, but the
    serialised description of the file format that stands in it is good for every version.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = importlib.util.find_spec("chemtrain")
    assert package is not None and package.submodule_search_locations is not None
    source = Path(package.submodule_search_locations[0], *_MODEL.split(".")[1:]).with_suffix(".py")
    descriptions = [
        keyword.value.value
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "serialized_pb" and isinstance(keyword.value, ast.Constant)
    ]
    file = descriptor_pb2.FileDescriptorProto.FromString(descriptions[0])
    pool = descriptor_pool.DescriptorPool()  # of its own: names can't clash with other packages'
    pool.Add(file)
    module = ModuleType(_MODEL)
    message = pool.FindMessageTypeByName(f"{file.package}.Model")
    module.Model = message_factory.GetMessageClass(message)  # type: ignore[attr-defined]
    sys.modules[_MODEL] = module


PATCHES = (
    Patch(
        "tree",
        "chemtrain and jax_md import tree_map from jax, which keeps it in jax.tree_util alone",
        lambda: any(_lacks(jax, name) for name in _TREE),
        _put_tree_back,
    ),
    Patch(
        "bridge",
        "jax_md.util asks jax.lib.xla_bridge for the backend, which moved to jax.extend",
        _bridge_is_gone,
        _put_bridge_back,
    ),
    Patch(
        "math",
        "jax_md_mod calls numpy.math, a name for the standard module that NumPy 2 has not",
        lambda: _lacks(np, "math"),
        _put_math_back,
    ),
    Patch(
        "network types",
        "chemtrain names jax_md.nn's types InitFn and CallFn, which newer ones do not have",
        _network_types_are_gone,
        _put_network_types_back,
    ),
    Patch(
        "messages",
        "chemtrain's model_pb2 was generated for protobuf 3, and later ones refuse to load it",
        _generated_code_is_too_old,
        _make_messages_anew,
    ),
)

_applied: list[str] = []


def apply() -> None:
    """Apply what is needed, once."""
    if _applied:
        return
    for patch in PATCHES:
        if patch.needed():
            patch.apply()
            _applied.append(patch.name)
    # The same seed means the same numbers, on whichever JAX: newer ones draw from another stream
    # unless told.
    jax.config.update("jax_threefry_partitionable", False)
    # float32 means float32: current GPUs would otherwise round the factors of matrix products to
    # 10 bits (TF32), in training and in exported models. Left alone where the user has set it.
    if getattr(jax.config, "jax_default_matmul_precision", None) is None:
        jax.config.update("jax_default_matmul_precision", "highest")


def applied() -> tuple[str, ...]:
    """The names of the patches that were needed."""
    return tuple(_applied)


def enable_x64(new: bool = True) -> AbstractContextManager[None]:
    """Switch 64-bit mode within a block; JAX moved the function out of jax.experimental."""
    context: Any = getattr(jax, "enable_x64", None)
    if context is None:
        context = jax.experimental.enable_x64
    switched: AbstractContextManager[None] = context(new)
    return switched


def shard_map(function: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Any:
    """Run a function on each device with its part of the arguments.

    JAX moved it out of jax.experimental. What each device returns is not checked to be the same
    along the axes that ``out_specs`` leave out: its tracing knows no rule for some of our loops.
    """
    current: Any = getattr(jax, "shard_map", None)
    if current is not None:
        return current(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    older = importlib.import_module("jax.experimental.shard_map").shard_map
    return older(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_rep=False)


apply()
