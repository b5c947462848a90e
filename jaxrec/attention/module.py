"""Machinery around the formulas: projections, position terms, dropout of weights, groups of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec, Mask, allowed_positions
from jaxrec.attention.cache import Grown, new_positions, remember, whole
from jaxrec.attention.functional import (
    attend_in_stretches,
    index_from_start,
    merge_heads,
    split_heads,
    stretch_count,
)
from jaxrec.attention.positions import POSITIONS, ScoreBias, interval_bias, rotate
from jaxrec.nn.layers import Dense, dropout_mask, take_positions
from jaxrec.nn.precision import matmul

#: Scores held at once by the automatic choice of `rows_per_group`.
GROUP_SCORES = 1_000_000


class Projections(nn.Module):
    """Queries, keys and values [B, L, H, d]: ``3 (D^2 + D)`` parameters, one product where inputs agree."""

    heads: int
    spec: AttentionSpec

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], queries: Float[Array, "B S D"] | None
    ) -> tuple[Float[Array, "B _ H d"], Float[Array, "B L H d"], Float[Array, "B L H d"]]:
        """Project ``x`` [B, L, D], and ``queries`` [B, S, D] where the queries have another input."""
        width = self.spec.width

        def stacked_init(key: Array, size: tuple[int, int], dtype: Any) -> Array:
            # Three initialisations side by side: fan-out is D, not 3 D.
            keys = jax.random.split(key, 3)
            return jnp.concatenate([self.spec.kernel_init(k, (width, width), dtype) for k in keys], axis=1)

        kernel = self.param("kernel", stacked_init, (width, 3 * width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (3 * width,), jnp.float32)

        def affine(inputs: Array, start: int, stop: int) -> Array:
            columns = slice(start, stop)
            return matmul(inputs, kernel[:, columns], self.spec.dtype) + bias[columns].reshape(1, 1, -1)

        if queries is None:
            parts = jnp.split(affine(x, 0, 3 * width), 3, axis=-1)
        else:
            parts = [affine(queries, 0, width), *jnp.split(affine(x, width, 3 * width), 2, axis=-1)]
        q, k, v = (split_heads(part, self.heads) for part in parts)
        return q, k, v


class OutputProjection(nn.Module):
    """The affine map after the heads, ``D^2 + D`` parameters, or the identity where the encoder has none."""

    spec: AttentionSpec

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Map [..., D] to [..., D]."""
        if not self.spec.output_projection:
            return x
        spec = self.spec
        return Dense(spec.width, kernel_init=spec.kernel_init, dtype=spec.dtype, name="dense")(x)


def projection_count(spec: AttentionSpec) -> int:
    """Parameters of `OutputProjection`."""
    return (spec.width**2 + spec.width) if spec.output_projection else 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """Inputs of a mechanism for a group of rows; every array has the row axis first.

    Attributes:
      arrays: the mechanism's own, such as queries, keys and values.
      segments: int32[B, L]; this and the following as in `AttentionContext`.
      positions: int32[B, L].
      timestamps: int32[B, L] or None.
      keep: the weights that dropout keeps, bool of their shape, or None for all.
      query_positions: int32[B, S], columns of the queries, or None for all L.
      mask: "causal" or "bidirectional".
    """

    arrays: tuple[Array, ...]
    segments: Array
    positions: Array
    timestamps: Array | None
    keep: Array | None
    query_positions: Array | None = None
    mask: Mask = dataclasses.field(default="causal", metadata={"static": True})

    @classmethod
    def of(
        cls,
        arrays: tuple[Array, ...],
        context: AttentionContext,
        keep: Array | None = None,
        query_positions: Array | None = None,
    ) -> AttentionInputs:
        """The inputs for all rows of a batch."""
        return cls(
            arrays,
            context.segments,
            context.positions,
            context.timestamps,
            keep,
            query_positions,
            context.mask,
        )

    def allowed(self) -> Bool[Array, "B 1 S L"]:
        """The mask bool[B, 1, L, L], with an axis for heads, or [B, 1, S, L]."""
        return allowed_positions(self.segments, self.mask, self.query_positions)[:, None]


