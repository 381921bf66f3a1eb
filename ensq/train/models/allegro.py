"""A strictly local equivariant network after Allegro.

Musaelian et al., Nat. Commun. 14, 579 (2023).

Each directed edge carries scalars x (the latent) and equivariant features V. A layer sums the
edges of a bead to an environment, multiplies V by it, and lets the new scalars update x; the
energy of a bead is the sum of a readout of x over its edges. Nothing outside the cutoff of a bead
touches its energy, however many layers there are.

Differences from the paper: the envelope stands where edges act on others (environment sums and
readout) and not on every latent; species enter the first layer as a bias of its centre and
neighbour; products of the last layer go to scalars only; the residual has fixed weights.

Symmetry. With ``o3`` features have a parity, and a mirror image has the same energy. With ``so3``
they have none, so products such as the cross product of two vectors count as features: two layers
make triple products of them. One layer has no second product, so there V is also multiplied by
the cross product of two environments, V . (env x W env): the scalar that tells a left hand from a
right one (W mixes the channels).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from ensq.config.model import AllegroConfig
from ensq.train.models.dense import Weights, components, join, linear, split
from ensq.train.models.graph import Graph
from ensq.train.models.tensor import Irrep, Path, contract, paths, spherical_harmonics

Params = dict[str, Any]

SILU_GAIN = 1.6768  # 1 / rms of silu of a normal variable: keeps the variance through a layer
START_READOUT = 0.1  # the readout's first weights: forces begin well below one energy scale
# Environments add up neighbours that are alike, so every product is several times larger than
# what went in, and a stack of layers would begin with forces of 10 to 1000 energy scales. A single
# layer learns better without.
CALM = 0.25  # factor of the first weights of environments and mixed products in a stack
SCALAR: Irrep = (0, 1)
VECTOR: Irrep = (1, 1)  # where no parity is kept


@dataclass(frozen=True)
class Allegro:
    """The network of one configuration; parameters are handed in, so it may be shared."""

    config: AllegroConfig
    cutoff: float
    n_species: int
    avg_num_neighbors: float
    parity: bool  # whether features carry one (o3)
    mixed: bool = False  # whether matrices are multiplied in bfloat16

    hops: ClassVar[int] = 1  # a bead's energy depends on its neighbours within the cutoff only

    @property
    def degrees(self) -> int:
        """Number of degrees 0 .. max_ell."""
        return self.config.max_ell + 1

    @property
    def triple(self) -> bool:
        """Whether the one layer needs the triple product to see handedness."""
        return not self.parity and self.config.num_layers == 1

    def layer_paths(self) -> tuple[tuple[Path, ...], ...]:
        """The products of every layer, without those that can no longer reach the energy."""
        cfg = self.config
        natural = tuple((ell, (-1) ** ell if self.parity else 1) for ell in range(self.degrees))
        every = tuple((ell, p) for ell in range(self.degrees) for p in (1, -1))
        features, layers = natural, []
        for layer in range(cfg.num_layers):
            left = cfg.num_layers - 1 - layer  # layers that follow
            # the last layer can only bring natural parity to a scalar
            outputs = (SCALAR,) if not left else natural if left == 1 or not self.parity else every
            layers.append(paths(features, cfg.max_ell, outputs, self.parity))
            features = tuple(sorted({path.out for path in layers[-1]}))
        return tuple(layers)

    def init(self, key: PRNGKeyArray, batch: Graph) -> Params:
        """Random parameters: a nested dict of arrays [out, in], in the precision of ``batch``."""
        dtype = batch.vectors.dtype
        cfg, hidden, channels = self.config, self.config.mlp_n_hidden, self.config.n_channels
        draws = itertools.count()

        def weight(out: int, fan_in: int, gain: float = 1.0) -> Float[Array, "{out} {fan_in}"]:
            own_key = jax.random.fold_in(key, next(draws))
            normal = jax.random.normal(own_key, (out, fan_in), dtype)
            return normal * jnp.asarray(gain / math.sqrt(fan_in), dtype)

        def mlp(fan_in: int, out: int) -> Params:
            sizes = [fan_in] + [hidden] * cfg.mlp_n_layers + [out]
            gains = [1.0] + [SILU_GAIN] * cfg.mlp_n_layers
            return {f"w{i}": weight(sizes[i + 1], sizes[i], gain) for i, gain in enumerate(gains)}

        calm = CALM if cfg.num_layers > 1 else 1.0
        params: Params = {
            "embed": mlp(cfg.n_radial_basis, hidden),
            "centre": weight(hidden, self.n_species, math.sqrt(self.n_species / 2)),
            "neighbour": weight(hidden, self.n_species, math.sqrt(self.n_species / 2)),
            "features": weight(channels * self.degrees, hidden),
        }
        for layer, products in enumerate(self.layer_paths()):
            scalars = sum(path.out == SCALAR for path in products) + self.triple
            own: Params = {
                "environment": weight(channels * self.degrees, hidden, calm),
                "latent": mlp(hidden + channels * scalars, hidden),
            }
            if self.triple:
                own["cross"] = weight(channels, channels)
            if layer + 1 < cfg.num_layers:
                for out in sorted({path.out for path in products}):
                    fan_in = channels * sum(path.out == out for path in products)
                    own[_mix_name(out)] = weight(channels, fan_in, calm)
            params[f"layer{layer}"] = own
        params["readout"] = {
            "w0": weight(hidden, hidden),
            "w1": weight(1, hidden, SILU_GAIN * START_READOUT),
        }
        return params

    def per_bead_energy(self, params: Params, batch: Graph) -> Float[Array, " A"]:
        """Energy of each bead, in units of the energy scale."""
        cfg, graph = self.config, batch
        radius = jnp.sqrt(jnp.sum(jnp.square(graph.vectors), axis=0))
        scaled = radius / self.cutoff
        envelope = jnp.where(graph.used, _envelope(scaled, cfg.envelope_p), 0.0)
        unit = graph.vectors / radius
        x, y, z = components(unit)
        harmonics = spherical_harmonics(x, y, z, cfg.max_ell)
        # the sum over about n neighbours of random sign has variance 1
        weight = envelope / math.sqrt(self.avg_num_neighbors)
        damped = [[weight]] + [[weight * c for c in degree] for degree in harmonics]

        x = self._embed(params, graph, scaled)
        factors = _per_degree(linear(params["features"], x, self.mixed), self.degrees)
        features = {
            (ell, (-1) ** ell if self.parity else 1): [factors[ell] * c for c in components]
            for ell, components in enumerate([[jnp.ones_like(weight)], *harmonics])
        }
        for layer, products in enumerate(self.layer_paths()):
            own = params[f"layer{layer}"]
            weights = _per_degree(linear(own["environment"], x, self.mixed), self.degrees)
            environment = [
                [graph.collect(weights[ell] * c) for c in damped[ell]]
                for ell in range(self.degrees)
            ]
            made = _products(products, features, environment, graph)
            flat = [part[0] for part in made.get(SCALAR, [])]
            if self.triple:
                vector = features[VECTOR]
                flat.append(
                    _triple_product(own["cross"], vector, environment[1], graph, self.mixed)
                )
            update = _mlp(own["latent"], join([x, *flat]), self.mixed)
            x = (x + update) * math.sqrt(0.5)
            if layer + 1 < cfg.num_layers:
                features = {
                    out: _mix(own[_mix_name(out)], parts, self.mixed) for out, parts in made.items()
                }
        (energies,) = components(_mlp(params["readout"], x, self.mixed))
        return graph.collect(energies * weight)

    def _embed(
        self, params: Params, graph: Graph, scaled: Float[Array, " *e"]
    ) -> Float[Array, " hidden *e"]:
        """Latent of each edge from its length and its two species."""
        dtype = scaled.dtype
        basis = _bessel(scaled, self.config.n_radial_basis)
        # one-hot products instead of a table look-up: its derivative would be a scatter
        centre = linear(params["centre"], _one_hot(graph.species, self.n_species, dtype))
        other = _one_hot(graph.neighbour_species, self.n_species, dtype)
        bias = graph.expand(centre) + linear(params["neighbour"], other)
        return _mlp(params["embed"], basis, self.mixed, bias)


def _mix_name(out: Irrep) -> str:
    return f"mix_{out[0]}{'e' if out[1] == 1 else 'o'}"


def _mlp(
    weights: Params,
    x: Float[Array, "in *e"],
    mixed: bool,
    bias: Float[Array, " hidden *e"] | None = None,
) -> Float[Array, " out *e"]:
    """Linear maps with silu between them; ``bias`` is added before the first silu."""
    x = linear(weights["w0"], x, mixed)
    if bias is not None:
        x = x + bias
    for i in range(1, len(weights)):
        x = linear(weights[f"w{i}"], jax.nn.silu(x), mixed)
    return x


def _one_hot(index: Int[Array, " *e"], classes: int, dtype: Any) -> Float[Array, " {classes} *e"]:
    every = jnp.arange(classes, dtype=index.dtype)
    return (every.reshape(-1, *(1,) * index.ndim) == index).astype(dtype)


def _per_degree(x: Float[Array, " n *e"], degrees: int) -> list[Float[Array, " C *e"]]:
    """[degrees * C, *e] to one [C, *e] for each degree."""
    return list(split(x, (x.shape[0] // degrees,) * degrees))


def _envelope(x: Float[Array, " *e"], p: int) -> Float[Array, " *e"]:
    """Polynomial 1 at 0 and 0 at 1 with two derivatives (Gasteiger et al. 2020, eq. 8)."""
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    return 1.0 - x**p * (a - x * (b - c * x))


def _bessel(x: Float[Array, " *e"], count: int) -> Float[Array, " {count} *e"]:
    """Functions sin(n pi x) / x of x = r / cutoff, of mean square 1 in the ball.

    sin(n t) by the recurrence 2 cos(t) sin((n-1) t) - sin((n-2) t): one sine for all n.
    """
    angle = math.pi * x
    sine, twice = jnp.sin(angle), 2.0 * jnp.cos(angle)
    scale = math.sqrt(2.0 / 3.0) / x
    rows = [sine * scale]
    before = jnp.zeros_like(sine)
    for _ in range(count - 1):
        now = rows[-1]
        rows.append(twice * now - before)
        before = now
    return join([row[None] for row in rows])


def _products(
    products: tuple[Path, ...],
    features: dict[Irrep, list[Float[Array, " C *e"]]],
    environment: list[list[Float[Array, "C A"]]],
    graph: Graph,
) -> dict[Irrep, list[list[Float[Array, " C *e"]]]]:
    """For each irrep its products, each a list of components."""
    spread = [[graph.expand(c) for c in degree] for degree in environment]
    made: dict[Irrep, list[list[Array]]] = {}
    for path in products:
        product = contract(features[path.left], spread[path.right[0]], path.out[0])
        made.setdefault(path.out, []).append(product)
    return made


def _mix(
    weight: Float[Weights, "C n"], parts: list[list[Float[Array, " _ *e"]]], mixed: bool
) -> list[Float[Array, " C *e"]]:
    """New channels of one irrep from all channels of all its products."""
    return [linear(weight, join([part[m] for part in parts]), mixed) for m in range(len(parts[0]))]


def _triple_product(
    weights: Float[Weights, "C C"],
    vector: list[Float[Array, " C *e"]],
    environment: list[Float[Array, "C A"]],
    graph: Graph,
    mixed: bool,
) -> Float[Array, " C *e"]:
    """V . (env x W env), a pseudoscalar, with ``weights`` W over the channels.

    The mixed channels make the cross product differ from 0 (turning the channels by one would do,
    but slices in every derivative cost a third of a step).
    """
    # a channel has no cross product with itself: rounding alone would move the diagonal
    mixing = weights * (1.0 - jnp.eye(weights.shape[0], dtype=weights.dtype))
    others = [linear(mixing, c, mixed) for c in environment]
    cross = contract(environment, others, 1)
    return contract(vector, [graph.expand(c) for c in cross], 0)[0]
