"""Position-aware kernelised attention (Nabiev & Frolov 2026, arXiv 2602.21052).

    out = softmax(mask((Q K^T / sqrt(D/H)) U)) (L V),     U upper-, L lower-triangular, in position space

Linear attention's ``K^T V`` lets position i meet position i only; a kernel C between them, ``K^T C V``, lets
positions interact, and ``C = U L`` puts its halves on the two sides of the softmax. Both sums run over
earlier positions only (U on the left of the scores, or the factors swapped, would leak the future). It is
computed as ``K' = U^T K`` and ``V' = L V``, causal mixtures of earlier keys and values within each sequence,
followed by softmax attention.

The equations are inferred: no public text prints them (the description names an upper factor on the logits, a
lower one on the value aggregation, and the structures). Readings: "Toeplitz-Full", the published winner, is U
Toeplitz and L full. "Layer-wise" is a U and an L of its own for each layer; a figure's caption hints that L may
be shared (``share_lower``). All heads share them (``per_head`` for one each). U = L = I at the start, which is
softmax attention without positions. The rows of "full" and "banded" factors are positions as the batch counts
them: with ``position_origin`` "end", distances to the newest interaction.

Under a bidirectional mask the softmax sees the whole sequence, and U and L stay triangular: almost every kernel C has
such factors, and parameters learned under one mask keep their meaning under the other.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionSpec, allowed_positions
from jaxrec.attention.functional import keep_all, merge_heads, stretches
from jaxrec.attention.module import (
    AttentionInputs,
    AttentionModule,
    OutputProjection,
    Projections,
    position_count,
    projection_count,
    query_input,
)
from jaxrec.attention.positions import POSITIONS, offsets
from jaxrec.attention.softmax import softmax_attention
from jaxrec.nn.layers import take_positions
from jaxrec.nn.precision import einsum
from jaxrec.options import Idle, Range

Structure = Literal["identity", "toeplitz", "full", "banded"]


def kernelised_attention(
    q: Float[Array, "B L H d"],
    k: Float[Array, "B L H d"],
    v: Float[Array, "B L H d"],
    upper: Float[Array, "B H L L"],
    lower: Float[Array, "B H L L"],
    bias: Float[Array, "#B #H L L"] | float,
    mask: Bool[Array, "#B #H L L"],
    dropout: Callable[[Array], Array] = keep_all,
) -> tuple[Float[Array, "B L H d"], Float[Array, "B H L L"]]:
    """``softmax(mask((Q K^T / sqrt(d)) U + bias)) (L V)``, for each head, in float32.

    The module computes the same with `mix` for the two products, which skips the identity and shares work.

    Args:
      q: [B, L, H, d].
      k: [B, L, H, d].
      v: [B, L, H, d].
      upper: [B, H, L, L], U.
      lower: [B, H, L, L], L.
      bias: [1 or B, 1 or H, L, L], or a number.
      mask: bool[B, 1 or H, L, L].
      dropout: of the weights.

    Returns:
      [B, L, H, d], and the weights [B, H, L, L] before dropout.
    """
    mixed_keys = jnp.einsum("bhkj,bkhd->bjhd", upper, k)  # Q (U^T K)^T = (Q K^T) U
    mixed_values = jnp.einsum("bhjk,bkhd->bjhd", lower, v)
    return softmax_attention(q, mixed_keys, mixed_values, bias, mask, dropout)


@dataclasses.dataclass(frozen=True)
class KernelAttentionConfig(AttentionConfig):
    """Softmax attention over keys and values that a learned kernel has mixed in position space.

    Attributes:
      upper: structure of U, on the keys' side: "identity" (no parameters), "toeplitz" (one scalar per
        distance), "full" (one per pair of positions) or "banded" (one per pair less than ``bandwidth`` apart).
      lower: structure of L, on the values' side.
      bandwidth: of "banded".
      share_upper: one U for all layers rather than one each.
      share_lower: one L for all layers.
      per_head: a kernel for each head rather than one for all.
    """

    upper: Structure = "toeplitz"
    lower: Structure = "full"
    bandwidth: Annotated[int, Range("[1, inf)")] = 16
    share_upper: Annotated[bool, Idle("upper", ("identity",))] = False
    share_lower: Annotated[bool, Idle("lower", ("identity",))] = False
    per_head: bool = False

    default_positions: ClassVar[str] = "none"
    selects_positions: ClassVar[bool] = True
    paper: ClassVar[str] = "Nabiev & Frolov, position-aware kernelised attention, 2026 (arXiv 2602.21052)"

    def check(self, spec: AttentionSpec) -> None:
        """Warn of additive positions, which the paper advises against."""
        super().check(spec)
        if POSITIONS[spec.positions].additive:
            warnings.warn(
                f"the positional kernel is combined with additive {spec.positions!r} positions, which its "
                f"authors found to interfere; positions 'none' is what they propose",
                stacklevel=2,
            )

    def cache_obstacle(self, spec: AttentionSpec) -> str | None:
        """None but for factors whose rows are positions that count from a moving end."""
        indexed = [kind for kind in (self.upper, self.lower) if kind in ("full", "banded")]
        if spec.position_origin == "start" or not indexed:
            return None
        return f"the rows of the kernel's {indexed[0]} factor count from the newest interaction, so every one adds a shift"

    def build(self, spec: AttentionSpec, name: str | None = None) -> nn.Module:
        """Build `KernelAttention`."""
        return KernelAttention(self, spec, name=name)

    def kernels(self, shared: bool) -> tuple[tuple[str, Structure], ...]:
        """(name, structure) of the factors that all layers share, or of those that each layer owns."""
        factors = (("upper", self.upper, self.share_upper), ("lower", self.lower, self.share_lower))
        return tuple((name, kind) for name, kind, is_shared in factors if is_shared == shared)

    def parameter_count(self, spec: AttentionSpec) -> int:
        """``3 (D^2 + D)``, the output projection, the position scheme, and the factors of one layer."""
        width = spec.width
        own = 3 * (width**2 + width) + projection_count(spec) + position_count(self, spec)
        return own + self._kernel_count(spec, shared=False)

    def build_shared(self, spec: AttentionSpec, name: str | None = None) -> nn.Module | None:
        """Build the factors that all layers share."""
        return PositionKernels(self, spec, True, name=name) if self.kernels(shared=True) else None

    def shared_parameter_count(self, spec: AttentionSpec) -> int:
        """The factors that all layers share; see `KernelAttention`."""
        return self._kernel_count(spec, shared=True)

    def parameter_figures(
        self, spec: AttentionSpec, layers: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]
    ) -> dict[str, list[tuple[str, np.ndarray]]]:
        """U and L of each layer and head, side by side."""
        panels = []
        for number, layer in enumerate(layers, start=1):
            factors = kernel_matrices(
                self, spec.max_length, {**shared, **layer.get("kernel", {})}, spec.position_origin
            )
            heads = max(map(len, factors))
            for head in range(heads):
                place = f"layer {number}" + (f", head {head + 1}" if heads > 1 else "")
                for name, matrices in zip("UL", factors, strict=True):
                    panels.append((f"{name}, {place}", matrices[min(head, len(matrices) - 1)]))
        return {"kernels": panels}

    def _kernel_count(self, spec: AttentionSpec, shared: bool) -> int:
        each = sum(int(np.prod(self.size(kind, spec.max_length))) for _, kind in self.kernels(shared))
        return each * (self.heads if self.per_head else 1)

    def size(self, structure: Structure, max_length: int) -> tuple[int, ...]:
        """Shape of the parameters of one factor, for n = ``max_length`` and a band of w.

        Toeplitz: (n,) by distance. Full: (n (n + 1) / 2,), the triangle row after row. Banded: (n, w), by the
        later position and the distance. Identity: (0,).
        """
        n = max_length
        band = min(self.bandwidth, n)
        return {"identity": (0,), "toeplitz": (n,), "full": (n * (n + 1) // 2,), "banded": (n, band)}[
            structure
        ]


class PositionKernels(nn.Module):
    """Parameters of the factors that the layers share, or of one layer: ``{name: float32[1 or H, ...]}``."""

    config: KernelAttentionConfig
    spec: AttentionSpec
    shared: bool

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Return the parameters."""
        heads = self.config.heads if self.config.per_head else 1
        out = {}
        for name, structure in self.config.kernels(self.shared):
            if structure != "identity":
                size = (heads, *self.config.size(structure, self.spec.max_length))
                out[name] = self.param(
                    name, _identity_init(structure, self.spec.max_length), size, jnp.float32
                )
        return out


