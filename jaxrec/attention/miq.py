"""Multi-Item-Query attention (Xu, Zhu & Ng, CIKM 2025, arXiv 2509.24424).

At time t the last m items of the window form m queries. With the m - 1 learned dummies ``d`` in front of the first real
item of each sequence, ``Xext = [d_1 .. d_{m-1}; x_1 .. x_n]``:

    q_{t,j} = Xext[t + j - 1] W_j                                j = 1..m; j = m is the current item
    o_{t,j} = sum_{s <= t} softmax_s(q_{t,j} . k_s / sqrt(D/H)) v_s
    L_{ij}  = (o_i W'_K) . (o_j W'_Q) / sqrt(D),     F_t = sum_j alpha_j (o_j W'_V)

`query_position_attention` is the second line for one j; the module maps it over the m query positions.

Readings:
- the paper prints a window of m + 1 items for t >= m and of m items before; m is the only consistent size
  (``printed_window`` for m + 1 throughout);
- all m queries see what is not later than t, the time of the prediction, and carry t's position under rotary or relative
  schemes. Under a bidirectional mask they see the whole sequence, and the window still ends at t, so that maps learned
  under one mask keep their meaning under the other;
- keys and values are the real items, since the paper puts dummies into the query sequence only (``dummies_as_keys`` adds
  them, without a position);
- as printed, alpha is one column of a softmax over m x m and F_t would have m rows; ``query_level`` lists the repairs;
- each layer has dummies of its own (``share_dummies`` for one set), which start on the scale of a layer norm's output,
  as the items beside them have it in most blocks (``dummy_scale``). With ``dummies_as_tokens`` they are tokens of the
  input instead, as [CLS] is: they pass through all layers in front of every sequence. They see each other and no item
  (under both masks), and before the first of them the window holds zeros, as the layer's norm leaves them (with
  ``dummies_as_keys`` as keys, too: a token then also sees m - 1 keys that are made of these). The block "original" forms its
  keys of items before the norm and those of the tokens behind it;
- the m maps have biases, as the maps of keys and values do; the paper prints none. Heads split each o_{t,j}; the query
  level has one head and no bias.

Histories cut to the maximum length get dummies in front of their first item although earlier ones exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import SECTION, AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.attention.cache import new_positions, remember, whole
from jaxrec.attention.functional import (
    attend_in_stretches,
    drop_weights,
    index_from_start,
    keep_all,
    merge_heads,
    split_heads,
)
from jaxrec.attention.module import (
    AttentionInputs,
    AttentionModule,
    OutputProjection,
    PositionTerms,
    position_count,
    projection_count,
)
from jaxrec.attention.softmax import softmax_attention
from jaxrec.errors import ConfigError
from jaxrec.nn.layers import Dense, take_positions
from jaxrec.nn.precision import einsum, matmul
from jaxrec.options import Range, Search, option_name

QueryLevel = Literal["mean", "last", "pooled", "sum", "none"]


def query_position_attention(
    x: Float[Array, "B S D"],
    kernel: Float[Array, "D D"],
    shift: Float[Array, " D"],
    keys: Keys,
    bias: Float[Array, "#B #H S L"] | float,
    mask: Bool[Array, "#B 1 S L"],
    dropout: Callable[[Array], Array] = keep_all,
    rotate: Callable[[Array], Array] = lambda q: q,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B S H d"], Float[Array, "B H S keys"]]:
    """The answers o_j of ONE query position j at every time: ``softmax(mask(X_j W_j K^T / sqrt(d))) V``.

    Args:
      x: [B, L, D], the item (or dummy) at slot j of the window of each time.
      kernel: [D, D], W_j.
      shift: [D], the bias of the map.
      keys: keys and values of the row, and of the dummies where these are keys too.
      bias: of the scores, [1 or B, 1 or H, L, L], or 0.0.
      mask: bool[B, 1, L, L].
      dropout: of the weights.
      rotate: of the queries, by the time t.
      dtype: precision of the operands of products.

    Returns:
      [B, L, H, d], and the weights [B, H, L, keys] before dropout.
    """
    q = split_heads(matmul(x, kernel, dtype) + shift.reshape(1, 1, -1), keys.k.shape[2])
    k, v, bias, mask = keys.with_dummies(q, bias, mask, dtype)
    return softmax_attention(rotate(q), k, v, bias, mask, dropout, dtype)


def query_level_attention(
    answers: Float[Array, "B L m D"],
    maps: tuple[Float[Array, "D D"], Float[Array, "D D"]] | None,
    level: QueryLevel,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B L D"], Float[Array, "B L m"]]:
    """Attention of the m answers to each other: ``F_t = sum_j alpha_j (o_j W'_V)``.

    Args:
      answers: [B, L, m, D].
      maps: ``W'_K W'_Q^T / sqrt(D)`` and ``W'_V``, [D, D] each; None with ``level`` "none".
      level: reading of alpha.
      dtype: precision of the operands of products.

    Returns:
      F [B, L, D] and alpha [B, L, m].
    """
    if maps is None:
        batch, length, window, _ = answers.shape
        return answers.mean(axis=2), jnp.full((batch, length, window), 1.0 / window)
    product, w_v = maps
    if level in ("last", "pooled"):
        query = answers[:, :, -1] if level == "last" else answers.mean(axis=2)
        logits = einsum("bla,blja->blj", matmul(query, product, dtype), answers, dtype)
        alpha = jax.nn.softmax(logits, axis=-1)
    else:
        logits = einsum("blia,blja->blij", matmul(answers, product, dtype), answers, dtype)
        each = jax.nn.softmax(logits, axis=-1)
        alpha = each.mean(axis=2) if level == "mean" else each.sum(axis=2)
    # alpha weighs the answers before W'_V, which is linear: one map of the sum rather than m maps.
    mixed = jnp.sum(alpha[..., None] * answers, axis=2)
    return matmul(mixed, w_v, dtype), alpha


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys and values that the queries of a window meet.

    Attributes:
      k: [B, L, H, d], rotated where the position scheme does so.
      v: [B, L, H, d].
      dummy_k: [E, H, d] or None; dummies have no position.
      dummy_v: [E, H, d] or None.
    """

    k: Array
    v: Array
    dummy_k: Array | None = None
    dummy_v: Array | None = None

    def with_dummies(
        self,
        q: Float[Array, "B S H d"],
        bias: Float[Array, "#B #H S L"] | float,
        mask: Bool[Array, "#B 1 S L"],
        dtype: Any,
    ) -> tuple[
        Float[Array, "B K H d"],
        Float[Array, "B K H d"],
        Float[Array, "#B #H S K"] | float,
        Bool[Array, "#B 1 S K"],
    ]:
        """Put the dummies in front of the keys, visible to every query.

        Their scores, of queries that are not rotated, enter as a bias of keys that are zero.

        Args:
          q: [B, S, H, d], not rotated.
          bias: [1 or B, 1 or H, S, L], or a number.
          mask: bool[B, 1, S, L].
          dtype: precision of the operands of products.

        Returns:
          k, v, bias and mask with E more keys.
        """
        if self.dummy_k is None or self.dummy_v is None:
            return self.k, self.v, bias, mask
        scores = einsum("bihd,jhd->bhij", q * q.shape[-1] ** -0.5, self.dummy_k, dtype)
        outside = (self.k.shape[0], *self.dummy_k.shape)
        full = (*scores.shape[:3], self.k.shape[1])
        return (
            jnp.concatenate([jnp.zeros(outside, self.k.dtype), self.k], axis=1),
            jnp.concatenate([jnp.broadcast_to(self.dummy_v[None], outside), self.v], axis=1),
            jnp.concatenate([scores, jnp.broadcast_to(bias, full)], axis=-1),
            jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (outside[1], 0)), constant_values=True),
        )


