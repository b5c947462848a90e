"""Multi-Item-Query attention (Xu, Zhu & Ng, CIKM 2025, arXiv 2509.24424).

At time t a window of the last m interactions asks m questions. With the m - 1 dummies ``d`` in front of the
first real item of each sequence, ``Xext = [d_1 .. d_{m-1}; x_1 .. x_n]``:

    q_{t,j} = Xext[t + j - 1] W_j                                j = 1..m; j = m is the current item
    o_{t,j} = sum_{s <= t} softmax_s(q_{t,j} . k_s / sqrt(D/H)) v_s
    L_{ij}  = (o_i W'_K) . (o_j W'_Q) / sqrt(D),     F_t = sum_j alpha_j (o_j W'_V)

Readings. The paper prints windows of m + 1 and of fewer items; size m is the only consistent one. All m
queries see what is not later than t, the time of the question, and carry t's position under rotary or
relative schemes. Keys and values are the real items, since the paper puts dummies into the query sequence
only (``dummies_as_keys`` adds them, without a position). As printed, alpha is one column of a softmax over m
x m and F_t would have m rows; ``query_level`` lists the repairs. Each layer has dummies of its own
(``share_dummies`` for one set). Heads split each o_{t,j}; the query level has one head, and no bias.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape
from jaxrec.attention.functional import Extra, index_from_start, softmax_core, split_heads
from jaxrec.attention.module import Mechanism, OutputProjection, Rows, position_count, projection_count
from jaxrec.errors import ConfigError
from jaxrec.nn.layers import Dense
from jaxrec.nn.precision import contract, matmul

QueryLevel = Literal["mean", "last", "pooled", "sum", "none"]


@dataclasses.dataclass(frozen=True)
class MultiItemQueryAttentionConfig(AttentionConfig):
    """Multi-Item-Query attention: a window of recent items asks, and a second attention weighs the answers.

    Attributes:
      query_window: m, the number of query positions; 1 with ``query_level`` "none" is softmax attention.
      query_level: weights alpha of the m answers. "mean": softmax over j of L_ij, averaged over i (they sum
        to 1; the default, and the reading that has the paper's cost). "sum": the same, summed over i. "last":
        the current item's row of that softmax. "pooled": softmax over j of the mean of L_ij over i. "none": 1
        / m each, without W'.
      dummies_as_keys: let every query also attend to the dummies.
      share_dummies: one set of dummies for all layers rather than one each.
    """

    query_window: int = 5
    query_level: QueryLevel = "mean"
    dummies_as_keys: bool = False
    share_dummies: bool = False

    paper: ClassVar[str] = "Xu et al., Multi-Item-Query Attention, CIKM 2025 (arXiv 2509.24424)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query_window < 1:
            raise ConfigError(f"attention.query_window must be at least 1, got {self.query_window}")
        if self.query_level not in get_args(QueryLevel):
            raise ConfigError(
                f"attention.query_level must be one of {', '.join(get_args(QueryLevel))}; "
                f"got {self.query_level!r}"
            )

    def check(self, shape: AttentionShape) -> None:
        super().check(shape)
        if self.query_window > shape.max_length:
            raise ConfigError(
                f"attention.query_window must be at most the maximum length: got a window of "
                f"{self.query_window} for histories of at most {shape.max_length}; "
                f"shorten the window or lengthen the histories"
            )

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        return MultiItemQueryAttention(self, shape, name=name)

    def parameter_count(self, shape: AttentionShape) -> int:
        width, window = shape.width, self.query_window
        dummies = 0 if self.share_dummies else (window - 1) * width
        query_level = 0 if self.query_level == "none" else 3 * width**2
        own = (window + 2) * (width**2 + width) + query_level + dummies
        return own + projection_count(shape) + position_count(self, shape)

    def shared_module(self, shape: AttentionShape, name: str | None = None) -> nn.Module | None:
        return Dummies(self.query_window - 1, shape.width, name=name) if self.share_dummies else None

    def shared_parameter_count(self, shape: AttentionShape) -> int:
        return (self.query_window - 1) * shape.width if self.share_dummies else 0


class Dummies(nn.Module):
    """The learnable items in front of a sequence: float32[m - 1, D]."""

    count: int
    width: int

    @nn.compact
    def __call__(self) -> Array:
        return self.param("vectors", nn.initializers.normal(0.02), (self.count, self.width), jnp.float32)


class SlotMap(nn.Module):
    """The affine map of one slot of the window; `QueryWindow` has one of its own for each slot."""

    shape: AttentionShape

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        width = self.shape.width
        kernel = self.param("kernel", self.shape.kernel_init, (width, width), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros_init(), (width,), jnp.float32)


class QueryWindow(nn.Module):
    """Query Window Matrix: the map of each slot, ``(kernel [D, m D], bias [m, D])``; ``m (D^2 + D)`` parameters.

    `nn.vmap` over the m slots defines them (each initialised alone). They lie side by side, to be applied as one
    matrix product by `ask`: mapping the product too makes its backward pass sum m gradients of the inputs.
    """

    window: int
    shape: AttentionShape

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        maps = nn.vmap(
            SlotMap, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=self.window
        )
        kernels, biases = maps(self.shape, name="slots")()
        width = self.shape.width
        return jnp.moveaxis(kernels, 0, 1).reshape(width, self.window * width), biases


def ask(x: Array, maps: tuple[Array, Array], dtype: Any) -> Array:
    """``[..., D] -> [..., m, D]``: what each slot of the window makes of ``x``, by the maps of `QueryWindow`."""
    kernel, biases = maps
    out = matmul(x, kernel, dtype).reshape(*x.shape[:-1], *biases.shape)
    return out + biases.reshape((1,) * (x.ndim - 1) + biases.shape)


def slide_window(items: Array, dummies: Array, index: Array) -> Array:
    """Place the window's vectors at each time: ``[B, L, m, D], [m-1, m, D], int32[B, L] -> [B, L, m, D]``.

    Slot j (from 0) of time t takes item ``t - (m - 1 - j)`` of the same sequence, or dummy ``t + j`` where
    the sequence has not begun by then. ``index`` is t, counted from the sequence's start.
    """
    batch, length, window, width = items.shape
    slots = []
    early = jax.nn.one_hot(index, window - 1, dtype=jnp.float32)
    for slot in range(window):
        back = min(window - 1 - slot, length)
        shifted = jnp.concatenate(
            [jnp.zeros((batch, back, width), items.dtype), items[:, : length - back, slot]], axis=1
        )
        placed = jnp.where((index >= window - 1 - slot)[..., None], shifted, 0.0)
        if slot < window - 1:
            # Row t of this slot's table is dummy t + slot; none once the slot has reached the first item.
            placed = placed + matmul(early, jnp.pad(dummies[slot:, slot], ((0, slot), (0, 0))))
        slots.append(placed)
    return jnp.stack(slots, axis=2)


class MultiItemQueryAttention(Mechanism):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

    Parameters: ``(m + 2) (D^2 + D)`` for queries, keys and values, ``3 D^2`` for the query level (none with
    "none"), ``(m - 1) D`` dummies (none if shared), ``D^2 + D`` with an output projection, and the position
    scheme's. Sows ``attention_weights`` [B, H, m, L, keys] (dummies first among the keys) and
    ``query_weights`` [B, L, m].
    """

    config: MultiItemQueryAttentionConfig

    @nn.compact
    def __call__(
        self, x: Array, context: AttentionContext, train: bool = False, queries: Array | None = None
    ) -> Array:
        config, dtype, width = self.config, self.shape.dtype, self.shape.width
        heads, window = config.heads, config.query_window
        batch, length, _ = x.shape
        turn, bias_of = self.position_terms(context)

        if config.share_dummies:
            dummies = config.from_shared(context, "share_dummies")
        else:
            dummies = Dummies(window - 1, width, name="dummies")()
        maps = QueryWindow(window, self.shape, name="query_window")()
        scale = (width // heads) ** -0.5  # of the keys, which are fewer than the queries
        pair = Dense(2 * width, kernel_init=self._pair_init, dtype=dtype, name="keys_values")
        k, v = (split_heads(part, heads) for part in jnp.split(pair(x), 2, axis=-1))
        asked_by_dummies = ask(dummies, maps, dtype)
        n_dummies = window - 1 if config.dummies_as_keys else 0
        if n_dummies:
            dummy_k, dummy_v = (split_heads(part, heads) for part in jnp.split(pair(dummies), 2, axis=-1))
        keep, probability = self.keep_mask((batch, heads, length, window, n_dummies + length), train)
        level = self._query_level_maps() if config.query_level != "none" else None

        def flat(q: Array) -> Array:
            # Times and slots as one axis: each product of the core is one matrix product a row and head.
            return q.reshape(-1, length * window, heads, width // heads)

        def core(rows: Rows, chunks: int) -> tuple[Array, dict[str, Array]]:
            source, k, v = rows.inputs
            # The window's queries, m times the size of the states, exist for one group of rows at a time.
            asked = slide_window(ask(source, maps, dtype), asked_by_dummies, index_from_start(rows.segments))
            asked = split_heads(asked, heads)
            answers, weights = softmax_core(
                flat(jax.vmap(turn, 2, 2)(asked)),
                k,
                v,
                segments=rows.segments,
                bias=bias_of(rows),
                keep=rows.keep,
                probability=probability,
                dtype=dtype,
                chunks=chunks,
                slots=window,
                # Dummies have no place in the row: they meet the queries before these are rotated.
                extra=Extra(flat(asked), dummy_k * scale, dummy_v) if n_dummies else None,
            )
            out, alpha = self._weigh(answers.reshape(-1, length, window, width), level)
            return out, {"attention_weights": jnp.moveaxis(weights, 3, 2), "query_weights": alpha}

        inputs = (x if queries is None else queries, turn(k) * scale, v)
        rows = Rows(inputs, context.segments, context.positions, context.timestamps, keep)
        attended = self.over_rows(core, rows, heads * window * length * length)
        return OutputProjection(self.shape, name="output")(attended)

    def _pair_init(self, key: Array, size: tuple[int, int], dtype: np.dtype) -> Array:
        # Keys' and values' maps side by side, each initialised for its own fan-out.
        half = (size[0], size[1] // 2)
        return jnp.concatenate(
            [self.shape.kernel_init(k, half, dtype) for k in jax.random.split(key)], axis=1
        )

    def _query_level_maps(self) -> tuple[Array, Array]:
        """``W'_K W'_Q^T / sqrt(D)`` and ``W'_V``: the two key and query maps only ever meet as a product."""
        width = self.shape.width
        w_k, w_q, w_v = (
            self.param(f"query_level_{name}_kernel", self.shape.kernel_init, (width, width), jnp.float32)
            for name in ("keys", "queries", "values")
        )
        return contract("ac,bc->ab", w_k, w_q, jnp.float32) * width**-0.5, w_v

    def _weigh(self, answers: Array, level: tuple[Array, Array] | None) -> tuple[Array, Array]:
        """The m answers [B, L, m, D] to one [B, L, D], and their weights [B, L, m]."""
        batch, length, window, _ = answers.shape
        if level is None:
            return answers.mean(axis=2), jnp.full((batch, length, window), 1.0 / window)
        product, w_v = level
        dtype, kind = self.shape.dtype, self.config.query_level
        if kind in ("last", "pooled"):
            asking = answers[:, :, -1] if kind == "last" else answers.mean(axis=2)
            logits = contract("bla,blja->blj", matmul(asking, product, dtype), answers, dtype)
            alpha = jax.nn.softmax(logits, axis=-1)
        else:
            logits = contract("blia,blja->blij", matmul(answers, product, dtype), answers, dtype)
            each = jax.nn.softmax(logits, axis=-1)
            alpha = each.mean(axis=2) if kind == "mean" else each.sum(axis=2)
        # alpha weighs the answers before W'_V, which is linear: one map of the sum rather than m maps.
        mixed = jnp.sum(alpha[..., None] * answers, axis=2)
        return matmul(mixed, w_v, dtype), alpha
