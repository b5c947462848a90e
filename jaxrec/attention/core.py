"""What the mechanisms share: products, projections, masked softmax, dropout of weights, groups of rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape, allowed_positions
from jaxrec.attention.positions import POSITIONS, ScoreBias, interval_bias, rotate
from jaxrec.layers import Dense, dropout_mask, matmul

#: Scores held at once by the automatic choice of `rows_per_group`.
GROUP_SCORES = 1_000_000
#: Stretches of time that the core treats one by one on a CPU, and the least length of one.
CHUNKS = 4
CHUNK_LENGTH = 16


def operand_dtype(dtype: Any, backend: str) -> Any:
    """The precision in which `contract` may hold its operands.

    On a CPU float32 alone: XLA refuses some transposed batched bfloat16 products only when they run
    ("Unsupported element type for DotThunk"), and groups of rows in float32 are faster there than bfloat16
    is. `jaxrec.layers.matmul`, with its two-dimensional products, keeps to ``dtype``.
    """
    return jnp.float32 if backend == "cpu" else dtype


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(equation: str, x: Array, y: Array, dtype: Any) -> Array:
    """``einsum(equation, x, y)`` with operands in ``dtype`` and sums in float32, forward and backward.

    Every index must appear in two of the three terms. See `operand_dtype` for what a CPU does.
    """
    dtype = operand_dtype(dtype, jax.default_backend())
    return jnp.einsum(equation, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


def _contract_forward(equation: str, x: Array, y: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return contract(equation, x, y, dtype), (x, y)


def _contract_backward(
    equation: str, dtype: Any, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = saved
    operands, result = equation.split("->")
    left, right = operands.split(",")
    x_bar = contract(f"{result},{right}->{left}", cotangent, y, dtype)
    y_bar = contract(f"{left},{result}->{right}", x, cotangent, dtype)
    return x_bar.astype(x.dtype), y_bar.astype(y.dtype)


contract.defvjp(_contract_forward, _contract_backward)


def split_heads(x: Array, heads: int) -> Array:
    """[..., D] to [..., H, D / H]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Array) -> Array:
    """[..., H, d] to [..., H * d]."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def masked_softmax(scores: Array, allowed: Array) -> Array:
    """Softmax over the allowed entries of the last axis (one at least); exactly 0 elsewhere."""
    return jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(scores.dtype).min), axis=-1)


def causal_chunks(length: int, backend: str) -> int:
    """How many stretches of time to treat one by one: a CPU gains by not scoring what the mask forbids."""
    return max(1, min(CHUNKS, length // CHUNK_LENGTH)) if backend == "cpu" else 1


def stretches(length: int, chunks: int) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of time."""
    return [(chunk * length // chunks, (chunk + 1) * length // chunks) for chunk in range(chunks)]


class Extra(NamedTuple):
    """Keys outside the row that every query may see.

    Attributes:
      queries: [B, L * M, H, d], what meets these keys.
      keys, values: [E, H, d].
    """

    queries: Array
    keys: Array
    values: Array


def softmax_core(
    q: Array,
    k: Array,
    v: Array,
    *,
    segments: Array,
    bias: Array | None,
    keep: Array | None,
    probability: float,
    dtype: Any,
    chunks: int,
    slots: int = 1,
    extra: Extra | None = None,
) -> tuple[Array, Array]:
    """Causal softmax attention, one stretch of time after another against the keys up to its end.

    Args:
      q: [B, L * M, H, d], M = ``slots`` queries at each time, adjacent.
      k, v: [B, L, H, d].
      segments: int32[B, L].
      bias: of the scores, [1 or B, H, L, L], or None.
      keep: the weights that dropout keeps, bool[B, H, L, M, E + L], or None; kept with ``probability``.
      dtype: of the operands of products.
      chunks: number of stretches; the result does not depend on it.
      extra: E more keys, before the row's own, or None.

    Returns:
      [B, L * M, H, d], and the weights [B, H, stretch, M, E + L] before dropout of the last stretch (all
      times where ``chunks`` is 1).
    """
    batch, length, heads, _ = k.shape
    outside = 0 if extra is None else extra.keys.shape[0]
    allowed = allowed_positions(segments)
    outs = []
    for start, stop in stretches(length, chunks):
        asking = slice(start * slots, stop * slots)
        size = (batch, heads, stop - start, slots)
        scores = contract("bihd,bjhd->bhij", q[:, asking], k[:, :stop], dtype).reshape(*size, stop)
        if bias is not None:
            scores = scores + bias[:, :, start:stop, None, :stop]
        seen = jnp.broadcast_to(allowed[:, None, start:stop, None, :stop], scores.shape)
        if extra is not None:
            more = contract("bihd,jhd->bhij", extra.queries[:, asking], extra.keys, dtype)
            scores = jnp.concatenate([more.reshape(*size, outside), scores], axis=-1)
            seen = jnp.concatenate([jnp.ones((*size, outside), jnp.bool_), seen], axis=-1)
        weights = masked_softmax(scores, seen)
        dropped = drop_weights(
            weights, None if keep is None else keep[:, :, start:stop, :, : outside + stop], probability
        ).reshape(batch, heads, (stop - start) * slots, outside + stop)
        out = contract("bhij,bjhd->bihd", dropped[..., outside:], v[:, :stop], dtype)
        if extra is not None:
            out = out + contract("bhij,jhd->bihd", dropped[..., :outside], extra.values, dtype)
        outs.append(out)
    return (outs[0] if chunks == 1 else jnp.concatenate(outs, axis=1)), weights


def softmax_at(
    q: Array, k: Array, v: Array, *, at: Array, segments: Array, bias: Array | None, dtype: Any
) -> Array:
    """What `softmax_core` gives at the positions ``at`` int32[B, S], whose queries are ``q`` [B, S, H, d]."""
    scores = contract("bihd,bjhd->bhij", q, k, dtype)
    if bias is not None:
        scores = scores + jnp.take_along_axis(bias, at[:, None, :, None], axis=2)
    weights = masked_softmax(scores, allowed_positions(segments, at)[:, None])
    return contract("bhij,bjhd->bihd", weights, v, dtype)


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


def drop_weights(weights: Array, keep: Array | None, probability: float) -> Array:
    """Inverted dropout of attention weights."""
    return weights if keep is None else jnp.where(keep, weights / probability, 0.0)


def position_count(config: AttentionConfig, shape: AttentionShape) -> int:
    """Parameters of the position scheme inside one layer's attention."""
    return POSITIONS[shape.positions].parameters_per_head * config.heads


def index_from_start(segments: Array) -> Array:
    """int32[B, L]: the index of each position inside its own run of equal ``segments``, 0 = its first."""
    columns = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    before = jnp.concatenate([jnp.full_like(segments[:, :1], -1), segments[:, :-1]], axis=1)
    starts = jnp.where(segments != before, columns, jnp.int32(0))
    return columns - jax.lax.cummax(starts, axis=1)
