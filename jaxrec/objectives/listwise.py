"""Softmax losses over less than the catalogue: sampled softmax, in-batch InfoNCE, scalable cross-entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxrec.nn.item_table import ItemTable, sum_over_positions
from jaxrec.nn.precision import matmul
from jaxrec.objectives.base import LossInputs, LossSums, ObjectiveConfig
from jaxrec.objectives.sampled import (
    WITHOUT_COUNTS,
    SampledObjectiveConfig,
    Scores,
    scored_positions,
    sum_over_chunks,
)
from jaxrec.objectives.samplers import training_shares
from jaxrec.options import Idle, Range, Search
from jaxrec.sharding import equally_varying


def _softmax_loss(positive: Array, negative: Array, valid: Array) -> Array:
    """Return ``log(exp(s⁺) + Σ_valid exp(s⁻)) - s⁺`` of each row: float32[c]."""
    gaps = jnp.where(valid, negative - positive[:, None], -jnp.inf)
    zero = jnp.zeros((gaps.shape[0], 1), gaps.dtype)
    return jax.nn.logsumexp(jnp.concatenate([zero, gaps], axis=1), axis=1)


@dataclass(frozen=True)
class SampledSoftmaxConfig(SampledObjectiveConfig):
    """Cross-entropy over the target and the negatives, whose sum of exponentials estimates the catalogue's.

    Each negative's score is lowered by the logarithm of its expected number of occurrences among the draws ("logQ", Bengio
    & Senécal 2008); the target, which is always there, keeps its own. The sum over negatives is then an unbiased estimate
    of the sum over the items that the sampler can draw: with "uniform", "mixed" and (``count_smoothing`` above 0)
    "popularity" all items, with "in-batch", over random batches, the items that occur in training. Exact where n_negatives
    >= V, but for "in-batch". "hard" negatives are no sample, and their sum is a lower bound.

    Negatives are drawn by popularity by default: among a few uniform ones that all positions share, most steps lack the
    items that carry the sum.

    Attributes:
      log_q: False leaves the scores as they are, as in Klenitskiy & Vasilev (RecSys 2023).
    """

    n_negatives: Annotated[int, Range("[1, inf)"), Search("log:16:1024")] = 256
    sampler: str = "popularity"
    alpha: Annotated[float, Range("[0, inf)"), Idle("sampler", WITHOUT_COUNTS)] = 1.0
    shared: bool = True
    log_q: bool = True

    def position_losses(self, scores: Scores) -> Float[Array, " c"]:
        """Return the loss of each of c positions."""
        negative = scores.negative - scores.log_expected if self.log_q else scores.negative
        return _softmax_loss(scores.positive, negative, scores.valid)


@dataclass(frozen=True)
class InBatchConfig(ObjectiveConfig):
    """InfoNCE with the batch's other targets as negatives; copies of the position's own target are left out.

    Attributes:
      log_q: lower each score, the target's too, by the logarithm of the item's share of the training interactions (Yi et
        al., RecSys 2019), since popular items are negatives more often.
      temperature: divides the scores.
    """

    log_q: bool = True
    temperature: Annotated[float, Range("(0, inf)")] = 1.0

    def loss(self, inputs: LossInputs) -> LossSums:
        """Score the batch's distinct or single targets in chunks of positions."""
        hidden, table, targets, weights, *_ = inputs = inputs.prepare(self.temperature)
        n, n_items = targets.shape[0], table.n_items
        log_share = jnp.log(training_shares(inputs, "--objective.log-q")) if self.log_q else None

        def rows(items: Array) -> tuple[Array, Array]:
            vectors, bias, _ = table.take(items)
            offsets = jnp.zeros(items.shape, jnp.float32) if bias is None else bias
            return vectors, offsets if log_share is None else offsets - log_share[items]

        # Copies of an item have the same score: with fewer items than positions, each is scored once and counted as often
        # as it occurs.
        candidates, copies = targets, (weights > 0).astype(jnp.float32)
        if n_items < n:
            candidates = jnp.arange(n_items + 1, dtype=jnp.int32)
            copies = jnp.zeros((n_items + 1,), jnp.float32).at[targets].add(copies, mode="drop")
        vectors, offsets = rows(candidates)
        present = copies > 0
        offsets = offsets + jnp.log(jnp.where(present, copies, 1.0))

        def chunk_loss(part: Any, others: Any) -> Array:
            h, y, w, own, own_offset = part
            vectors, offsets, items, present = others
            scores = matmul(h, vectors.T, jnp.dtype(self.dtype)) + offsets[None, :]
            valid = present[None, :] & (items[None, :] != y[:, None])
            positive = jnp.sum(h * own, axis=1) + own_offset
            real = w > 0
            scores = jnp.where(real[:, None] & valid, scores, 0.0)
            losses = _softmax_loss(jnp.where(real, positive, 0.0), scores, valid)
            return jnp.sum(jnp.where(real, w * losses, 0.0))

        chunk = scored_positions(candidates.shape[0])

        def total(_: ItemTable, parts: Any, others: Any) -> tuple[Array]:
            others = tuple(equally_varying(x, parts[0])[0] for x in others)
            return (sum_over_chunks(lambda part: chunk_loss(part, others), parts, chunk),)

        parts = (hidden, targets, weights, *rows(targets))
        others = (vectors, offsets, candidates, present)
        return LossSums(sum_over_positions(total, table, parts, others)[0], jnp.sum(weights))