@dataclasses.dataclass(frozen=True)
class MultiItemQueryAttentionConfig(AttentionConfig):
    """Multi-Item-Query attention: queries from a window of recent items, weighed by a second attention.

    Attributes:
      query_window: m, the number of query positions; 1 with ``query_level`` "none" is softmax attention. The paper
        advises a tenth of the average history.
      query_level: weights alpha of the m answers. "mean": softmax over j of L_ij, averaged over i (they sum
        to 1; the default, and the reading that has the paper's cost). "sum": the same, summed over i. "last":
        the current item's row of that softmax. "pooled": softmax over j of the mean of L_ij over i. "none": 1
        / m each, without W'.
      printed_window: m + 1 items from t - m to t, with m + 1 maps and m dummies, as one line of the paper prints.
      dummies_as_keys: let every query also attend to the dummies.
      share_dummies: one set of dummies for all layers rather than one each.
      dummies_as_tokens: one set of dummies that the encoder passes through its layers in front of the items.
      dummy_scale: standard deviation of the dummies at the start: 1 is the scale of a layer norm's output, beside which
        dummies of 0.02 (a usual scale of embeddings) would form almost uniform queries.
      mapping: "fused" computes the m query positions as one attention with m queries at each time, "vmap" maps
        `query_position_attention` over them. The results are equal; "fused" is faster.
    """

    query_window: Annotated[int, Range("[1, inf)"), Search("2,3,5,10")] = 5
    query_level: QueryLevel = "mean"
    printed_window: bool = False
    dummies_as_keys: bool = False
    share_dummies: bool = False
    dummies_as_tokens: bool = False
    dummy_scale: Annotated[float, Range("(0, inf)")] = 1.0
    mapping: Literal["fused", "vmap"] = "fused"

    selects_positions: ClassVar[bool] = True
    paper: ClassVar[str] = "Xu et al., Multi-Item-Query Attention, CIKM 2025 (arXiv 2509.24424)"

    @property
    def slots(self) -> int:
        """Items in the window: m, or m + 1 as printed."""
        return self.query_window + int(self.printed_window)

    @property
    def one_set(self) -> bool:
        """Whether the layers have one set of dummies."""
        return self.share_dummies or self.dummies_as_tokens

    def check(self, spec: AttentionSpec) -> None:
        """Reject a window that is longer than any history, and two kinds of dummies."""
        super().check(spec)
        if self.share_dummies and self.dummies_as_tokens:
            raise ConfigError(
                f"{option_name(SECTION, 'share_dummies')} and {option_name(SECTION, 'dummies_as_tokens')} exclude each "
                f"other: tokens of the input are one set already; turn one of them off"
            )
        if self.slots > spec.max_length:
            raise ConfigError(
                f"{option_name(SECTION, 'query_window')} must be at most the maximum length: got a window of "
                f"{self.slots} items for histories of at most {spec.max_length}; "
                f"shorten the window or lengthen the histories"
            )

    def advice(self, lengths: np.ndarray) -> list[str]:
        """Warn of a window longer than half of the histories, most of whose queries are dummies."""
        typical = int(np.median(lengths)) if len(lengths) else 0
        if self.slots <= typical:
            return []
        tenth = max(1, round(float(np.mean(lengths)) / 10)) if len(lengths) else 1
        return [
            f"{option_name(SECTION, 'query_window')} gives a window of {self.slots} items, and half of the training "
            f"histories have at most {typical}: dummies fill most of these windows; the paper advises a tenth of the "
            f"average history, here {tenth}"
        ]

    def cache_obstacle(self, spec: AttentionSpec) -> str | None:
        """None: a new window needs the inputs, keys and values of earlier positions as they are."""
        return None

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `MultiItemQueryAttention`."""
        return MultiItemQueryAttention(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """The formula of `MultiItemQueryAttention`."""
        width, window = spec.width, self.slots
        dummies = 0 if self.one_set else (window - 1) * width
        query_level = 0 if self.query_level == "none" else 3 * width**2
        own = (window + 2) * (width**2 + width) + query_level + dummies
        return own + projection_count(spec) + position_count(self, spec)

    def build_shared(self, spec: AttentionSpec, name: str | None = None) -> nn.Module | None:
        """Build the one set of dummies, with ``share_dummies`` or ``dummies_as_tokens``."""
        if not self.one_set:
            return None
        return Dummies(self.slots - 1, spec.width, self.dummy_scale, name=name)

    def shared_parameter_count(self, spec: AttentionSpec) -> int:
        """``(m - 1) D`` for one set of dummies."""
        return (self.slots - 1) * spec.width if self.one_set else 0

    def front_tokens(self, context: AttentionContext) -> Float[Array, "1 P D"] | None:
        """The dummies with ``dummies_as_tokens``."""
        if not self.dummies_as_tokens or self.slots == 1:
            return None
        return self.shared_parameters(context, "dummies_as_tokens")[None]


class Dummies(nn.Module):
    """The learned items in front of a sequence: float32[m - 1, D]."""

    count: int
    width: int
    scale: float

    @nn.compact
    def __call__(self) -> Float[Array, "E D"]:
        """Return the vectors."""
        init = nn.initializers.normal(self.scale)
        return self.param("vectors", init, (self.count, self.width), jnp.float32)


class SlotMap(nn.Module):
    """The affine map W_j of one slot of the window: ``(kernel [D, D], bias [D])``."""

    spec: AttentionSpec

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "D D"], Float[Array, " D"]]:
        """Return the parameters."""
        width = self.spec.width
        kernel = self.param("kernel", self.spec.kernel_init, (width, width), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros_init(), (width,), jnp.float32)


class QueryWindow(nn.Module):
    """Query Window Matrix, the map of each slot: ``(kernels [m, D, D], biases [m, D])``; ``m (D^2 + D)`` parameters.

    `nn.vmap` over the m slots initialises each alone.
    """

    window: int
    spec: AttentionSpec

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "m D D"], Float[Array, "m D"]]:
        """Return the parameters."""
        maps = nn.vmap(
            SlotMap, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=self.window
        )
        kernels, biases = maps(self.spec, name="slots")()
        return kernels, biases


def apply_slot_maps(
    x: Float[Array, "*rows D"], maps: tuple[Float[Array, "m D D"], Float[Array, "m D"]], dtype: Any
) -> Float[Array, "*rows m D"]:
    """All m maps of `QueryWindow` of every vector: ``[..., D] -> [..., m, D]``.

    They lie side by side in one matrix product: a product for each slot makes the backward pass sum m gradients of x.
    """
    kernels, biases = maps
    window, width, _ = kernels.shape
    kernel = jnp.moveaxis(kernels, 0, 1).reshape(width, window * width)
    out = matmul(x, kernel, dtype).reshape(*x.shape[:-1], *biases.shape)
    return out + biases.reshape((1,) * (x.ndim - 1) + biases.shape)


def slide_window(
    items: Float[Array, "B L m D"], dummies: Float[Array, "E m D"], index: Int[Array, "B L"]
) -> Float[Array, "B L m D"]:
    """Place the window's vectors at each time.

    Slot j (from 0) of time t takes item ``t - (m - 1 - j)`` of the same sequence, or dummy ``t + j`` where the sequence
    has not begun by then.

    Args:
      items: [B, L, m, D], the vector of each item for each slot.
      dummies: [m - 1, m, D], the vector of each dummy for each slot.
      index: int32[B, L], t, counted from the sequence's start.

    Returns:
      [B, L, m, D].
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


