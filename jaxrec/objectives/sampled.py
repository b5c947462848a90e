"""What objectives with sampled negatives share: options, scores, and memory bounded by chunks of
positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrec.errors import ConfigError
from jaxrec.nn.item_table import ItemTable, sum_over_positions
from jaxrec.nn.precision import matmul
from jaxrec.objectives.base import (
    ObjectiveConfig,
    SamplingInputs,
    check_choice,
    check_number,
    real_weights,
    scaled,
)
from jaxrec.objectives.samplers import SAMPLERS, Request, draw
from jaxrec.sharding import equally_varying

CHUNK_BYTES = 32 * 2**20  # of the negatives' vectors, or of the scores, of a chunk of positions
CACHED_BYTES = 4 * 2**20  # of the scores on a CPU, if they come from a matrix product
# A gathered row costs about as much as scoring 40 items (XLA:CPU, D = 64): with fewer items a negative, all are
# scored and the drawn scores picked out.
ITEMS_PER_GATHERED_ROW = 40


class Distances(NamedTuple):
    """Squared distances, where scores stand for them (`jaxrec.models.stosa`): from the c states to their
    targets [c], and from the targets to the negatives [c, n].
    """

    target: Array
    between: Array


class Scores(NamedTuple):
    """Scores of c positions: of the target [c], of n negatives [c, n], and which of those count.

    ``log_expected [c or 1, n]`` is the logarithm of how often a negative was expected among the draws.
    ``distances`` are there where `ObjectiveConfig.needs_distances` says so.
    """

    positive: Array
    negative: Array
    valid: Array
    log_expected: Array
    distances: Distances | None = None


@dataclass(frozen=True)
class SampledObjectiveConfig(ObjectiveConfig):
    """Base of the objectives that compare the target with sampled negatives.

    Attributes:
      n_negatives: draws for each position, or for the whole batch if ``shared``. V or more means every item
        once.
      sampler: "uniform", "popularity", "mixed", "in-batch" or "hard" (see `jaxrec.objectives.samplers`).
      shared: one draw for all positions of the batch: one matrix product instead of a gather for each
        position.
      alpha: power of the item counts ("popularity" and "mixed").
      uniform_share: share of uniform draws ("mixed").
      exclude_seen: leave out the user's own items, too.
      temperature: divides the scores.
      cosine: score unit vectors.
      dtype: operands of the product with shared negatives; scores of single positions are float32 sums
        always.
    """

    n_negatives: int = 1
    sampler: str = "uniform"
    shared: bool = False
    alpha: float = 0.75
    uniform_share: float = 0.5
    exclude_seen: bool = False
    temperature: float = 1.0
    cosine: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "sampler", tuple(SAMPLERS))
        check_number(self, "n_negatives", 1)
        check_number(self, "uniform_share", 0, 1)
        check_number(self, "temperature", 0, open_low=True)

    @property
    def needs_counts(self) -> bool:
        return self.sampler in ("popularity", "mixed")

    @property
    def needs_seen(self) -> bool:
        return self.exclude_seen

    def position_losses(self, scores: Scores, n_items: int) -> Array:
        """The loss of each of c positions, float32[c]."""
        raise TypeError(
            f"{type(self).__name__} is a base class: choose one from jaxrec.objectives.OBJECTIVES"
        )

    def __call__(
        self,
        hidden: Array,
        table: ItemTable,
        targets: Array,
        weights: Array,
        rng: Array,
        inputs: SamplingInputs | None = None,
    ) -> tuple[Array, Array]:
        weights = real_weights(targets, weights)
        hidden, table = scaled(hidden, table, self.temperature, self.cosine)
        n_items = table.n_items
        request = Request(
            lax.stop_gradient(hidden),
            table,
            targets,
            weights,
            rng,
            inputs,
            self.n_negatives,
            self.shared,
            self.alpha,
            self.uniform_share,
        )
        negatives = draw(self.sampler, request, self.exclude_seen)
        one_draw = negatives.items.shape[0] == 1 and targets.shape[0] != 1
        few_items = n_items + 1 <= ITEMS_PER_GATHERED_ROW * negatives.items.shape[1]
        score_all = few_items and not one_draw and not self.needs_distances
        common: tuple[ItemTable, Array | None] | None = None
        if one_draw:
            common = (table.take(negatives.items[0]), negatives.log_expected)
        elif score_all:
            common = (table.take(jnp.arange(n_items + 1)), None)

        def loss(table: ItemTable, part: Any, common: Any) -> Array:
            h, y, w, valid, items, log_expected = part
            own = table.take(y)
            positive = jnp.sum(h * own.vectors, axis=-1)
            positive = positive if own.bias is None else positive + own.bias
            if common is not None:
                rows = common[0]
                negative = matmul(h, rows.vectors.T, jnp.dtype(self.dtype))
                negative = negative if rows.bias is None else negative + rows.bias[None, :]
                if score_all:
                    negative = jnp.take_along_axis(negative, items, axis=1, mode="clip")
                else:
                    log_expected = common[1]
            else:
                rows = table.take(items)
                negative = jnp.sum(h[:, None, :] * rows.vectors, axis=-1)
                negative = negative if rows.bias is None else negative + rows.bias
            scores = Scores(positive, negative, valid, log_expected)
            # Where nothing is to be predicted, scores are made harmless before the loss, not after: 0 * inf
            # is not 0.
            real = w > 0
            counts = real[:, None] & valid
            scores = scores._replace(
                positive=jnp.where(real, positive, 0.0),
                negative=jnp.where(counts, negative, 0.0),
            )
            if self.needs_distances:
                target, between = self._distances(h, positive, own, rows)
                scores = scores._replace(
                    distances=Distances(jnp.where(real, target, 0.0), jnp.where(counts, between, 0.0))
                )
            return jnp.sum(jnp.where(real, w * self.position_losses(scores, n_items), 0.0))

        own = (None, None) if one_draw else (negatives.items, negatives.log_expected)
        if common is not None:
            chunk = scored_positions(common[0].vectors.shape[0])
        else:
            chunk = max(1, CHUNK_BYTES // (4 * self.n_negatives * hidden.shape[1]))

        def total(table: ItemTable, parts: Any, common: Any) -> tuple[Array]:
            # The product rule of `matmul` wants its operands marked alike.
            marked = jax.tree.map(lambda x: equally_varying(x, parts[0])[0], common)
            return (sum_over_chunks(lambda part: loss(table, part, marked), parts, chunk),)

        parts = (hidden, targets, weights, negatives.valid, *own)
        return sum_over_positions(total, table, parts, common)[0], jnp.sum(weights)

    def _distances(
        self, hidden: Array, positive: Array, targets: ItemTable, negatives: ItemTable
    ) -> Distances:
        """Out of scores, with vectors ``2 e`` and biases ``-|e|^2`` of c targets and of n or [c, n] negatives."""
        if targets.bias is None or negatives.bias is None:
            raise ConfigError(
                f"{type(self).__name__} needs an item table of Gaussians (vectors 2 e, biases -|e|^2): got a table "
                "without biases; use the encoder 'stosa'"
            )
        if negatives.vectors.ndim == 2:
            product = matmul(targets.vectors, negatives.vectors.T, jnp.dtype(self.dtype))
            own = negatives.bias[None, :]
        else:
            product = jnp.sum(targets.vectors[:, None, :] * negatives.vectors, axis=-1)
            own = negatives.bias
        return Distances(
            jnp.sum(jnp.square(hidden), axis=-1) - positive, -targets.bias[:, None] - own - product / 2.0
        )


def scored_positions(n_candidates: int) -> int:
    """How many positions to score against the same ``n_candidates`` at a time."""
    on_cpu = jax.default_backend() == "cpu"
    return max(1, (CACHED_BYTES if on_cpu else CHUNK_BYTES) // (4 * max(1, n_candidates)))


def sum_over_chunks(loss: Callable[[Any], Array], parts: Any, chunk: int) -> Array:
    """Σ loss(chunk of parts): chunks of at most ``chunk`` rows of each array; the backward pass computes each
    again.
    """
    n = jax.tree.leaves(parts)[0].shape[0]
    if n <= chunk:
        return loss(parts)
    n_chunks = -(-n // chunk)

    def split(x: Array) -> Array:
        padding = [(0, n_chunks * chunk - n)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape((n_chunks, chunk, *x.shape[1:]))

    def body(total: Array, part: Any) -> tuple[Array, None]:
        return total + loss(part), None

    start = equally_varying(jnp.zeros((), jnp.float32), *jax.tree.leaves(parts))[0]
    total, _ = lax.scan(jax.checkpoint(body), start, jax.tree.map(split, parts))
    return total
