"""Gaussian (Wasserstein) attention of STOSA (Fan et al., WWW 2022), and AWRSR on it.

A state is a Gaussian with diagonal covariance: the first half of its D numbers is the mean, the second half
represents the covariance. With per-head size d = D / (2 H):

    mu_q, mu_k, mu_v = affine(mean);   sigma_q, sigma_k, sigma_v = ELU(affine(covariance)) + 1
    S_ij = -(|mu_q,i - mu_k,j|^2 + |sqrt(sigma_q,i) - sqrt(sigma_k,j)|^2) / sqrt(d)
    P = msoftmax(S);   mean' = P mu_v;   covariance' = P^2 sigma_v  (squares of entries)

Any encoder may use it, since the halves travel as one state; `jaxrec.models.stosa` is the encoder it was made for.
These equations are those of STOSA's published attention; its encoder differs from ours (`jaxrec.models.stosa`).

AWRSR's refinement (`jaxrec.attention.awrsr`, which lists the readings) applies to S and P as it does to dot products:
its A' takes P's place for means and, squared, for covariances. Its "stochastic" variant is a reading of a name, by
analogy with STOSA: each profile becomes a Gaussian, ``m = P W_q``, ``s = ELU(P W_k) + 1``, and R is the negative squared
distance ``-(|m_i - m_j|^2 + |sqrt(s_i) - sqrt(s_j)|^2)`` in the chosen scale.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxrec.attention.awrsr import RefinementConfig, RefinementMaps, refine
from jaxrec.attention.base import SECTION, AttentionContext, AttentionSpec
from jaxrec.attention.cache import new_positions, remember, whole
from jaxrec.attention.functional import (
    drop_weights,
    elu_plus_one,
    masked_softmax,
    merge_heads,
    negative_squared_distances,
    standard_deviation,
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
from jaxrec.options import option_name

WassersteinVariant = Literal[
    "none", "stochastic", "simple", "value-weighted", "additive", "additive-gated", "additive-bahdanau"
]


def wasserstein_scores(
    q: Float[Array, "B S H dd"],
    k: Float[Array, "B L H dd"],
    bias: Float[Array, "#B #H S L"] | float,
    dtype: Any = jnp.float32,
) -> Float[Array, "B H S L"]:
    """``-(|mu_q - mu_k|^2 + |sqrt(sigma_q) - sqrt(sigma_k)|^2) / sqrt(d) + bias``, for each head.

    Args:
      q: [B, L, H, 2 d], means beside standard deviations.
      k: [B, L, H, 2 d].
      bias: [1 or B, 1 or H, L, L], or a number.
      dtype: precision of the operands of products.

    Returns:
      [B, H, L, L].
    """
    q, k = jnp.moveaxis(q, 2, 1), jnp.moveaxis(k, 2, 1)
    return negative_squared_distances(q, k, dtype) * (q.shape[-1] // 2) ** -0.5 + bias


def gaussian_values(
    weights: Float[Array, "B H S L"],
    mean: Float[Array, "B L H d"],
    covariance: Float[Array, "B L H d"],
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "B S H d"], Float[Array, "B S H d"]]:
    """``P mu_v`` and ``P^2 sigma_v``: mean and covariance [B, L, H, d] of a sum of independent Gaussians."""
    equation = "bhij,bjhd->bihd"
    return einsum(equation, weights, mean, dtype), einsum(equation, weights**2, covariance, dtype)


@dataclasses.dataclass(frozen=True)
class WassersteinAttentionConfig(RefinementConfig):
    """STOSA's attention between Gaussians; half of the width holds means, half covariances.

    Attributes:
      variant: "none" is STOSA's own; "stochastic" and the others are AWRSR's on top of it.
    """

    variant: WassersteinVariant = "none"

    paper: ClassVar[str] = "Fan et al., Stochastic Self-Attention (STOSA), WWW 2022 (arXiv 2201.06035)"

    def check(self, spec: AttentionSpec) -> None:
        """Reject heads that do not divide half of the width, and rotary positions."""
        super().check(spec)
        if spec.width % (2 * self.heads):
            raise ConfigError(
                f"{option_name(SECTION, 'heads')} must divide half of the encoder's width, since means and "
                f"covariances have half each: got {self.heads} heads for width {spec.width}"
            )
        if spec.positions == "rotary":
            raise ConfigError(
                "--encoder.positions rotary is defined for dot products, and attention 'wasserstein' compares distances: "
                "choose 'learned', 'relative-bias', 'alibi' or 'time-interval'"
            )

    def cache_obstacle(self, spec: AttentionSpec) -> str | None:
        """None for STOSA's own attention; a refinement keeps nothing."""
        return None if self.variant == "none" else super().cache_obstacle(spec)

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `WassersteinAttention`."""
        return WassersteinAttention(self, spec, name=name)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """The formula of `WassersteinAttention`."""
        half = dataclasses.replace(spec, width=spec.width // 2)
        own = 2 * (3 * (half.width**2 + half.width) + projection_count(half))
        maps = 0 if self.variant == "none" else self.refinement_count(spec)
        return own + maps + position_count(self, spec)

    def parameter_figures(self, spec: Any, layers: Any, shared: Any) -> Any:
        """AWRSR's maps, where there are any."""
        return {} if self.variant == "none" else super().parameter_figures(spec, layers, shared)