def selected_windows(
    x: Float[Array, "B L D"], dummies: Float[Array, "E D"], index: Int[Array, "B S"], ends: Int[Array, "B S"]
) -> Float[Array, "B S m D"]:
    """The windows of some times alone, of vectors that no map has met: what `slide_window` places there.

    Args:
      x: [B, L, D], the items.
      dummies: [m - 1, D].
      index: int32[B, S], t of each window, counted from the sequence's start.
      ends: int32[B, S], column of its last item.

    Returns:
      [B, S, m, D].
    """
    window = dummies.shape[0] + 1
    slot = jnp.arange(window, dtype=jnp.int32)[None, None]
    columns = jnp.maximum(ends[..., None] - (window - 1 - slot), 0)
    items = take_positions(x, columns.reshape(len(x), -1)).reshape(*columns.shape, x.shape[-1])
    if window == 1:
        return items
    before = index[..., None] < window - 1 - slot
    return jnp.where(before[..., None], dummies[jnp.minimum(index[..., None] + slot, window - 2)], items)


def times(inputs: AttentionInputs) -> Int[Array, "B S"]:
    """int32[B, S], t of each query, counted from its sequence's start."""
    index = index_from_start(inputs.segments)
    positions = inputs.query_positions
    return index if positions is None else jnp.take_along_axis(index, positions, axis=1)