def _identity_init(structure: Structure, max_length: int) -> nn.initializers.Initializer:
    """Ones where a position meets itself, zeros elsewhere."""

    def init(key: Array, size: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        itself = np.zeros(size[1:], np.float32)
        if structure == "full":
            later = np.arange(max_length)
            itself[later * (later + 3) // 2] = 1.0
        else:
            itself[..., 0] = 1.0
        return jnp.broadcast_to(jnp.asarray(itself, dtype)[None], size)

    return init


def toeplitz(kernel: Float[Array, "*lead n"], length: int) -> Float[Array, "*lead L L"]:
    """``[..., L, L]`` with ``kernel[..., j - k]`` at (j, k) for k <= j, 0 for later k, from ``kernel [..., n]``.

    One period of 2 L numbers, repeated and cut into rows of 2 L - 1, moves right by one with each row. A gather would
    say the same, but its gradient is a scatter of L^2 numbers, which a CPU does one by one.
    """
    lead = kernel.shape[:-1]
    zeros = jnp.zeros((*lead, length), kernel.dtype)
    period = jnp.concatenate([kernel[..., :1], zeros, kernel[..., 1:length][..., ::-1]], axis=-1)
    rows = jnp.broadcast_to(period[..., None, :], (*lead, length, 2 * length))
    flat = rows.reshape(*lead, 2 * length * length)[..., : length * (2 * length - 1)]
    return flat.reshape(*lead, length, 2 * length - 1)[..., :length]


def mixing_weights(
    structure: Structure,
    kernel: Float[Array, "H1 ..."],
    positions: Int[Array, "B L"],
    query_positions: Int[Array, "B S"] | None = None,
) -> Float[Array, "B1 H1 S L"]:
    """Weight of the earlier position (last axis) in the mixture at the later one; not yet masked.

    Args:
      structure: of the factor.
      kernel: its parameters, [1 or H, ...].
      positions: int32[B, L], indices of the "full" and "banded" factors. Counted from the start, their row p is
        the p-th interaction of a sequence; from the end, the one p before its newest, whatever the sequence's
        length. A pair is looked up by its greater and its smaller index, so both ways need the same triangle.
      query_positions: int32[B, S], columns of the later position, the same in every row; None = all L.

    Returns:
      float32[1 or B, 1 or H, L, L], or [B, 1 or H, S, L].
    """
    length = positions.shape[1]
    if structure == "toeplitz":
        weights = toeplitz(kernel, length)[None]
        return weights if query_positions is None else weights[:, :, query_positions[0]]
    apart: Any = np.maximum(offsets(length), 0)
    chosen = positions
    if query_positions is not None:
        chosen = jnp.take_along_axis(positions, query_positions, axis=1)
        apart = jnp.asarray(apart)[query_positions[0]]
    later, earlier = chosen[:, :, None], positions[:, None, :]
    if structure == "full":
        high, low = jnp.maximum(later, earlier), jnp.minimum(later, earlier)
        return jnp.moveaxis(kernel[:, high * (high + 1) // 2 + low], 0, 1)
    band = kernel.shape[2]
    near = jnp.minimum(jnp.asarray(apart), band - 1)[None]
    return jnp.where(jnp.asarray(apart < band)[None, None], jnp.moveaxis(kernel[:, later, near], 0, 1), 0.0)


def mix(
    x: Float[Array, "B L H d"],
    weights: Float[Array, "#B #H S L"],
    allowed: Bool[Array, "B 1 S L"],
    dtype: Any,
    count: int = 1,
) -> Float[Array, "B S H d"]:
    """Replace each position by a weighted sum of the earlier ones of its sequence, and of itself.

    Args:
      x: [B, L, H, d].
      weights: [1 or B, 1 or H, L, L], from `mixing_weights`; or [.., 1, L] for one position.
      allowed: the causal mask, bool[B, 1, L, L], or [B, 1, 1, L].
      dtype: precision of the operands of products.
      count: number of stretches of time (`jaxrec.attention.functional.stretches`); changes nothing.

    Returns:
      [B, L, H, d], or [B, 1, H, d].
    """
    flat = weights.shape[1] == 1
    source = merge_heads(x) if flat else x
    outs = []
    one = weights.shape[2] == 1
    for start, stop in [(0, x.shape[1])] if one else stretches(x.shape[1], count):
        part = (slice(None), slice(None), slice(start, stop), slice(stop))
        masked = jnp.where(allowed[part], weights[part], 0.0)
        if flat:
            outs.append(einsum("bjk,bke->bje", masked[:, 0], source[:, :stop], dtype))
        else:
            outs.append(einsum("bhjk,bkhd->bjhd", masked, source[:, :stop], dtype))
    mixed = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    return mixed.reshape(x.shape[0], -1, *x.shape[2:])


class KernelAttention(AttentionModule):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``, or [B, S, D] at ``query_positions`` int32[B, S].

    Parameters: ``3 (D^2 + D)``, ``D^2 + D`` with an output projection, the position scheme's, and for each of U and L, n
    being the maximum length: 0 (identity), ``n`` (Toeplitz), ``n (n + 1) / 2`` (full) or ``n * bandwidth`` (banded),
    times H with ``per_head``, none here if shared. Weight decay on kernels leaves them out (`jaxrec.optim.decay_mask`).
    A position scheme's bias is added after U. Sows ``attention_weights`` float32[B, H, L, L].
    """

    config: KernelAttentionConfig

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
        config, dtype = self.config, self.spec.dtype
        asked = query_input(x, queries, query_positions)
        qkv = Projections(config.heads, self.spec, name="projections")(x, asked)
        kernels = dict(PositionKernels(config, self.spec, False, name="kernel")())
        if config.kernels(shared=True):
            option = "share_upper" if config.share_upper else "share_lower"
            kernels.update(config.shared_parameters(context, option))

        # By distance alone: the same for every row, and built once.
        by_distance = {
            name: mixing_weights("toeplitz", kernels[name], context.positions)
            for name, structure in (("upper", config.upper), ("lower", config.lower))
            if structure == "toeplitz"
        }

        def mixed(name: str, structure: Structure, x: Array, inputs: AttentionInputs, count: int) -> Array:
            queries = inputs.query_positions
            if structure == "identity":
                return x if queries is None else take_positions(x, queries)
            weights = (
                by_distance[name]
                if structure == "toeplitz" and queries is None
                else mixing_weights(structure, kernels[name], inputs.positions, queries)
            )
            allowed = allowed_positions(inputs.segments, query_positions=queries)
            return mix(x, weights, allowed[:, None], dtype, count)

        def mix_all(inputs: AttentionInputs, count: int) -> tuple[Array, Array, Array]:
            q, k, v = inputs.arrays
            k = mixed("upper", config.upper, k, inputs, count)
            return q, k, mixed("lower", config.lower, v, inputs, count)

        formula = partial(softmax_attention, dtype=dtype)
        attended = self.attend(formula, qkv, context, train, query_positions=query_positions, mix=mix_all)
        return OutputProjection(self.spec, name="output")(attended)


def kernel_matrices(
    config: KernelAttentionConfig, max_length: int, kernels: Mapping[str, Any], position_origin: str = "start"
) -> tuple[Float[np.ndarray, "H1 n n"], Float[np.ndarray, "H2 n n"]]:
    """U and L as matrices float32[1 or H, n, n] of a history of full length, oldest first, for figures.

    ``kernels`` holds the parameters "upper" and "lower" (a layer's ``attention/kernel``, or the shared ones),
    ``position_origin`` is what the encoder's positions count from.
    """
    places = np.arange(max_length, dtype=np.int32)
    positions = jnp.asarray(places if position_origin == "start" else places[::-1])[None]
    out = []
    for name, structure in (("upper", config.upper), ("lower", config.lower)):
        if structure == "identity":
            lower = np.eye(max_length, dtype=np.float32)[None]
        else:
            lower = np.tril(np.asarray(mixing_weights(structure, jnp.asarray(kernels[name]), positions))[0])
        out.append(lower.transpose(0, 2, 1) if name == "upper" else lower)
    return out[0], out[1]
