"""Attention weight refinement for sequential recommendation (AWRSR, RecSys 2024, arXiv 2410.21048).

Source: "Pay Attention to Attention for Sequential Recommendation".

The paper's principle is public, its equations are not: learned matrices map attention weights into a new space, and
correlations between weight vectors there give weights of higher order, in place of the first ones or beside them. With
the scores S, the first weights ``A = msoftmax(S)`` (softmax over what the mask allows), and row i of A as the *profile*
of interaction i over the other positions (`refine` below, in this order):

    P   = profiles of A                                        ``source``: which function of A
    R   = tau * cos((P W_q)_i, (P W_k)_j)                      ``scale``: how a product becomes a correlation
    N   = msoftmax(R)                                          ``variant``: "simple"; the others below
    A'  = (1 - g) A + g N                                      ``residual``, repeated ``depth`` times

Everything but the principle is this project's reading, and results have to say which was used. Why these defaults:

- An inner product of two probability vectors lies in [0, 1], so its softmax is nearly uniform whatever A is, and that of
  raw scores grows with their square, so its softmax soon is one-hot (`experiments/awrsr/initial_weights.py` measures
  both). Centred logarithms of the weights, scaled to unit length, have correlations whose spread depends on neither the
  scores' scale nor the length; ``tau`` is learned.
- R compares row i with row j, not query i with key j: no scale makes msoftmax(R) the first weights. The gate g does. It
  starts at 0.1, so A' starts within 0.1 of A in total variation (at each refinement, with more than one), and g may grow
  to replace A.
- Maps are positions x positions, one set for all heads and one per layer, started at the identity; ``rank`` for low-rank
  ones. They are indexed by positions as the batch counts them.

The paper's fourth mechanism, "stochastic", needs Gaussian attention: `jaxrec.attention.wasserstein`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import SECTION, AttentionConfig, AttentionContext, AttentionSpec
from jaxrec.attention.functional import (
    drop_weights,
    elu_plus_one,
    masked_softmax,
    merge_heads,
    negative_squared_distances,
    standard_deviation,
    stretches,
)
from jaxrec.attention.module import (
    AttentionInputs,
    AttentionModule,
    OutputProjection,
    Projections,
    position_count,
    projection_count,
)
from jaxrec.errors import ConfigError
from jaxrec.nn.precision import einsum
from jaxrec.options import Idle, Range, option_name

#: Initial weight of the new weights beside the first ones.
GATE = 0.1
#: Initial factor of correlations in [-1, 1].
TEMPERATURE = 4.0
#: Least mean square of a profile that is scaled to unit length, as a layer norm's epsilon.
EPSILON = 1e-6
#: Least weight of which a logarithm is taken.
TINY = 1e-9

#: Variants without a map of values.
MIXES_NO_ROWS = ("stochastic", "simple", "additive", "additive-gated", "additive-bahdanau")
AWRSRVariant = Literal["simple", "value-weighted", "additive", "additive-gated", "additive-bahdanau"]


@dataclasses.dataclass(frozen=True)
class RefinementConfig(AttentionConfig):
    """Base of the mechanisms that refine attention weights; notation as in the module's docstring.

    Attributes:
      variant: the new weights N. "simple": msoftmax(R). "value-weighted": msoftmax(msoftmax(R) P W_v), a mixture of
        other rows. "additive": msoftmax(S + R). "additive-gated": "simple", always with the gate. "additive-bahdanau":
        msoftmax(R) with Bahdanau's additive score R_ij = v . tanh((P W_q)_i + (P W_k)_j) (arXiv 1409.0473).
      source: the profiles P. "centred": log A less its mean over the row. "prob": A. "raw": S (at further depths the
        logarithm of the weights); all with 0 at what the mask forbids.
      scale: of R. "unit": mapped profiles have unit length, times the learned tau. "root": inner products over
        sqrt(size of a mapped profile), without tau.
      threshold: least cosine of two mapped profiles that counts, with ``scale`` "unit": N has no weight on interactions
        below it ("additive": their scores stay as they are). An interaction counts to itself, and a profile of zeros,
        that of the first one, has the cosine 0. -1 = all count.
      residual: "gate": A' = (1 - g) A + g N with a learned scalar g. "none": A' = N.
      depth: how often the refinement is applied to its own output, with the same parameters.
      rank: r, inner size of low-rank maps; 0 = full n x n maps.
      value_map: learn W_v; without it "value-weighted" mixes the rows of P as they are.
    """

    variant: str = "simple"
    source: Annotated[Literal["centred", "prob", "raw"], Idle("variant", ("none",))] = "centred"
    scale: Annotated[Literal["unit", "root"], Idle("variant", ("none",))] = "unit"
    threshold: Annotated[
        float, Range("[-1, 1]"), Idle("scale", ("root",)), Idle("variant", ("none", "additive-bahdanau"))
    ] = -1.0
    residual: Annotated[Literal["gate", "none"], Idle("variant", ("none", "additive-gated"))] = "gate"
    depth: Annotated[int, Range("[1, inf)"), Idle("variant", ("none",))] = 1
    rank: Annotated[int, Range("[0, inf)"), Idle("variant", ("none",))] = 0
    value_map: Annotated[bool, Idle("variant", ("none", *MIXES_NO_ROWS))] = True

    def check(self, spec: AttentionSpec) -> None:
        """Reject a rank above the maximum length."""
        super().check(spec)
        if self.rank > spec.max_length:
            raise ConfigError(
                f"{option_name(SECTION, 'rank')} must be at most the maximum length: got rank {self.rank} for "
                f"histories of at most {spec.max_length}; use a lower rank, or 0 for full maps"
            )

    def map_names(self) -> tuple[str, ...]:
        """Names of the maps [n, size] that the variant learns."""
        if self.variant == "value-weighted" and self.value_map:
            return ("query", "key", "value", "value_out") if self.rank else ("query", "key", "value")
        return ("query", "key")

    @property
    def has_gate(self) -> bool:
        """Whether the first weights stay in the mixture."""
        return self.residual == "gate" or self.variant == "additive-gated"

    @property
    def has_temperature(self) -> bool:
        """Whether correlations have a learned factor."""
        return self.scale == "unit" and self.variant != "additive-bahdanau"

    def refinement_count(self, spec: AttentionSpec) -> int:
        """Parameters of `RefinementMaps`."""
        size = self.rank or spec.max_length
        vector = size if self.variant == "additive-bahdanau" else 0
        return len(self.map_names()) * spec.max_length * size + vector + self.has_gate + self.has_temperature

    def parameter_figures(
        self, spec: AttentionSpec, layers: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]
    ) -> dict[str, list[tuple[str, np.ndarray]]]:
        """Full maps of each layer; low-rank ones as the product that a correlation reads."""
        panels = []
        for number, layer in enumerate(layers, start=1):
            stacked = np.asarray(layer["refinement"]["maps"])
            if self.rank:
                panels.append((f"W_q W_k^T, layer {number}", stacked[0] @ stacked[1].T))
            else:
                names = zip(self.map_names(), stacked, strict=True)
                panels += [(f"W_{name[0]}, layer {number}", matrix) for name, matrix in names]
        return {"refinement_maps": panels}


class Profiles(NamedTuple):
    """Rows of earlier times that the correlation of later ones needs, in order of time (third axis).

    Attributes:
      keys: mapped profiles [B, H, times, size].
      values: rows that "value-weighted" sums [B, H, times, L], or None for the other variants.
    """

    keys: Array
    values: Array | None


def refine(
    config: RefinementConfig,
    maps: Mapping[str, Array],
    scores: Float[Array, "B H times keys"],
    mask: Bool[Array, "#B #H times keys"],
    positions: Int[Array, "B L"],
    dtype: Any = jnp.float32,
    earlier: Sequence[Profiles] = (),
) -> tuple[Float[Array, "B H times keys"], list[Profiles]]:
    """The weights A' from scores S, both [B, H, times, keys]; see the module's docstring.

    Causal under a causal mask: profiles are zero at what the mask forbids before they are mapped (scores would carry the
    future into the maps), and what a map spreads over positions is masked again.

    Args:
      config: the readings.
      maps: from `RefinementMaps`.
      scores: of one stretch of times against the keys up to its end (all times and keys, if in one stretch).
      mask: bool, of the same shape (1 for heads).
      positions: int32[B, L].
      dtype: precision of the operands of products.
      earlier: the second output for the stretches before this one, empty for the first.

    Returns:
      The new weights, and the profiles at each depth that the next stretch needs.
    """
    first = masked_softmax(scores, mask)
    levels = []
    for level in range(config.depth):
        before = earlier[level] if earlier else None
        new, current = new_weights(config, maps, scores, first, mask, positions, dtype, before)
        levels.append(current)
        if "gate" in maps:
            gate = jax.nn.sigmoid(maps["gate"])
            new = (1.0 - gate) * first + gate * new
        first, scores = new, jnp.log(jnp.maximum(new, TINY))
    return first, levels


def new_weights(
    config: RefinementConfig,
    maps: Mapping[str, Array],
    scores: Float[Array, "B H times keys"],
    weights: Float[Array, "B H times keys"],
    mask: Bool[Array, "#B #H times keys"],
    positions: Int[Array, "B L"],
    dtype: Any,
    earlier: Profiles | None,
) -> tuple[Float[Array, "B H times keys"], Profiles]:
    """The weights N of one refinement, before the residual; arguments as of `refine`, and A as ``weights``."""
    stop = scores.shape[-1]
    profiles = profiles_of(config, scores, weights, mask)
    query, key = (map_profiles(profiles, maps[name], positions[:, :stop], dtype) for name in ("query", "key"))
    if config.variant == "stochastic":
        query = key = gaussian_profiles(query, key)
    if config.scale == "unit":
        query, key = unit(query), unit(key)
    current = Profiles(key, value_rows(config, maps, profiles, positions, dtype))
    if earlier is not None:
        current = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), earlier, current)

    correlation = correlate(config, maps, query, current.keys, dtype)
    counted = None
    if config.threshold > -1.0 and "temperature" in maps:
        counted = counted_pairs(config.threshold, query, current.keys, dtype)
    if config.variant == "additive":
        change = correlation if counted is None else jnp.where(counted, correlation, 0.0)
        return masked_softmax(scores + change, mask), current
    new = masked_softmax(correlation, mask if counted is None else mask & counted)
    if current.values is None:
        return new, current
    hops = einsum("bhik,bhkj->bhij", new, current.values[..., :stop], dtype)
    # Two hops along probabilities are probabilities, and masked; anything else has to become so.
    already = config.source == "prob" and not config.value_map
    return (hops if already else masked_softmax(hops, mask)), current


def correlate(
    config: RefinementConfig,
    maps: Mapping[str, Array],
    query: Float[Array, "B H times size"],
    key: Float[Array, "B H keys size"],
    dtype: Any,
) -> Float[Array, "B H times keys"]:
    """R [B, H, times, keys] from mapped profiles [B, H, times, size] and [B, H, keys, size]."""
    if config.variant == "additive-bahdanau":
        return bahdanau(query, key, maps["vector"])
    size, unit_length = query.shape[-1], config.scale == "unit"
    if config.variant == "stochastic":
        # Unit vectors: -|a - b|^2 / 2 is their cosine less 1. Otherwise the size is that of the mean, half of it.
        factor = maps["temperature"] / (2 * size) if unit_length else (size / 2) ** -0.5
        return factor * negative_squared_distances(query, key, dtype)
    factor = maps["temperature"] / size if unit_length else size**-0.5
    return factor * einsum("bhir,bhjr->bhij", query, key, dtype)


def counted_pairs(
    threshold: float, query: Float[Array, "B H times size"], key: Float[Array, "B H keys size"], dtype: Any
) -> Bool[Array, "B H times keys"]:
    """Pairs of mapped profiles at unit length whose cosine reaches ``threshold``, and every interaction with itself.

    Args:
      threshold: least cosine.
      query: profiles of one stretch of times.
      key: those of all interactions up to its end.
      dtype: precision of the operands of products.
    """
    times, keys = query.shape[2], key.shape[2]
    cosine = einsum("bhir,bhjr->bhij", query, key, dtype) / query.shape[-1]
    own = jnp.arange(keys - times, keys)[:, None] == jnp.arange(keys)[None, :]
    return (cosine >= threshold) | own[None, None]


def gaussian_profiles(
    mean: Float[Array, "B H times size"], covariance: Float[Array, "B H times size"]
) -> Float[Array, "B H times _"]:
    """Profiles as Gaussians, "stochastic": the mean beside the deviation of ELU + 1 less that of no profile, 1."""
    return jnp.concatenate([mean, standard_deviation(elu_plus_one(covariance)) - 1.0], axis=-1)


def profiles_of(
    config: RefinementConfig,
    scores: Float[Array, "B H times keys"],
    weights: Float[Array, "B H times keys"],
    mask: Bool[Array, "#B #H times keys"],
) -> Float[Array, "B H times keys"]:
    """P, zero where the mask forbids: A ("prob"), S ("raw"), or log A less its mean over the row ("centred")."""
    if config.source == "prob":
        return weights
    allowed = jnp.where(mask, scores, 0.0)
    if config.source == "raw":
        return allowed
    count = mask.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    # The logarithm of a softmax differs from the scores by a constant of the row, which centring removes.
    return jnp.where(mask, scores - allowed.sum(axis=-1, keepdims=True) / count, 0.0)


def unit(x: Float[Array, "*size"]) -> Float[Array, "*size"]:
    """Vectors scaled to a mean square of 1; a zero vector stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPSILON)


