"""Where the time of a gradient step goes, beside what the device could do.

    python scripts/profile_step.py [CONFIG] [--set key=value]... [--batch N] [--json FILE]

Times the parts of one step of one member, each compiled by itself on the same batch: the network's
parts (forward only), then energy, energy with forces, and the gradient of the loss. For each it
shows the floating-point operations and bytes that XLA counts, and what share of the device's speed
that is: the speed of a large matrix product and of copies of arrays as large as those of a step,
measured here and now. A part that reaches a small share of both is bound by neither, but by the
number of small loops or kernels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ensq.train.compat  # noqa: F401  (before chemtrain and jax_md)

import jax
import jax.numpy as jnp
import numpy as np

from ensq import config, data
from ensq.train import environment
from ensq.train.dataset import prepare
from ensq.train.models import allegro
from ensq.train.models.graph import padded_graph
from ensq.train.pack import Program

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 1.0  # of a measurement


class Measured(NamedTuple):
    """One part of a step."""

    part: str
    ms: float
    mflop: float
    mbyte: float


def seconds_of(function: Callable[..., Any], *arguments: Any) -> float:
    """Of one call, the median of many."""
    jax.block_until_ready(function(*arguments))
    times: list[float] = []
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or len(times) < 5:
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def measure(part: str, function: Callable[..., Any], *arguments: Any) -> Measured:
    compiled = jax.jit(function).lower(*arguments).compile()
    cost = compiled.cost_analysis()
    counted: dict[str, float] = cost[0] if isinstance(cost, list) else cost
    return Measured(
        part,
        1e3 * seconds_of(compiled, *arguments),
        counted.get("flops", 0.0) / 1e6,
        counted.get("bytes accessed", 0.0) / 1e6,
    )


class Limits(NamedTuple):
    """What the device does at best."""

    gflops: float  # of a matrix product
    memory: float  # Gbyte/s of a copy, read and written, of arrays that fit no cache
    edges: float  # the same of arrays as large as those of a step


def limits(bytes_of_array: int) -> Limits:
    square = jnp.ones((1024, 1024), jnp.float32)
    flops = 2 * 1024**3 / seconds_of(jax.jit(lambda a: a @ a), square)
    return Limits(flops / 1e9, copied(2**26, 1), copied(bytes_of_array // 4, 200))


def copied(size: int, times: int) -> float:
    """Gbyte/s where two arrays are written from each other, again and again."""

    def body(_: int, pair: tuple[Any, Any]) -> tuple[Any, Any]:
        return pair[1] + 1, pair[0] + 1

    run = jax.jit(lambda pair: jax.lax.fori_loop(0, times, body, pair))
    pair = jnp.ones(size, jnp.float32), jnp.zeros(size, jnp.float32)
    return 4 * pair[0].nbytes * times / seconds_of(run, pair) / 1e9


def latent_bytes(program: Program, frames: int) -> int:
    """Of one array of the hidden features of all edges of a batch."""
    _, beads, width = program.dataset.training[0].frames.nbr.shape
    return 4 * frames * beads * width * program.config.model.allegro.mlp_n_hidden


def network_parts(program: Program, params: Any, frames: Any) -> list[Measured]:
    """Forward passes of the parts of Allegro's first layer, with inputs as they are there."""
    net = program.model.network
    if not isinstance(net, allegro.Allegro):
        return []
    own = params["network"]
    first = own["layer0"]
    graph = padded_graph(frames, net.cutoff)
    radius = jnp.sqrt(jnp.sum(jnp.square(graph.vectors), axis=0))
    x = jax.jit(lambda: net._embed(own, graph, radius / net.cutoff))()
    products = net.layer_paths()[0]
    unit = graph.vectors / radius
    harmonics = allegro.spherical_harmonics(unit[0], unit[1], unit[2], net.config.max_ell)
    degrees = [[jnp.ones_like(radius)], *harmonics]
    weights = allegro._per_degree(allegro.linear(first["environment"], x), net.degrees)
    environment_ = [
        [graph.collect(weights[ell] * c) for c in degrees[ell]] for ell in range(net.degrees)
    ]
    features = {
        (ell, (-1) ** ell if net.parity else 1): [weights[ell] * c for c in degrees[ell]]
        for ell in range(net.degrees)
    }
    made = allegro._products(products, features, environment_, graph)
    flat = [part[0] for part in made.get(allegro.SCALAR, [])]
    joined = jnp.concatenate([x, *flat, *([flat[0]] if net.triple else [])], axis=0)
    return [
        measure("embedding", lambda x: net._embed(own, graph, x), radius / net.cutoff),
        measure(
            "neighbour sums",
            lambda w, d: [[graph.collect(w[ell] * c) for c in d[ell]] for ell in range(len(w))],
            weights,
            degrees,
        ),
        measure(
            "tensor products",
            lambda f, e: allegro._products(products, f, e, graph),
            features,
            environment_,
        ),
        measure("latent MLP", lambda x: allegro._mlp(first["latent"], x, False), joined),
    ]


def step_parts(program: Program, params: Any, batch: Any) -> list[Measured]:
    weight = jnp.ones(batch.n_frames, program.dtype)
    model, loss = program.model, program.objective.batch_loss
    return [
        measure("energy", lambda p: model.per_bead_energy(p, batch.frames).sum(), params),
        measure("energy and forces", lambda p: model.energy_and_forces(p, batch.frames), params),
        measure("gradient of the loss", jax.grad(lambda p: loss(p, batch, weight)), params),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/chignolin.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    made = config.load(given.config, tuple(given.overrides))
    environment.set_precision(made.training.precision)
    path = given.config.parent / made.data.path
    dataset = prepare(path, data.digest(path), made, lambda text: None)
    program = Program(made, dataset)
    frames = given.batch or program.batch
    batch = jax.tree_util.tree_map(lambda leaf: leaf[:frames], dataset.training[0])
    params = program.new_member(0).params
    found = limits(latent_bytes(program, frames))
    print(f"{environment.device()}, jax {jax.__version__}, batch of {frames} frames")
    print(f"matrix product {found.gflops:.3g} Gflop/s, copy {found.memory:.3g} Gbyte/s, of")
    print(f"arrays that fit a cache as well as those of a step {found.edges:.3g} Gbyte/s")
    print(f"{'part':<22}{'ms':>9}{'Mflop':>9}{'Mbyte':>9}{'of peak':>9}{'of copy':>9}")
    rows = [*network_parts(program, params, batch.frames), *step_parts(program, params, batch)]
    for row in rows:
        of_peak = row.mflop / row.ms / found.gflops
        of_copy = row.mbyte / row.ms / found.edges
        print(
            f"{row.part:<22}{row.ms:>9.3f}{row.mflop:>9.1f}{row.mbyte:>9.1f}"
            f"{of_peak:>9.0%}{of_copy:>9.0%}"
        )
    if given.json:
        told = {
            "device": environment.device(),
            "versions": environment.versions(),
            "gflop_per_s": found.gflops,
            "gbyte_per_s": found.memory,
            "gbyte_per_s_of_edges": found.edges,
            "rows": [row._asdict() for row in rows],
        }
        given.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
