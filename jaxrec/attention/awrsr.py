"""Attention weight refinement for sequential recommendation, AWRSR ("Pay Attention to Attention for
Sequential Recommendation", RecSys 2024, arXiv 2410.21048), on dot-product attention.

The paper's principle is public, its equations are not: learnable matrices map the attention weights into a
new space, and correlations between weight vectors there give higher-order weights. Everything below that line
is this project's reading, and results have to say which was used:

- what the weights A are: probabilities by default, for stability. Texts on the paper call the scores before
  the softmax "attention weights", which is ``source="raw"`` (what the mask forbids set to zero first);
- the maps: positions x positions, one set for all heads and one a layer, started at the identity; ``rank`` for
  low-rank ones;
- the order mask, softmax, maps, correlation, mask, softmax, dropout, values, and the correlation's scale, the
  root of the mapped profiles' size;
- "simple" and "value-weighted" by analogy with queries, keys and values; ``value_map=False`` leaves the third
  map out;
- "additive": the correlation is added to the scores (default), mixed with the first weights by a gate, or is
  Bahdanau's additive score: three readings of one word, "additive", "additive-gated", "additive-bahdanau".

The paper's fourth mechanism, "stochastic", needs Gaussian attention: `jaxrec.attention.wasserstein`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape
from jaxrec.attention.functional import drop_weights, masked_softmax, merge_heads, stretches
from jaxrec.attention.module import (
    Mechanism,
    OutputProjection,
    Projections,
    Rows,
    position_count,
    projection_count,
)
from jaxrec.errors import ConfigError
from jaxrec.nn.precision import contract

Variant = Literal["simple", "value-weighted", "additive", "additive-gated", "additive-bahdanau"]


Source = Literal["prob", "raw"]


#: Initial weight of the new weights in "additive-gated".
GATE = 0.1


@dataclasses.dataclass(frozen=True)
class ReweighingConfig(AttentionConfig):
    """Base of the mechanisms that reweigh attention weights.

    Notation: S the scores, A [B, H, L, L] the weights, whose row i is interaction i's *profile* over earlier
    positions, ``msoftmax`` the softmax over what the mask allows, n the maximum length, and learned maps
    ``W_q, W_k, W_v`` over positions in the sequence, the same for all heads; ``R_ij = (A W_q)_i . (A W_k)_j /
    sqrt(size)``.

    Attributes:
      variant: the new weights A'. "simple": msoftmax(R). "value-weighted": msoftmax(msoftmax(R) A W_v).
        "additive": msoftmax(S + R). "additive-gated": (1 - g) msoftmax(S) + g msoftmax(R) with a learned
        scalar g. "additive-bahdanau": msoftmax(R) with R_ij = v . tanh((A W_q)_i + (A W_k)_j).
      source: A is "prob" = msoftmax(S), or "raw" = S with what the mask forbids set to 0 (nearer to what the
        paper is said to call weights, but without a scale).
      rank: r, inner size of low-rank maps; 0 = full n x n maps.
      value_map: learn W_v; without it "value-weighted" is msoftmax(R) A, two hops along the old weights.
    """

    variant: Variant = "simple"
    source: Source = "prob"
    rank: int = 0
    value_map: bool = True

    #: Whether this host may leave the weights as they are, or treat profiles as Gaussians.
    host_variants: ClassVar[tuple[str, ...]] = get_args(Variant)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, value, known in (
            ("variant", self.variant, self.host_variants),
            ("source", self.source, get_args(Source)),
        ):
            if value not in known:
                raise ConfigError(f"attention.{field} must be one of {', '.join(known)}; got {value!r}")
        if self.rank < 0:
            raise ConfigError(f"attention.rank must be 0 (full maps) or a size, got {self.rank}")

    def check(self, shape: AttentionShape) -> None:
        super().check(shape)
        if self.rank > shape.max_length:
            raise ConfigError(
                f"attention.rank must be at most the maximum length: got rank {self.rank} for histories of "
                f"at most {shape.max_length}; use a lower rank, or 0 for full maps"
            )

    def map_names(self) -> tuple[str, ...]:
        """Names of the maps [n, size] that the variant learns."""
        if self.variant == "value-weighted" and self.value_map:
            return ("query", "key", "value", "value_out") if self.rank else ("query", "key", "value")
        return ("query", "key")

    def reweighing_count(self, shape: AttentionShape) -> int:
        """Parameters of the maps, the gate and the Bahdanau vector."""
        size = self.rank or shape.max_length
        extra = {"additive-gated": 1, "additive-bahdanau": size}.get(self.variant, 0)
        return len(self.map_names()) * shape.max_length * size + extra


class ProfileMaps(nn.Module):
    """Parameters of `reweigh`: ``{name: float32[n, size]}``, and "gate" or "vector" where the variant has
    one.

    Full maps start at the identity plus normal noise of 0.02. Low-rank maps start at one random projection
    (plus noise), which keeps the inner products of profiles on average.
    """

    config: Any
    max_length: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        config, n = self.config, self.max_length
        size = config.rank or n
        names = config.map_names()

        def init(key: Array, extent: tuple[int, ...], dtype: Any) -> Array:
            base_key, noise_key = jax.random.split(key)
            base = (
                jax.random.normal(base_key, (n, size), dtype) * size**-0.5
                if config.rank
                else jnp.eye(n, dtype=dtype)
            )
            return base[None] + 0.02 * jax.random.normal(noise_key, extent, dtype)

        stacked = self.param("maps", init, (len(names), n, size), jnp.float32)
        out = dict(zip(names, stacked, strict=True))
        if config.variant == "additive-gated":
            start = jnp.log(GATE / (1.0 - GATE))
            out["gate"] = self.param("gate", nn.initializers.constant(start), (), jnp.float32)
        if config.variant == "additive-bahdanau":
            out["vector"] = self.param("vector", nn.initializers.normal(size**-0.5), (size,), jnp.float32)
        return out


def mapped(profiles: Array, kernel: Array, positions: Array, dtype: Any) -> Array:
    """Profiles [B, H, L, L] through a map [n, size] whose rows are positions in the sequence: [B, H, L,
    size].

    ``positions`` int32[B, L] say which row belongs to a column, so a sequence is mapped the same wherever it
    lies.
    """
    return contract("bhij,bjr->bhir", profiles, kernel[positions], dtype)


class Mapped(NamedTuple):
    """What later times need of earlier ones, in order of time (third axis).

    Attributes:
      keys: mapped profiles [B, H, times, size].
      values: rows that "value-weighted" sums [B, H, times, L], or None for the other variants.
    """

    keys: Array
    values: Array | None


def reweigh(
    config: ReweighingConfig,
    maps: Mapping[str, Array],
    scores: Array,
    allowed: Array,
    positions: Array,
    dtype: Any,
    earlier: Mapped | None = None,
) -> tuple[Array, Mapped]:
    """New weights A' from scores S, both [B, H, times, keys]; see `ReweighingConfig`.

    Causal by construction: profiles are zero at what the mask forbids before they are mapped (raw scores
    would carry the future into the maps), and whatever a map spreads over positions is masked again.

    Args:
      config: which variant.
      maps: from `ProfileMaps`.
      scores: of one stretch of times against the keys up to its end (all times and keys, if in one stretch).
      allowed: the mask, of the same shape (1 for heads).
      positions: int32[B, L].
      dtype: of the operands of products.
      earlier: what the stretches before this one returned.

    Returns:
      The new weights, and what the next stretch needs.
    """
    stop = scores.shape[-1]
    places = positions[:, :stop]
    old = masked_softmax(scores, allowed)
    profiles = old if config.source == "prob" else jnp.where(allowed, scores, 0.0)
    query = mapped(profiles, maps["query"], places, dtype)
    own = Mapped(
        mapped(profiles, maps["key"], places, dtype), _values(config, maps, profiles, positions, dtype)
    )
    known = (
        own if earlier is None else jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), earlier, own)
    )
    if config.variant == "additive-bahdanau":
        return masked_softmax(_bahdanau(query, known.keys, maps["vector"]), allowed), known
    correlation = contract("bhir,bhjr->bhij", query * query.shape[-1] ** -0.5, known.keys, dtype)
    if config.variant == "additive":
        return masked_softmax(scores + correlation, allowed), known
    new = masked_softmax(correlation, allowed)
    if config.variant == "additive-gated":
        gate = jax.nn.sigmoid(maps["gate"])
        return (1.0 - gate) * old + gate * new, known
    if known.values is None:
        return new, known
    hops = contract("bhik,bhkj->bhij", new, known.values[..., :stop], dtype)
    # Two hops along probabilities are probabilities, and causal; anything else has to become so.
    already = config.source == "prob" and not config.value_map
    return (hops if already else masked_softmax(hops, allowed)), known


def _values(
    config: ReweighingConfig, maps: Mapping[str, Array], profiles: Array, positions: Array, dtype: Any
) -> Array | None:
    """Profiles as "value-weighted" sums them [B, H, times, L]: mapped by W_v, or as they are."""
    if config.variant != "value-weighted":
        return None
    stop, length = profiles.shape[-1], positions.shape[1]
    if not config.value_map:
        return jnp.pad(profiles, ((0, 0), (0, 0), (0, 0), (0, length - stop)))
    if config.rank:
        inner = mapped(profiles, maps["value"], positions[:, :stop], dtype)
        return contract("bhjr,bkr->bhjk", inner, maps["value_out"][positions], dtype)
    pairs = maps["value"][positions[:, :stop, None], positions[:, None, :]]
    return contract("bhij,bjk->bhik", profiles, pairs, dtype)


def _bahdanau(query: Array, key: Array, vector: Array) -> Array:
    """``sum_c vector_c tanh(query_ic + key_jc)``, one c at a time: the tanh of all c would be L times
    larger.
    """

    def add(total: Array, column: tuple[Array, Array, Array]) -> tuple[Array, None]:
        query_c, key_c, vector_c = column
        return total + vector_c * jnp.tanh(query_c[..., :, None] + key_c[..., None, :]), None

    columns = (jnp.moveaxis(query, -1, 0), jnp.moveaxis(key, -1, 0), vector)
    start = jnp.zeros((*query.shape[:-1], key.shape[-2]), jnp.float32)
    total, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, columns)
    return total


@dataclasses.dataclass(frozen=True)
class RefinedAttentionConfig(ReweighingConfig):
    """AWRSR on dot-product attention: attention to attention weights."""

    paper: ClassVar[str] = (
        "Pay Attention to Attention for Sequential Recommendation, RecSys 2024 (arXiv 2410.21048)"
    )

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        return RefinedAttention(self, shape, name=name)

    def parameter_count(self, shape: AttentionShape) -> int:
        own = 3 * (shape.width**2 + shape.width) + self.reweighing_count(shape)
        return own + projection_count(shape) + position_count(self, shape)


class RefinedAttention(Mechanism):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

    Parameters: ``3 (D^2 + D)``, ``D^2 + D`` with an output projection, the position scheme's, and with n the
    maximum length and r the rank or n: ``2 n r`` for the maps; "value-weighted" with a value map ``3 n^2``,
      or ``4 n r`` if
    low-rank; one more for "additive-gated", r more for "additive-bahdanau".
    Sows ``attention_weights`` (A', those used) and ``first_weights`` (softmax of the scores), float32[B, H,
    L, L].
    """

    config: RefinedAttentionConfig

    @nn.compact
    def __call__(
        self, x: Array, context: AttentionContext, train: bool = False, queries: Array | None = None
    ) -> Array:
        config, dtype = self.config, self.shape.dtype
        batch, length, _ = x.shape
        turn, bias_of = self.position_terms(context)
        q, k, v = Projections(config.heads, self.shape, name="projections")(x, queries)
        maps = ProfileMaps(config, self.shape.max_length, name="profiles")()
        keep, probability = self.keep_mask((batch, config.heads, length, length), train)

        def core(rows: Rows, chunks: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = rows.inputs
            bias, allowed = bias_of(rows), rows.allowed()
            outs, earlier = [], None
            for start, stop in stretches(length, chunks):
                scores = contract("bihd,bjhd->bhij", q[:, start:stop], k[:, :stop], dtype)
                scores = scores if bias is None else scores + bias[:, :, start:stop, :stop]
                seen = allowed[:, :, start:stop, :stop]
                weights, earlier = reweigh(config, maps, scores, seen, rows.positions, dtype, earlier)
                keep = None if rows.keep is None else rows.keep[:, :, start:stop, :stop]
                dropped = drop_weights(weights, keep, probability)
                outs.append(contract("bhij,bjhd->bihd", dropped, v[:, :stop], dtype))
            # Weights are asked for in one stretch only (`Mechanism.over_rows`).
            shown = {"attention_weights": weights, "first_weights": masked_softmax(scores, seen)}
            return jnp.concatenate(outs, axis=1), shown

        inputs = (turn(q) * q.shape[-1] ** -0.5, turn(k), v)
        rows = Rows(inputs, context.segments, context.positions, context.timestamps, keep)
        attended = merge_heads(self.over_rows(core, rows, config.heads * length * length))
        return OutputProjection(self.shape, name="output")(attended)