def map_profiles(
    profiles: Float[Array, "B H times L"],
    kernel: Float[Array, "n size"],
    positions: Int[Array, "B L"],
    dtype: Any,
) -> Float[Array, "B H times size"]:
    """Profiles [B, H, times, L] through a map [n, size] whose rows are positions: [B, H, times, size].

    ``positions`` int32[B, L] give the row of each column, so a sequence is mapped the same in any place of a row.
    """
    return einsum("bhij,bjr->bhir", profiles, kernel[positions], dtype)


def value_rows(
    config: RefinementConfig,
    maps: Mapping[str, Array],
    profiles: Float[Array, "B H times keys"],
    positions: Int[Array, "B L"],
    dtype: Any,
) -> Float[Array, "B H times L"] | None:
    """Profiles as "value-weighted" sums them [B, H, times, L]: mapped by W_v, or as they are."""
    if config.variant != "value-weighted":
        return None
    stop, length = profiles.shape[-1], positions.shape[1]
    if not config.value_map:
        return jnp.pad(profiles, ((0, 0), (0, 0), (0, 0), (0, length - stop)))
    if config.rank:
        inner = map_profiles(profiles, maps["value"], positions[:, :stop], dtype)
        return einsum("bhjr,bkr->bhjk", inner, maps["value_out"][positions], dtype)
    pairs = maps["value"][positions[:, :stop, None], positions[:, None, :]]
    return einsum("bhij,bjk->bhik", profiles, pairs, dtype)