def answer_spread(answers: Float[Array, "B L m D"]) -> Float[Array, "B L"]:
    """Spread of the m answers, a measure of uncertainty in [0, 1]: float32[B, L] from [B, L, m, D].

    The root of ``mean_j |o_j - mean o|^2 / mean_j |o_j|^2``: 0 where all agree, 1 where they cancel out.
    """
    deviation = jnp.sum((answers - answers.mean(axis=2, keepdims=True)) ** 2, axis=(2, 3))
    total = jnp.sum(answers**2, axis=(2, 3))
    return jnp.sqrt(deviation / jnp.maximum(total, 1e-12))


class MultiItemQueryAttention(AttentionModule):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``, or [B, S, D] at ``query_positions`` int32[B, S].

    Parameters, with m items in the window: ``(m + 2) (D^2 + D)`` for queries, keys and values, ``3 D^2`` for the query
    level (none with "none"), ``(m - 1) D`` dummies (none if shared), ``D^2 + D`` with an output projection, and the
    position scheme's. Sows ``attention_weights`` [B, H, m, L, keys] (dummies first among the keys), ``query_weights``
    [B, L, m], ``answers`` [B, L, m, D], ``answer_spread`` [B, L] and ``dummy_share`` [B, L], the part of the window's
    slots that dummies fill.
    """

    config: MultiItemQueryAttentionConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: AttentionContext,
        train: bool = False,
        queries: Float[Array, "B L D"] | None = None,
        query_positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Attend; see `AttentionConfig.build` for the arguments."""
        config, dtype, width = self.config, self.spec.dtype, self.spec.width
        heads, window = config.heads, config.slots
        batch, length, _ = x.shape
        terms = self.position_terms(context)

        dummies = self._dummies(context)
        maps = QueryWindow(window, self.spec, name="query_window")()
        pair = Dense(2 * width, kernel_init=self._pair_init, dtype=dtype, name="keys_values")
        k, v = (split_heads(part, heads) for part in jnp.split(pair(x), 2, axis=-1))
        dummy_k, dummy_v = None, None
        if config.dummies_as_keys and window > 1:
            dummy_k, dummy_v = (split_heads(part, heads) for part in jnp.split(pair(dummies), 2, axis=-1))
        new = new_positions(context.cache, batch)
        ends = query_positions if new is None else new
        n_queries = window * (length if ends is None else ends.shape[1])
        n_keys = length + (0 if dummy_k is None else window - 1)
        keep, probability = self.keep_mask((batch, heads, n_queries, n_keys), train)
        level_maps = self._query_level_maps() if config.query_level != "none" else None
        answer = self._answers_by_vmap if config.mapping == "vmap" else self._answers_fused

        def core(inputs: AttentionInputs, count: int) -> tuple[Array, dict[str, Array]]:
            source, k, v = inputs.arrays
            keys = Keys(k, v, dummy_k, dummy_v)
            heads_of_answers, weights = answer(source, dummies, maps, keys, inputs, terms, probability, count)
            answers = merge_heads(heads_of_answers)
            out, alpha = query_level_attention(answers, level_maps, config.query_level, dtype)
            early = jnp.maximum(window - 1 - times(inputs), 0)
            return out, {
                "attention_weights": weights,
                "query_weights": alpha,
                "answers": answers,
                "answer_spread": answer_spread(answers),
                "dummy_share": early.astype(jnp.float32) / window,
            }

        sources = x if queries is None else queries
        stored = remember(self, context.cache, sources=sources, keys=terms.rotate(k, new), values=v)
        source, k, v = map(whole, stored)
        inputs = AttentionInputs.of((source, k, v), context, keep, ends)
        attended = self.over_rows(core, inputs, heads * n_queries * n_keys)
        return OutputProjection(self.spec, name="output")(attended)

    def _dummies(self, context: AttentionContext) -> Array:
        """The dummies [m - 1, D] of this layer."""
        config, width = self.config, self.spec.width
        if config.dummies_as_tokens and config.slots > 1:
            if context.tokens is None:
                raise ConfigError(
                    f"{option_name(SECTION, 'dummies_as_tokens')} is on, but the encoder passes no tokens in "
                    f"AttentionContext.tokens; turn it off, or choose the encoder 'transformer'"
                )
            return context.tokens[0]
        if config.one_set:
            return config.shared_parameters(context, "share_dummies")
        return Dummies(config.slots - 1, width, config.dummy_scale, name="dummies")()

    def _answers_by_vmap(
        self,
        source: Array,
        dummies: Array,
        maps: tuple[Array, Array],
        keys: Keys,
        inputs: AttentionInputs,
        terms: PositionTerms,
        probability: float,
        count: int,
    ) -> tuple[Array, Array]:
        """Map `query_position_attention` over the query positions: [B, L, m, H, d] and [B, H, m, L, keys]."""
        del count  # Each query position is one attention over the whole row.
        window = self.config.slots
        if inputs.query_positions is None:
            extended = jnp.repeat(source[:, :, None], window, axis=2)
            items = slide_window(extended, jnp.repeat(dummies[:, None], window, axis=1), times(inputs))
        else:
            items = selected_windows(source, dummies, times(inputs), inputs.query_positions)
        rotate = partial(terms.rotate, query_positions=inputs.query_positions, segments=inputs.segments)
        bias, mask = terms.bias(inputs), inputs.allowed()
        keep = inputs.keep
        if keep is not None:
            keep = keep.reshape(*keep.shape[:2], -1, window, keep.shape[-1])

        def answer(x: Array, kernel: Array, shift: Array, keep: Array | None) -> tuple[Array, Array]:
            dropout = partial(drop_weights, keep=keep, probability=probability)
            return query_position_attention(
                x, kernel, shift, keys, bias, mask, dropout, rotate, self.spec.dtype
            )

        slots = (2, 0, 0, None if keep is None else 3)
        return jax.vmap(answer, in_axes=slots, out_axes=2)(items, *maps, keep)

    def _answers_fused(
        self,
        source: Array,
        dummies: Array,
        maps: tuple[Array, Array],
        keys: Keys,
        inputs: AttentionInputs,
        terms: PositionTerms,
        probability: float,
        count: int,
    ) -> tuple[Array, Array]:
        """The answers of `_answers_by_vmap` from one attention with m adjacent queries at each time.

        The maps are applied to the items before these are placed into windows, and times and slots are one axis, so
        that each product is one matrix product per row and head.
        """
        window, heads, dtype = self.config.slots, self.config.heads, self.spec.dtype
        if inputs.query_positions is None:
            placed = slide_window(
                apply_slot_maps(source, maps, dtype), apply_slot_maps(dummies, maps, dtype), times(inputs)
            )
        else:
            items = selected_windows(source, dummies, times(inputs), inputs.query_positions)
            placed = einsum("bsjd,jde->bsje", items, maps[0], dtype) + maps[1][None, None]
        q = split_heads(placed, heads)
        batch, length = q.shape[:2]
        flat = (batch, length * window, heads, q.shape[-1])
        rotate = partial(terms.rotate, query_positions=inputs.query_positions, segments=inputs.segments)
        bias, mask = terms.bias(inputs), inputs.allowed()
        if isinstance(bias, Array):
            bias = jnp.repeat(bias, window, axis=2)
        k, v, bias, mask = keys.with_dummies(q.reshape(flat), bias, jnp.repeat(mask, window, axis=2), dtype)
        answers, weights = attend_in_stretches(
            partial(softmax_attention, dtype=dtype),
            jax.vmap(rotate, 2, 2)(q).reshape(flat),
            k,
            v,
            bias,
            mask,
            keep=inputs.keep,
            probability=probability,
            count=count,
            queries_per_position=window,
        )
        weights = weights.reshape(batch, heads, -1, window, weights.shape[-1])
        return answers.reshape(batch, length, window, heads, -1), jnp.moveaxis(weights, 3, 2)

    def _pair_init(self, key: Array, size: tuple[int, int], dtype: np.dtype) -> Array:
        """Maps of keys and values side by side, each initialised for its own fan-out."""
        half = (size[0], size[1] // 2)
        return jnp.concatenate([self.spec.kernel_init(k, half, dtype) for k in jax.random.split(key)], axis=1)

    def _query_level_maps(self) -> tuple[Array, Array]:
        """``W'_K W'_Q^T / sqrt(D)`` and ``W'_V``: the maps of keys and queries only ever meet as a product."""
        width = self.spec.width
        w_k, w_q, w_v = (
            self.param(f"query_level_{name}_kernel", self.spec.kernel_init, (width, width), jnp.float32)
            for name in ("keys", "queries", "values")
        )
        return einsum("ac,bc->ab", w_k, w_q, jnp.float32) * width**-0.5, w_v
