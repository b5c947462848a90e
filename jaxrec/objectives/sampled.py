"""Base of the losses with sampled negatives: options, scores, and memory bounded by chunks of positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxrec.nn.item_table import ItemTable, sum_over_positions
from jaxrec.nn.precision import matmul
from jaxrec.objectives.base import LossInputs, LossSums, ObjectiveConfig
from jaxrec.objectives.samplers import SAMPLERS, Request, draw
from jaxrec.options import Idle, Range
from jaxrec.sharding import equally_varying

CHUNK_BYTES = 32 * 2**20  # of the negatives' vectors, or of the scores, of a chunk of positions
CACHED_BYTES = 4 * 2**20  # of the scores on a CPU, if they come from a matrix product
# A gathered row costs about as much as scoring 40 items (XLA:CPU, D = 64): with fewer items per negative, all are
# scored and the drawn scores selected.
ITEMS_PER_GATHERED_ROW = 40


class Scores(NamedTuple):
    """Scores of c positions, with zeros where a position or a negative does not count.

    Attributes:
      positive: float32[c], score of the target.
      negative: float32[c, n], scores of the negatives.
      valid: bool[c, n], whether a negative counts.
      log_expected: float32[c or 1, n], logarithm of the expected number of occurrences of a negative among the draws.
      hidden: float32[c, D], states.
      targets: rows of the item table of the c targets.
      score_negatives: scores float32[c, n] of the same negatives for other states [c, D].
      n_items: V.
    """

    positive: Float[Array, " c"]
    negative: Float[Array, "c n"]
    valid: Bool[Array, "c n"]
    log_expected: Float[Array, "b n"]
    hidden: Float[Array, "c D"]
    targets: ItemTable
    score_negatives: Callable[[Array], Array]
    n_items: int


#: Samplers that do not draw by the counts of items.
WITHOUT_COUNTS = ("uniform", "in-batch", "hard")


@dataclass(frozen=True)
class SampledObjectiveConfig(ObjectiveConfig):
    """Base of the losses that compare the target with sampled negatives; a subclass defines `position_losses`.

    Attributes:
      n_negatives: draws for each position, or for the whole batch if ``shared``. V or more means every item once, but for
        "in-batch", which draws all the same.
      sampler: "uniform", "popularity", "mixed", "in-batch" or "hard" (see `jaxrec.objectives.samplers`), or a sampler
        of your own, registered in `SAMPLERS`.
      shared: one draw for all positions of the batch: one matrix product instead of a gather for each position.
      alpha: power of the item counts ("popularity" and "mixed").
      count_smoothing: added to every item count ("popularity" and "mixed"), so that items which training lacks are
        drawn, too.
      uniform_share: share of uniform draws ("mixed").
      exclude_seen: draw outside the user's own training items. Own draws avoid them; hits of a shared draw are masked.
      temperature: divides the scores.
      dtype: operands of the product with shared negatives, or with all items where the catalogue is small beside the draws
        of a position. Negatives that are gathered for a position, and targets, are scored in float32.
    """

    n_negatives: Annotated[int, Range("[1, inf)")] = 1
    sampler: str = "uniform"
    shared: bool = False
    alpha: Annotated[float, Range("[0, inf)"), Idle("sampler", WITHOUT_COUNTS)] = 0.75
    count_smoothing: Annotated[float, Range("[0, inf)"), Idle("sampler", WITHOUT_COUNTS)] = 1.0
    uniform_share: Annotated[float, Range("[0, 1]"), Idle("sampler", ("popularity", *WITHOUT_COUNTS))] = 0.5
    exclude_seen: bool = False
    temperature: Annotated[float, Range("(0, inf)")] = 1.0

    def __post_init__(self) -> None:
        """Check the options, and that the sampler is registered."""
        super().__post_init__()
        SAMPLERS[self.sampler]

    @property
    def needs_seen(self) -> bool:
        """Whether the sampler reads the items of each user."""
        return self.exclude_seen

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        raise NotImplementedError(f"{type(self).__name__} does not define position_losses()")

    def loss(self, inputs: LossInputs) -> LossSums:
        """Draw negatives, score them in chunks of positions, and sum `position_losses`."""
        inputs = inputs.prepare(self.temperature)
        items, log_expected, valid = draw(self.sampler, self._request(inputs))
        one_draw = items.shape[0] == 1 and inputs.targets.shape[0] != 1
        # Rows scored against every position: the shared draw, or a small catalogue of which the drawn are selected.
        candidates: ItemTable | None = None
        if one_draw:
            candidates = inputs.table.take(items[0])
        elif inputs.n_items + 1 <= ITEMS_PER_GATHERED_ROW * items.shape[1]:
            candidates = inputs.table.take(jnp.arange(inputs.n_items + 1))
        if candidates is not None:
            chunk = scored_positions(candidates.vectors.shape[0])
        else:
            chunk = max(1, CHUNK_BYTES // (4 * items.shape[1] * inputs.hidden.shape[1]))

        def chunk_loss(table: ItemTable, part: Any, shared: Any) -> Array:
            hidden, targets, weights, valid, *own = part
            candidates, *common = shared
            items, log_expected = (None, *common) if one_draw else own
            real = weights > 0
            # What does not count is made harmless before the loss, not after: 0 * inf is not 0.
            hidden = jnp.where(real[:, None], hidden, 0.0)
            target_rows = table.take(targets)
            positive = jnp.sum(hidden * target_rows.vectors, axis=-1)
            positive = positive if target_rows.bias is None else positive + target_rows.bias

            def score(states: Array) -> Array:
                scores = self._score_negatives(states, table, candidates, items)
                return jnp.where(real[:, None] & valid, scores, 0.0)

            scores = Scores(
                positive, score(hidden), valid, log_expected, hidden, target_rows, score, inputs.n_items
            )
            return jnp.sum(jnp.where(real, weights * self.position_losses(scores), 0.0))

        def total(table: ItemTable, parts: Any, shared: Any) -> tuple[Array]:
            # The product rule of `matmul` wants its operands marked alike.
            marked = jax.tree.map(lambda x: equally_varying(x, parts[0])[0], shared)
            return (sum_over_chunks(lambda part: chunk_loss(table, part, marked), parts, chunk),)

        own, common = ((), (log_expected,)) if one_draw else ((items, log_expected), ())
        parts = (inputs.hidden, inputs.targets, inputs.weights, valid, *own)
        (loss,) = sum_over_positions(total, inputs.table, parts, (candidates, *common))
        return LossSums(loss, jnp.sum(inputs.weights))

    def _score_negatives(
        self, states: Array, table: ItemTable, candidates: ItemTable | None, items: Array | None
    ) -> Array:
        """Return the scores [c, n] of the negatives.

        Args:
          states: [c, D].
          table: of all items.
          candidates: rows that every state is scored against; None gathers the rows of ``items`` for each state.
          items: [c, n], ids of each position's negatives; None = the candidates themselves.
        """
        if candidates is None:
            assert items is not None
            rows = table.take(items)
            scores = jnp.sum(states[:, None, :] * rows.vectors, axis=-1)
            return scores if rows.bias is None else scores + rows.bias
        scores = matmul(states, candidates.vectors.T, jnp.dtype(self.dtype))
        scores = scores if candidates.bias is None else scores + candidates.bias[None, :]
        return scores if items is None else jnp.take_along_axis(scores, items, axis=1, mode="clip")

    def _request(self, inputs: LossInputs) -> Request:
        return Request(
            inputs,
            n_negatives=self.n_negatives,
            shared=self.shared,
            exclude_seen=self.exclude_seen,
            alpha=self.alpha,
            count_smoothing=self.count_smoothing,
            uniform_share=self.uniform_share,
        )


def scored_positions(n_candidates: int) -> int:
    """Return how many positions to score against the same ``n_candidates`` at a time."""
    on_cpu = jax.default_backend() == "cpu"
    return max(1, (CACHED_BYTES if on_cpu else CHUNK_BYTES) // (4 * max(1, n_candidates)))


def sum_over_chunks(loss: Callable[[Any], Array], parts: Any, chunk: int) -> Array:
    """Return the sum of ``loss(chunk)`` over chunks of positions; the backward pass computes each chunk again.

    Args:
      loss: scalar of arrays [c, ...].
      parts: arrays [N, ...].
      chunk: positions of a chunk at most.
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