@dataclass(frozen=True)
class ScalableCrossEntropyConfig(ObjectiveConfig):
    """SCE: cross-entropy inside buckets of nearby hidden states and items (Mezentsev et al., RecSys 2024).

    Each of b random directions collects the positions and the items with the largest projection on it. A position's loss
    runs over its target and the items of its bucket; of several buckets, the one with the largest loss counts. Positions in
    no bucket add nothing, to the sum of weights either.

    Attributes:
      n_buckets: b; 0 = 2 √N.
      bucket_positions: positions of a bucket; 0 = 2 √N.
      bucket_items: items of a bucket.
      mix: directions are random mixtures of the hidden states instead of random vectors.
      temperature: divides the scores.
    """

    n_buckets: Annotated[int, Range("[0, inf)")] = 0
    bucket_positions: Annotated[int, Range("[0, inf)")] = 0
    bucket_items: Annotated[int, Range("[1, inf)")] = 256
    mix: bool = True
    temperature: Annotated[float, Range("(0, inf)")] = 1.0

    def loss(self, inputs: LossInputs) -> LossSums:
        """Form the buckets, and sum each position's largest loss."""
        inputs = inputs.prepare(self.temperature)
        table, key = inputs.table, inputs.key
        assert key is not None, "scalable cross-entropy needs LossInputs.key"
        # Buckets mix positions of the whole batch: on a mesh every device holds them all, but not the table.
        hidden, targets, weights = table.replicate((inputs.hidden, inputs.targets, inputs.weights))
        n = targets.shape[0]
        positions, items = self.buckets(hidden, table, weights, key)

        def bucket_losses(bucket: tuple[Array, Array]) -> Array:
            position, item = bucket
            h, y, real = hidden[position], targets[position], weights[position] > 0
            vectors, biases, _ = table.take(item)
            target_vectors, target_biases, _ = table.take(y)
            scores = matmul(h, vectors.T, jnp.dtype(self.dtype))
            positive = jnp.sum(h * target_vectors, axis=1)
            if biases is not None and target_biases is not None:
                scores, positive = scores + biases[None, :], positive + target_biases
            valid = item[None, :] != y[:, None]
            scores = jnp.where(real[:, None] & valid, scores, 0.0)
            losses = _softmax_loss(jnp.where(real, positive, 0.0), scores, valid)
            return jnp.where(real, losses, -1.0)

        losses = lax.map(jax.checkpoint(bucket_losses), (positions, items))
        flat = jnp.broadcast_to(positions, losses.shape).reshape(-1)
        # -1 is below every loss: a position that keeps it was in no bucket.
        worst = jnp.full((n,), -1.0, jnp.float32).at[flat].max(lax.stop_gradient(losses).reshape(-1))
        is_worst = (losses.reshape(-1) == worst[flat]) & (worst[flat] >= 0)
        copies = jnp.zeros((n,), jnp.float32).at[flat].add(is_worst.astype(jnp.float32))
        share = jnp.where(is_worst, weights[flat] / jnp.maximum(copies[flat], 1.0), 0.0)
        covered = jnp.where(worst >= 0, weights, 0.0)
        return LossSums(jnp.sum(share * jnp.where(is_worst, losses.reshape(-1), 0.0)), jnp.sum(covered))

    def buckets(
        self, hidden: Float[Array, "N D"], table: ItemTable, weights: Float[Array, " N"], key: Array
    ) -> tuple[Int[Array, "b x"], Int[Array, "b y"]]:
        """Return the positions and the items of each bucket.

        Args:
          hidden: [N, D].
          table: of the candidates.
          weights: [N], 0 = no member of any mixture, and of a bucket only where real positions are too few.
          key: of the random directions.
        """
        hidden, vectors = lax.stop_gradient(hidden), lax.stop_gradient(table.vectors)
        row = jnp.arange(vectors.shape[0], dtype=jnp.int32)
        candidate = (row > 0) & (row <= table.n_items)
        n = hidden.shape[0]
        default = 2 * math.ceil(math.sqrt(max(n, 1)))
        n_buckets = self.n_buckets or default
        x = min(self.bucket_positions or default, n)
        y = min(self.bucket_items, table.n_items)
        real = weights > 0
        clean = jnp.where(real[:, None], hidden, 0.0)
        if self.mix:
            directions = jax.random.normal(key, (n_buckets, n)) @ clean
        else:
            directions = jax.random.normal(key, (n_buckets, hidden.shape[1]))

        def nearest(direction: Array) -> tuple[Array, Array]:
            of_positions = jnp.where(real, clean @ direction, -jnp.inf)
            of_items = table.replicate(jnp.where(candidate, vectors @ direction, -jnp.inf))
            return lax.top_k(of_positions, x)[1].astype(jnp.int32), lax.top_k(of_items, y)[1].astype(
                jnp.int32
            )

        return lax.map(nearest, directions, batch_size=16)
