"""Gaussian (Wasserstein) attention of STOSA (Fan et al., WWW 2022), and AWRSR on it, "stochastic" included.

A state is a Gaussian with diagonal covariance: the first half of its D numbers is the mean, the second half
stands for the covariance. With per-head size d = D / (2 H):

    mu_q, mu_k, mu_v = affine(mean);   sigma_q, sigma_k, sigma_v = ELU(affine(covariance)) + 1
    S_ij = -(|mu_q,i - mu_k,j|^2 + |sqrt(sigma_q,i) - sqrt(sigma_k,j)|^2) / sqrt(d)
    P = msoftmax(S);   mean' = P mu_v;   covariance' = P^2 sigma_v  (squares of entries)

Any encoder may use it, since the halves travel as one state; `jaxrec.models.stosa` is the encoder it was made
for.

These equations are those of STOSA's published code. AWRSR's reweighing applies to S and P as it does to dot
products; its equations are not public (`jaxrec.attention.awrsr` lists the readings). The "stochastic" variant
in particular is this project's reading of a name, by analogy with STOSA: each weight profile becomes a Gaussian,
``m = A W_q``, ``s = ELU(A W_k) + 1``, and ``A' = msoftmax(-(|m_i - m_j|^2 + |sqrt(s_i) - sqrt(s_j)|^2) /
sqrt(size))``, which takes P's place for means and, squared, for covariances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxrec.attention.awrsr import Mapped, ProfileMaps, ReweighingConfig, mapped, reweigh
from jaxrec.attention.base import AttentionContext, AttentionShape
from jaxrec.attention.functional import drop_weights, masked_softmax, merge_heads
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

WassersteinVariant = Literal[
    "none", "stochastic", "simple", "value-weighted", "additive", "additive-gated", "additive-bahdanau"
]
#: Keeps the gradient of a square root finite where ELU + 1 underflows.
SMALLEST_VARIANCE = 1e-12


@dataclasses.dataclass(frozen=True)
class WassersteinAttentionConfig(ReweighingConfig):
    """STOSA's attention between Gaussians; half of the width holds means, half covariances.

    Attributes:
      variant: "none" is STOSA's own; "stochastic" and the others are AWRSR's on top of it.
    """

    variant: WassersteinVariant = "none"  # type: ignore[assignment]

    host_variants: ClassVar[tuple[str, ...]] = get_args(WassersteinVariant)
    paper: ClassVar[str] = "Fan et al., Stochastic Self-Attention (STOSA), WWW 2022 (arXiv 2201.06035)"

    def check(self, shape: AttentionShape) -> None:
        super().check(shape)
        if shape.width % (2 * self.heads):
            raise ConfigError(
                f"attention.heads must divide half of the encoder's width, since means and covariances have "
                f"half each: got {self.heads} heads for width {shape.width}"
            )
        if shape.positions == "rotary":
            raise ConfigError(
                "positions 'rotary' are defined for dot products, not for Wasserstein distances; choose "
                "'learned', 'relative-bias', 'alibi' or 'time-interval'"
            )

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        return WassersteinAttention(self, shape, name=name)

    def parameter_count(self, shape: AttentionShape) -> int:
        half = dataclasses.replace(shape, width=shape.width // 2)
        own = 2 * (3 * (half.width**2 + half.width) + projection_count(half))
        maps = 0 if self.variant == "none" else self.reweighing_count(shape)
        return own + maps + position_count(self, shape)


def positive(x: Array) -> Array:
    """ELU + 1: the covariances of STOSA."""
    return jax.nn.elu(x) + 1.0


def root(variance: Array) -> Array:
    """The standard deviation, with a finite gradient everywhere."""
    return jnp.sqrt(jnp.maximum(variance, SMALLEST_VARIANCE))


def negative_distances(a: Array, b: Array, equation: str, dtype: Any) -> Array:
    """``-|a_i - b_j|^2`` from ``a`` and ``b`` [B, H, L, size], expanded so that it is one matrix product."""
    squares = jnp.sum(a**2, axis=-1)[..., :, None] + jnp.sum(b**2, axis=-1)[..., None, :]
    return 2.0 * contract(equation, a, b, dtype) - squares


def stochastic_weights(
    config: WassersteinAttentionConfig,
    maps: Mapping[str, Array],
    scores: Array,
    allowed: Array,
    positions: Array,
    dtype: Any,
) -> tuple[Array, Mapped]:
    """AWRSR's "stochastic" weights from the scores [B, H, L, L]; see the module's docstring."""
    profiles = masked_softmax(scores, allowed) if config.source == "prob" else jnp.where(allowed, scores, 0.0)
    mean = mapped(profiles, maps["query"], positions, dtype)
    deviation = root(positive(mapped(profiles, maps["key"], positions, dtype)))
    gaussians = jnp.concatenate([mean, deviation], axis=-1)
    distances = negative_distances(gaussians, gaussians, "bhir,bhjr->bhij", dtype)
    return masked_softmax(distances * mean.shape[-1] ** -0.5, allowed), Mapped(gaussians, None)


class WassersteinAttention(Mechanism):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``, means in the first half, covariances in
    the second.

    Parameters, with d = D / 2: ``6 (d^2 + d)``, ``2 (d^2 + d)`` with an output projection (one for each
    half), the position scheme's, and those of the reweighing (`RefinedAttention`; "stochastic" has ``2 n
    r``). Sows ``attention_weights`` float32[B, H, L, L].
    """

    config: WassersteinAttentionConfig

    @nn.compact
    def __call__(
        self, x: Array, context: AttentionContext, train: bool = False, queries: Array | None = None
    ) -> Array:
        config, dtype, heads = self.config, self.shape.dtype, self.config.heads
        batch, length, _ = x.shape
        half = dataclasses.replace(self.shape, width=self.shape.width // 2)
        _, bias_of = self.position_terms(context)

        def halves(inputs: Array | None) -> tuple[Array | None, Array | None]:
            return (None, None) if inputs is None else (inputs[..., : half.width], inputs[..., half.width :])

        mean, covariance = x[..., : half.width], x[..., half.width :]
        mean_queries, covariance_queries = halves(queries)
        mean_q, mean_k, mean_v = Projections(heads, half, name="mean")(mean, mean_queries)
        projected = Projections(heads, half, name="covariance")(covariance, covariance_queries)
        cov_q, cov_k, cov_v = (positive(part) for part in projected)
        maps = (
            {} if config.variant == "none" else ProfileMaps(config, self.shape.max_length, name="profiles")()
        )
        keep, probability = self.keep_mask((batch, heads, length, length), train)
        scale = (half.width // heads) ** -0.5

        def core(rows: Rows, chunks: int) -> tuple[Array, dict[str, Array]]:
            q, k, mean_v, cov_v = rows.inputs
            scores = negative_distances(q, k, "bhid,bhjd->bhij", dtype) * scale
            bias = bias_of(rows)
            scores = scores if bias is None else scores + bias
            allowed = rows.allowed()
            if config.variant == "none":
                weights = masked_softmax(scores, allowed)
            else:
                new = stochastic_weights if config.variant == "stochastic" else reweigh
                weights, _ = new(config, maps, scores, allowed, rows.positions, dtype)
            dropped = drop_weights(weights, rows.keep, probability)
            out_mean = contract("bhij,bjhd->bihd", dropped, mean_v, dtype)
            out_covariance = contract("bhij,bjhd->bihd", dropped**2, cov_v, dtype)
            out = jnp.concatenate([merge_heads(out_mean), merge_heads(out_covariance)], axis=-1)
            return out, {"attention_weights": weights}

        q = jnp.moveaxis(jnp.concatenate([mean_q, root(cov_q)], axis=-1), 2, 1)
        k = jnp.moveaxis(jnp.concatenate([mean_k, root(cov_k)], axis=-1), 2, 1)
        rows = Rows((q, k, mean_v, cov_v), context.segments, context.positions, context.timestamps, keep)
        attended = self.over_rows(core, rows, heads * length * length)
        out_mean = OutputProjection(half, name="mean_output")(attended[..., : half.width])
        out_covariance = OutputProjection(half, name="covariance_output")(attended[..., half.width :])
        return jnp.concatenate([out_mean, out_covariance], axis=-1)
