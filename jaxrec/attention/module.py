"""Parts of every attention module: projections, position terms, dropout of weights, groups of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape, allowed_positions
from jaxrec.attention.functional import causal_chunks, split_heads
from jaxrec.attention.positions import POSITIONS, ScoreBias, interval_bias, rotate
from jaxrec.nn.layers import Dense, dropout_mask
from jaxrec.nn.precision import matmul

#: Scores held at once by the automatic choice of `rows_per_group`.
GROUP_SCORES = 1_000_000


class Projections(nn.Module):
    """Queries, keys and values [B, L, H, d]: ``3 (D^2 + D)`` parameters, one product where the inputs
    agree.
    """

    heads: int
    shape: AttentionShape

    @nn.compact
    def __call__(self, x: Array, queries: Array | None) -> tuple[Array, Array, Array]:
        width = self.shape.width

        def stacked_init(key: Array, size: tuple[int, int], dtype: Any) -> Array:
            # Three initialisations side by side: fan-out is D, not 3 D.
            keys = jax.random.split(key, 3)
            return jnp.concatenate([self.shape.kernel_init(k, (width, width), dtype) for k in keys], axis=1)

        kernel = self.param("kernel", stacked_init, (width, 3 * width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (3 * width,), jnp.float32)

        def affine(inputs: Array, start: int, stop: int) -> Array:
            columns = slice(start, stop)
            return matmul(inputs, kernel[:, columns], self.shape.dtype) + bias[columns].reshape(1, 1, -1)

        if queries is None:
            parts = jnp.split(affine(x, 0, 3 * width), 3, axis=-1)
        else:
            parts = [affine(queries, 0, width), *jnp.split(affine(x, width, 3 * width), 2, axis=-1)]
        q, k, v = (split_heads(part, self.heads) for part in parts)
        return q, k, v


class OutputProjection(nn.Module):
    """The affine map after the heads, ``D^2 + D`` parameters, or nothing where the encoder wants none."""

    shape: AttentionShape

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.shape.output_projection:
            return x
        return Dense(
            self.shape.width, kernel_init=self.shape.kernel_init, dtype=self.shape.dtype, name="dense"
        )(x)


def projection_count(shape: AttentionShape) -> int:
    """Parameters of `OutputProjection`."""
    return (shape.width**2 + shape.width) if shape.output_projection else 0


class Rows(NamedTuple):
    """What the core of a mechanism reads of each row; every array has the row axis first.

    Attributes:
      inputs: the mechanism's own arrays, such as queries, keys and values.
      segments, positions, timestamps: as in `AttentionContext`.
      keep: the weights that dropout keeps, bool of their shape, or None for all.
    """

    inputs: tuple[Array, ...]
    segments: Array
    positions: Array
    timestamps: Array | None
    keep: Array | None

    def allowed(self) -> Array:
        """bool[B, 1, L, L]: the mask with an axis for heads."""
        return allowed_positions(self.segments)[:, None]


def automatic_rows_per_group(rows: int, scores_per_row: int, backend: str, devices: int) -> int:
    """Rows a group when the user leaves the choice open.

    The gain is a CPU's cache. Rows that are sharded over devices must not take turns, and an accelerator
    wants them all.
    """
    if backend != "cpu" or devices > 1:
        return rows
    most = max(1, GROUP_SCORES // scores_per_row)
    if rows <= most:
        return rows
    return next((size for size in range(most, most // 2, -1) if rows % size == 0), most)


def map_rows(function: Callable[[Any], Any], rows_per_group: int, rows: Any) -> Any:
    """``function(rows)`` over groups of the leading axis, recomputed in the backward pass."""
    total = jax.tree.leaves(rows)[0].shape[0]
    groups, rest = divmod(total, rows_per_group)
    if groups < 2 and not (groups == 1 and rest):
        return function(rows)
    whole = groups * rows_per_group
    grouped = jax.tree.map(lambda a: a[:whole].reshape(groups, rows_per_group, *a.shape[1:]), rows)
    # Inside a loop nothing can be shared between the forward and the backward pass: no barrier is needed
    # against it.
    out = jax.lax.map(jax.checkpoint(function, prevent_cse=False), grouped)
    out = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), out)
    if not rest:
        return out
    last = function(jax.tree.map(lambda a: a[whole:], rows))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, last)


class Mechanism(nn.Module):
    """Base of the mechanisms: dropout of weights, position schemes, groups of rows, and weights for plots."""

    config: AttentionConfig
    shape: AttentionShape

    def keep_mask(self, size: tuple[int, ...], train: bool) -> tuple[Array | None, float]:
        """A mask of the weights to keep (None = all) and its probability, for all rows at once.

        Drawn outside the groups, so that results depend neither on their size nor on the number of devices.
        """
        if not train or round(self.config.dropout * 256) == 0:
            return None, 1.0
        return dropout_mask(self.make_rng("dropout"), size, self.config.dropout)

    def position_terms(
        self, context: AttentionContext
    ) -> tuple[Callable[..., Array], Callable[[Rows], Array | None]]:
        """The scheme's rotation of queries and keys [B, L, H, d], or of those ``at`` some positions [B, S, H,
        d], and its bias of scores [1 or B, H, L, L].
        """
        scheme, length = self.shape.positions, context.segments.shape[1]
        bias, table = ScoreBias(scheme, self.config.heads, name="positions")(length)

        def turn(x: Array, at: Array | None = None) -> Array:
            return rotate(x, length, at) if scheme == "rotary" else x

        def bias_of(rows: Rows) -> Array | None:
            if table is not None:
                return interval_bias(table, rows.timestamps)
            return None if bias is None else bias[None]

        return turn, bias_of

    def over_rows(
        self, function: Callable[[Rows, int], tuple[Array, dict[str, Array]]], rows: Rows, scores_per_row: int
    ) -> Array:
        """``function(rows, chunks)[0]`` in groups; its second value is sown when intermediates are asked
        for.
        """
        if self.is_mutable_collection("intermediates"):
            out, weights = function(rows, 1)
            for name, value in weights.items():
                self.sow("intermediates", name, value)
            return out
        total = rows.segments.shape[0]
        size = self.config.rows_per_group or automatic_rows_per_group(
            total, scores_per_row, jax.default_backend(), jax.device_count()
        )
        chunks = causal_chunks(rows.segments.shape[1], jax.default_backend())
        return map_rows(lambda group: function(group, chunks)[0], min(size, total), rows)


def position_count(config: AttentionConfig, shape: AttentionShape) -> int:
    """Parameters of the position scheme inside one layer's attention."""
    return POSITIONS[shape.positions].parameters_per_head * config.heads
