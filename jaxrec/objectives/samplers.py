"""Negative samplers: draws inside the compiled step, each with the logarithm of its expected count (for
logQ).

Every sampler gives ``items int32[N, n]`` or, shared by all positions, ``int32[1, n]``. What must not be drawn
(the target, optionally the items of the user) is *masked*, not redrawn: `valid` is False there, and
objectives leave those draws out. So the draws that remain follow the sampler's distribution restricted to
allowed items, and the shapes stay fixed. The exception is uniform sampling for each position, which avoids
the target by construction: it draws among the other V - 1 items, so that one negative is always one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrec.errors import ConfigError
from jaxrec.nn.item_table import ItemTable
from jaxrec.objectives.base import SamplingInputs
from jaxrec.registry import Registry


class Negatives(NamedTuple):
    """Draws for N positions, or for all of them at once (leading axis 1).

    Attributes:
      items: int32[N or 1, n], ids in 1..V.
      log_expected: float32[N or 1, n], log of how often the item is expected among the n draws.
      valid: bool[N, n], False where the draw is the position's target or otherwise excluded.
    """

    items: Array
    log_expected: Array
    valid: Array


class Request(NamedTuple):
    """What a sampler draws for; arrays as in `jaxrec.objectives.base.ObjectiveConfig.__call__`."""

    hidden: Array
    table: ItemTable
    targets: Array
    weights: Array
    rng: Array
    inputs: SamplingInputs | None
    n_negatives: int
    shared: bool
    alpha: float
    uniform_share: float

    @property
    def n_items(self) -> int:
        return self.table.n_items

    def shape(self) -> tuple[int, int]:
        return (1 if self.shared else self.targets.shape[0], self.n_negatives)


def uniform(request: Request) -> tuple[Array, Array]:
    """Each item with the same probability; for each position on its own, each item but the target."""
    v = request.n_items
    if request.shared or v < 2:
        items = jax.random.randint(request.rng, request.shape(), 1, v + 1, jnp.int32)
        return items, jnp.full(items.shape, jnp.log(request.n_negatives / v), jnp.float32)
    items = jax.random.randint(request.rng, request.shape(), 1, v, jnp.int32)
    target = request.targets[:, None]
    items = items + ((target > 0) & (items >= target)).astype(jnp.int32)
    return items, jnp.full(items.shape, jnp.log(request.n_negatives / (v - 1)), jnp.float32)


def popularity(request: Request) -> tuple[Array, Array]:
    """Each item with probability proportional to its count to the power ``alpha``; never seen items are not
    drawn.
    """
    counts = needed(request.inputs, "item_counts", "the popularity sampler")
    frequency = _frequency(counts, request.alpha)
    cumulative = jnp.cumsum(frequency)
    items = inverse_transform(cumulative, jax.random.uniform(request.rng, request.shape()))
    return items, jnp.log(frequency[items] / cumulative[-1] * request.n_negatives)


def _frequency(counts: Array, alpha: float) -> Array:
    powers = jnp.where(counts > 0, counts, jnp.ones((), counts.dtype)).astype(jnp.float32) ** alpha
    return jnp.where(counts > 0, powers, 0.0).at[0].set(0.0)


def mixed(request: Request) -> tuple[Array, Array]:
    """A share ``uniform_share`` of the draws from `uniform`, the others from `popularity`, for an item rare
    or not.
    """
    counts = needed(request.inputs, "item_counts", "the mixed sampler")
    first, second, third = jax.random.split(request.rng, 3)
    shape, v, share = request.shape(), request.n_items, request.uniform_share
    flat = jax.random.randint(first, shape, 1, v + 1, jnp.int32)
    popular, _ = popularity(request._replace(rng=second))
    items = jnp.where(jax.random.uniform(third, shape) < share, flat, popular)
    frequency = _frequency(counts, request.alpha)
    probability = share / v + (1 - share) * frequency[items] / jnp.sum(frequency)
    return items, jnp.log(probability * request.n_negatives)


def in_batch(request: Request) -> tuple[Array, Array]:
    """Targets of the batch's real positions, drawn with replacement: an item's probability is its share of
    them.
    """
    real = (request.weights > 0).astype(jnp.float32)
    positions = inverse_transform(jnp.cumsum(real), jax.random.uniform(request.rng, request.shape()))
    counts = jnp.zeros((request.n_items + 1,), jnp.float32).at[request.targets].add(real, mode="drop")
    items = jnp.maximum(request.targets[positions], 1)
    total = jnp.maximum(jnp.sum(real), 1.0)
    return items, jnp.log(jnp.maximum(counts[items], 1.0) / total * request.n_negatives)


def hard(request: Request) -> tuple[Array, Array]:
    """The items that the present model scores highest, for each position; for all at once, by their mean
    hidden state.

    They are no sample: the expected count of each is one, so logQ leaves their scores as they are.
    """
    table = request.table
    rows = jnp.arange(table.vectors.shape[0], dtype=jnp.int32)
    candidate = (rows > 0) & (rows <= request.n_items)
    hidden = request.hidden
    if request.shared:
        share = request.weights / jnp.maximum(jnp.sum(request.weights), 1e-9)
        hidden = jnp.sum(hidden * share[:, None], axis=0, keepdims=True)
    k = min(request.n_negatives, request.n_items)

    def best(row: Array) -> Array:
        scores = table.vectors @ row + (0.0 if table.bias is None else table.bias)
        return lax.top_k(table.everywhere(jnp.where(candidate, scores, -jnp.inf)), k)[1].astype(jnp.int32)

    # One row at a time would starve the products, all rows at once would hold [N, V] scores.
    items = lax.map(best, lax.stop_gradient(hidden), batch_size=64)
    return items, jnp.zeros(items.shape, jnp.float32)


SAMPLERS: Registry[Callable[[Request], tuple[Array, Array]]] = Registry(
    "sampler",
    {"uniform": uniform, "popularity": popularity, "mixed": mixed, "in-batch": in_batch, "hard": hard},
)


def draw(name: str, request: Request, exclude_seen: bool) -> Negatives:
    """Negatives from the sampler ``name``, with the target and, if asked, the items of the user marked
    invalid.

    Where as many are asked for as there are items, each item comes once and is expected once: the sample is
    the catalogue (but for "in-batch", which has only the batch's targets to offer).
    """
    request = request._replace(
        table=lax.stop_gradient(request.table),
    )
    if request.n_negatives >= request.n_items and name != "in-batch":
        items = jnp.arange(1, request.n_items + 1, dtype=jnp.int32)[None, :]
        log_expected = jnp.zeros(items.shape, jnp.float32)
    else:
        items, log_expected = SAMPLERS[name](request)
    valid = items != request.targets[:, None]
    if exclude_seen:
        valid = valid & ~is_seen(items, request.inputs)
    return Negatives(items, log_expected, valid)


def inverse_transform(cumulative: Array, uniform_draws: Array) -> Array:
    """Indices drawn with probabilities whose running sum (not normalised) is ``cumulative [K]``: int32, as
    the draws.
    """
    place = uniform_draws * cumulative[-1]
    index = jnp.searchsorted(cumulative, place.reshape(-1), side="right").reshape(place.shape)
    # Rounding may reach the total: the last index with a probability is the first at which the sum is
    # complete.
    last = jnp.searchsorted(cumulative, cumulative[-1], side="left")
    return jnp.minimum(index, last).astype(jnp.int32)


def is_seen(items: Array, inputs: SamplingInputs | None) -> Array:
    """bool[N, n]: whether ``items [N or 1, n]`` are among the items of each position's user, by binary
    search.
    """
    users = needed(inputs, "users", "exclude_seen")
    seen = needed(inputs, "seen_items", "exclude_seen")
    offsets = needed(inputs, "seen_offsets", "exclude_seen")
    known = users >= 0
    user = jnp.maximum(users, 0)
    low = jnp.where(known, offsets[user], 0)[:, None]
    stop = jnp.where(known, offsets[user + 1], 0)[:, None]
    items = jnp.broadcast_to(items, (users.shape[0], items.shape[1]))
    low, high = jnp.broadcast_to(low, items.shape), jnp.broadcast_to(stop, items.shape)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        below = (low < high) & (jnp.take(seen, middle, mode="clip") < items)
        return jnp.where(below, middle + 1, low), jnp.where(below, high, jnp.maximum(low, middle))

    steps = max(1, int(seen.shape[0]).bit_length())
    low, _ = lax.fori_loop(0, steps, halve, (low, high))
    return (low < stop) & (jnp.take(seen, low, mode="clip") == items)


def needed(inputs: SamplingInputs | None, field: str, who: str) -> Array:
    """The field of ``inputs``, or an error that says who needs it."""
    value = None if inputs is None else getattr(inputs, field)
    if value is None:
        raise ConfigError(f"inputs.{field}: {who} needs it, got None; pass SamplingInputs({field}=...)")
    return value