class WassersteinAttention(AttentionModule):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``: means first, then covariances.

    Parameters, with d = D / 2: ``6 (d^2 + d)``, ``2 (d^2 + d)`` with an output projection (one for each half), the
    position scheme's, and those of the refinement (`RefinedAttention`; "stochastic" has as many as "simple"). Sows
    ``attention_weights`` float32[B, H, L, L], and with a refinement ``first_weights``.
    """

    config: WassersteinAttentionConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: AttentionContext,
        train: bool = False,
        queries: Float[Array, "B L D"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Attend; see `AttentionConfig.build` for the arguments."""
        config, dtype, heads = self.config, self.spec.dtype, self.config.heads
        batch, length, _ = x.shape
        half = dataclasses.replace(self.spec, width=self.spec.width // 2)
        terms = self.position_terms(context)

        def halves(inputs: Array | None) -> tuple[Array | None, Array | None]:
            return (None, None) if inputs is None else (inputs[..., : half.width], inputs[..., half.width :])

        mean, covariance = x[..., : half.width], x[..., half.width :]
        mean_queries, covariance_queries = halves(queries)
        mean_q, mean_k, mean_v = Projections(heads, half, name="mean")(mean, mean_queries)
        projected = Projections(heads, half, name="covariance")(covariance, covariance_queries)
        cov_q, cov_k, cov_v = (elu_plus_one(part) for part in projected)
        refined = config.variant != "none"
        maps = RefinementMaps(config, self.spec.max_length, name="refinement")() if refined else {}
        keep, probability = self.keep_mask((batch, heads, length, length), train)

        def core(inputs: AttentionInputs, count: int) -> tuple[Array, dict[str, Array]]:
            del count  # One stretch: the refinement of all rows needs all scores.
            q, k, mean_v, cov_v = inputs.arrays
            scores = wasserstein_scores(q, k, terms.bias(inputs), dtype)
            mask = inputs.allowed()
            weights = masked_softmax(scores, mask)
            sown = {"attention_weights": weights}
            if refined:
                sown["first_weights"] = weights
                weights, _ = refine(config, maps, scores, mask, inputs.positions, dtype)
                sown["attention_weights"] = weights
            dropped = drop_weights(weights, inputs.keep, probability)
            out = gaussian_values(dropped, mean_v, cov_v, dtype)
            return jnp.concatenate([merge_heads(part) for part in out], axis=-1), sown

        q = jnp.concatenate([mean_q, standard_deviation(cov_q)], axis=-1)
        k = jnp.concatenate([mean_k, standard_deviation(cov_k)], axis=-1)
        stored = map(whole, remember(self, context.cache, keys=k, means=mean_v, covariances=cov_v))
        inputs = AttentionInputs.of((q, *stored), context, keep, new_positions(context.cache, batch))
        attended = self.over_rows(core, inputs, heads * length * length)
        out_mean = OutputProjection(half, name="mean_output")(attended[..., : half.width])
        out_covariance = OutputProjection(half, name="covariance_output")(attended[..., half.width :])
        return jnp.concatenate([out_mean, out_covariance], axis=-1)