def bahdanau(
    query: Float[Array, "B H times size"], key: Float[Array, "B H keys size"], vector: Float[Array, " size"]
) -> Float[Array, "B H times keys"]:
    """``sum_c vector_c tanh(query_ic + key_jc)``, one c at a time: the tanh of all c is L times larger."""

    def add(total: Array, column: tuple[Array, Array, Array]) -> tuple[Array, None]:
        query_c, key_c, vector_c = column
        return total + vector_c * jnp.tanh(query_c[..., :, None] + key_c[..., None, :]), None

    columns = (jnp.moveaxis(query, -1, 0), jnp.moveaxis(key, -1, 0), vector)
    start = jnp.zeros((*query.shape[:-1], key.shape[-2]), jnp.float32)
    total, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), start, columns)
    return total


class RefinementMaps(nn.Module):
    """Parameters of `refine`: ``{name: float32[n, size]}``, and scalars "gate", "temperature", or a "vector".

    Full maps start at the identity plus normal noise of 0.02. Low-rank maps start at one random projection
    (plus noise), which keeps the inner products of profiles on average.
    """

    config: RefinementConfig
    max_length: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Return the parameters."""
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
        constant = nn.initializers.constant
        if config.has_gate:
            out["gate"] = self.param("gate", constant(float(np.log(GATE / (1.0 - GATE)))), (), jnp.float32)
        if config.has_temperature:
            out["temperature"] = self.param("temperature", constant(TEMPERATURE), (), jnp.float32)
        if config.variant == "additive-bahdanau":
            out["vector"] = self.param("vector", nn.initializers.normal(size**-0.5), (size,), jnp.float32)
        return out


@dataclasses.dataclass(frozen=True)
class RefinedAttentionConfig(RefinementConfig):
    """AWRSR on dot-product attention: attention to attention weights."""

    variant: AWRSRVariant = "simple"

    paper: ClassVar[str] = (
        "Pay Attention to Attention for Sequential Recommendation, RecSys 2024 (arXiv 2410.21048)"
    )

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `RefinedAttention`."""
        return RefinedAttention(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """The formula of `RefinedAttention`."""
        own = 3 * (spec.width**2 + spec.width) + self.refinement_count(spec)
        return own + projection_count(spec) + position_count(self, spec)


class RefinedAttention(AttentionModule):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

    Parameters: ``3 (D^2 + D)``, ``D^2 + D`` with an output projection, the position scheme's, and with n the maximum
    length and r the rank or n: ``2 n r`` for the maps; "value-weighted" with a value map ``3 n^2``, or ``4 n r`` if
    low-rank; 1 for the gate, 1 for tau, and r for "additive-bahdanau", which has no tau. Sows ``attention_weights`` (A',
    those used) and ``first_weights`` (softmax of the scores), float32[B, H, L, L].
    """

    config: RefinedAttentionConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: AttentionContext,
        train: bool = False,
        queries: Float[Array, "B L D"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Attend; see `AttentionConfig.build` for the arguments."""
        config, dtype = self.config, self.spec.dtype
        batch, length, _ = x.shape
        terms = self.position_terms(context)
        q, k, v = Projections(config.heads, self.spec, name="projections")(x, queries)
        maps = RefinementMaps(config, self.spec.max_length, name="refinement")()
        keep, probability = self.keep_mask((batch, config.heads, length, length), train)

        def core(inputs: AttentionInputs, count: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = inputs.arrays
            bias, allowed = terms.bias(inputs), inputs.allowed()
            outs: list[Array] = []
            earlier: list[Profiles] = []
            for start, stop in stretches(length, count):
                part = (slice(None), slice(None), slice(start, stop), slice(stop))
                scores = einsum("bihd,bjhd->bhij", q[:, start:stop], k[:, :stop], dtype)
                scores = scores + (bias[part] if isinstance(bias, Array) else bias)
                mask = allowed[part]
                weights, earlier = refine(config, maps, scores, mask, inputs.positions, dtype, earlier)
                keep = None if inputs.keep is None else inputs.keep[part]
                dropped = drop_weights(weights, keep, probability)
                outs.append(einsum("bhij,bjhd->bihd", dropped, v[:, :stop], dtype))
            # Weights are sown in one stretch only (`AttentionModule.over_rows`).
            sown = {"attention_weights": weights, "first_weights": masked_softmax(scores, mask)}
            return jnp.concatenate(outs, axis=1), sown

        arrays = (terms.rotate(q) * q.shape[-1] ** -0.5, terms.rotate(k), v)
        inputs = AttentionInputs.of(arrays, context, keep)
        attended = merge_heads(self.over_rows(core, inputs, config.heads * length * length))
        return OutputProjection(self.spec, name="output")(attended)