def automatic_rows_per_group(rows: int, scores_per_row: int, backend: str, devices: int) -> int:
    """Choose the rows of a group.

    The gain is a CPU's cache. Rows that are sharded over devices must not be processed in turn, and an accelerator
    needs them all at once.
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


def query_input(
    x: Float[Array, "B L D"],
    queries: Float[Array, "B L D"] | None,
    query_positions: Int[Array, "B S"] | None,
) -> Float[Array, "B S D"] | None:
    """The input of the queries at ``query_positions``, see `AttentionConfig.build`; None where it is all of ``x``."""
    if query_positions is None:
        return queries
    return take_positions(x if queries is None else queries, query_positions)


def query_rows(bias: Array | float, query_positions: Array | None) -> Array | float:
    """Take the rows of a bias [1 or B, H, L, L] at ``query_positions`` int32[B, S]: [B, H, S, L]; None takes all."""
    if query_positions is None or not isinstance(bias, Array):
        return bias
    return jnp.take_along_axis(bias, query_positions[:, None, :, None], axis=2)


class PositionTerms(NamedTuple):
    """A position scheme inside one layer's attention.

    Attributes:
      rotate: ``(x [B, L, H, d], query_positions=None, segments=...) -> x``, rotated where the scheme does so; with
        ``query_positions`` int32[B, S], x is [B, S, H, d]. ``segments`` int32[B, L] are those of x; the default is the
        batch's.
      bias: ``AttentionInputs -> [1 or B, 1 or H, L, L]``, or [B, 1 or H, S, L] for its ``query_positions``; 0.0 without a
        bias.
    """

    rotate: Callable[..., Array]
    bias: Callable[[AttentionInputs], Array | float]


class AttentionModule(nn.Module):
    """Base of the mechanisms: position terms, dropout of weights, groups of rows, sown weights."""

    config: AttentionConfig
    spec: AttentionSpec

    def keep_mask(
        self, size: tuple[int, ...], train: bool
    ) -> tuple[Bool[Array, "B H queries keys"] | None, float]:
        """Draw the mask of the weights to keep (None = all) and its probability, for all rows at once.

        Drawn outside the groups, so that results depend neither on their size nor on the number of devices.
        """
        if not train or round(self.config.dropout * 256) == 0:
            return None, 1.0
        return dropout_mask(self.make_rng("dropout"), size, self.config.dropout)

    def position_terms(self, context: AttentionContext) -> PositionTerms:
        """Build the terms of the encoder's position scheme; creates its parameters."""
        scheme, length = self.spec.positions, context.segments.shape[1]
        module = ScoreBias(scheme, self.config.heads, name="positions")
        bias, table = module(length, context.mask == "bidirectional")

        def turn(x: Array, query_positions: Array | None = None, segments: Array = context.segments) -> Array:
            if scheme != "rotary":
                return x
            if context.cache is None:
                return rotate(x, length, query_positions)
            # Offsets alone count. Stored keys may come from a packed row, where their columns are others.
            index = index_from_start(segments)
            if query_positions is not None:
                index = jnp.take_along_axis(index, query_positions, axis=1)
            return rotate(x, length, index)

        def bias_of(inputs: AttentionInputs) -> Array | float:
            if table is not None:
                return interval_bias(
                    scheme, table, inputs.timestamps, inputs.segments, inputs.query_positions
                )
            return 0.0 if bias is None else query_rows(bias[None], inputs.query_positions)

        return PositionTerms(turn, bias_of)

    def attend(
        self,
        formula: Callable[..., tuple[Array, Array]],
        qkv: tuple[Float[Array, "B S H d"], Float[Array, "B L H d"], Float[Array, "B L H d"]],
        context: AttentionContext,
        train: bool,
        *,
        query_positions: Int[Array, "B S"] | None = None,
        bias: Float[Array, "1 H columns columns"] | float = 0.0,
        mix: Callable[[AttentionInputs, int], tuple[Array, Array, Array]] | None = None,
    ) -> Float[Array, "B S D"]:
        """Apply a formula to a batch, in groups of rows and stretches of time, and sow its weights.

        Args:
          formula: ``(q, k, v, bias, mask, dropout) -> (out, weights)``.
          qkv: queries, keys and values [B, L, H, d]; with ``query_positions`` the queries are [B, S, H, d]. Where the row
            grows, those of the columns that are computed now.
          context: of the batch.
          train: whether weights are dropped.
          query_positions: int32[B, S], columns of the queries; None = all positions.
          bias: [1, H, L, L] added to that of the position scheme, or 0.0.
          mix: ``(inputs, stretches) -> (q, k, v)``, a change of queries, keys and values inside each group: of all columns,
            or with ``inputs.query_positions``, where the row grows, of all keys and values to those of the one new column.

        Returns:
          [B, L, D], or [B, S, D].
        """
        terms = self.position_terms(context)
        q, k, v = qkv
        batch, length, heads, _ = k.shape
        new = new_positions(context.cache, batch)
        query_positions = query_positions if new is None else new
        arrays: Any = (terms.rotate(q, query_positions), terms.rotate(k, new), v)
        if context.cache is not None:
            arrays, mix = self._remembered(arrays, context, new, mix), None
            if query_positions is not None:
                inputs = AttentionInputs.of(arrays, context, query_positions=query_positions)
                scores_bias = terms.bias(inputs) + query_rows(bias, query_positions)
                return merge_heads(formula(*arrays, scores_bias, inputs.allowed())[0])
        n_queries = length if query_positions is None else query_positions.shape[1]
        keep, probability = self.keep_mask((batch, heads, n_queries, length), train)

        def core(inputs: AttentionInputs, count: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = inputs.arrays
            if mix is not None:
                q, k, v = mix(dataclasses.replace(inputs, query_positions=None), count)
            out, weights = attend_in_stretches(
                formula,
                q,
                k,
                v,
                terms.bias(inputs) + query_rows(bias, inputs.query_positions),
                inputs.allowed(),
                keep=inputs.keep,
                probability=probability,
                count=count,
            )
            return out, {"attention_weights": weights}

        inputs = AttentionInputs.of(arrays, context, keep, query_positions)
        return merge_heads(self.over_rows(core, inputs, heads * n_queries * length))

    def _remembered(
        self,
        arrays: tuple[Array, Array, Array],
        context: AttentionContext,
        new: Array | None,
        mix: Callable[[AttentionInputs, int], tuple[Array, Array, Array]] | None,
    ) -> tuple[Array, Array | Grown, Array | Grown]:
        """Queries, and the keys and values of all columns so far, mixed; what is new is stored."""
        q, k, v = arrays
        k, v = remember(self, context.cache, keys=k, values=v)
        if mix is None:
            return q, k, v
        q, k, v = mix(AttentionInputs.of((q, whole(k), whole(v)), context, query_positions=new), 1)
        k, v = remember(self, context.cache, mixed_keys=k, mixed_values=v)
        return q, k, v

    def over_rows(
        self,
        function: Callable[[AttentionInputs, int], tuple[Array, dict[str, Array]]],
        inputs: AttentionInputs,
        scores_per_row: int,
    ) -> Array:
        """``function(inputs, stretches)[0]`` in groups of rows; sow the second value where intermediates are mutable.

        Args:
          function: of the inputs of a group and the number of stretches of time.
          inputs: of all rows.
          scores_per_row: for the automatic size of a group.
        """
        if self.is_mutable_collection("intermediates"):
            out, weights = function(inputs, 1)
            for name, value in weights.items():
                self.sow("intermediates", name, value)
            return out
        total, length = inputs.segments.shape
        size = self.config.rows_per_group or automatic_rows_per_group(
            total, scores_per_row, jax.default_backend(), jax.device_count()
        )
        # Queries at some columns are in no order of time.
        chosen = inputs.query_positions is not None
        count = 1 if chosen else stretch_count(length, jax.default_backend(), inputs.mask)
        return map_rows(lambda group: function(group, count)[0], min(size, total), inputs)


def position_count(config: AttentionConfig, spec: AttentionSpec) -> int:
    """Parameters of the position scheme inside one layer's attention."""
    scheme = POSITIONS[spec.positions]
    return scheme.buckets * (1 if scheme.shared_by_heads else config.heads)
