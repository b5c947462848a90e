"""Position-aware kernelised attention (Nabiev & Frolov 2026, arXiv 2602.21052).

    out = softmax(mask((Q K^T / sqrt(D/H)) U)) (L V),     U upper-triangular, L lower-triangular, in position
    space

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
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrec.attention.base import AttentionConfig, AttentionContext, AttentionShape
from jaxrec.attention.functional import merge_heads, softmax_core, stretches
from jaxrec.attention.module import (
    Mechanism,
    OutputProjection,
    Projections,
    Rows,
    position_count,
    projection_count,
)
from jaxrec.attention.positions import POSITIONS, distances
from jaxrec.errors import ConfigError
from jaxrec.nn.precision import contract

Structure = Literal["identity", "toeplitz", "full", "banded"]


@dataclasses.dataclass(frozen=True)
class KernelAttentionConfig(AttentionConfig):
    """Softmax attention over keys and values that a learned kernel has mixed in position space.

    Attributes:
      upper: structure of U, on the keys' side: "identity" (no parameters), "toeplitz" (one scalar a
        distance), "full" (one a pair of positions) or "banded" (one a pair less than ``bandwidth`` apart).
      lower: structure of L, on the values' side.
      bandwidth: of "banded".
      share_upper: one U for all layers rather than one each.
      share_lower: one L for all layers.
      per_head: a kernel for each head rather than one for all.
    """

    upper: Structure = "toeplitz"
    lower: Structure = "full"
    bandwidth: int = 16
    share_upper: bool = False
    share_lower: bool = False
    per_head: bool = False

    default_positions: ClassVar[str] = "none"
    paper: ClassVar[str] = "Nabiev & Frolov, position-aware kernelised attention, 2026 (arXiv 2602.21052)"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("upper", "lower"):
            if getattr(self, field) not in get_args(Structure):
                raise ConfigError(
                    f"attention.{field} must be one of {', '.join(get_args(Structure))}; "
                    f"got {getattr(self, field)!r}"
                )
        if self.bandwidth < 1:
            raise ConfigError(f"attention.bandwidth must be at least 1, got {self.bandwidth}")

    def check(self, shape: AttentionShape) -> None:
        super().check(shape)
        if POSITIONS[shape.positions].additive:
            warnings.warn(
                f"the positional kernel is combined with additive {shape.positions!r} positions, which its "
                f"authors found to interfere; positions 'none' is what they propose",
                stacklevel=2,
            )

    def module(self, shape: AttentionShape, name: str | None = None) -> nn.Module:
        return KernelAttention(self, shape, name=name)

    def kernels(self, shared: bool) -> tuple[tuple[str, Structure], ...]:
        """(name, structure) of the factors that all layers share, or of those that each layer owns."""
        factors = (("upper", self.upper, self.share_upper), ("lower", self.lower, self.share_lower))
        return tuple((name, kind) for name, kind, is_shared in factors if is_shared == shared)

    def parameter_count(self, shape: AttentionShape) -> int:
        width = shape.width
        own = 3 * (width**2 + width) + projection_count(shape) + position_count(self, shape)
        return own + self._kernel_count(shape, shared=False)

    def shared_module(self, shape: AttentionShape, name: str | None = None) -> nn.Module | None:
        return PositionKernels(self, shape, True, name=name) if self.kernels(shared=True) else None

    def shared_parameter_count(self, shape: AttentionShape) -> int:
        return self._kernel_count(shape, shared=True)

    def _kernel_count(self, shape: AttentionShape, shared: bool) -> int:
        each = sum(int(np.prod(self.size(kind, shape.max_length))) for _, kind in self.kernels(shared))
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
    """Parameters of the factors that the layers share, or that one layer owns: ``{name: float32[1 or H,
    ...]}``.
    """

    config: KernelAttentionConfig
    shape: AttentionShape
    shared: bool

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        heads = self.config.heads if self.config.per_head else 1
        out = {}
        for name, structure in self.config.kernels(self.shared):
            if structure != "identity":
                size = (heads, *self.config.size(structure, self.shape.max_length))
                out[name] = self.param(
                    name, _identity_init(structure, self.shape.max_length), size, jnp.float32
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


def toeplitz(kernel: Array, length: int) -> Array:
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


def mixing_weights(structure: Structure, kernel: Array, positions: Array) -> Array:
    """What the earlier position (last axis) gives to the later one: [1 or B, 1 or H, L, L]; not yet masked.

    ``positions`` int32[B, L] index the "full" and "banded" factors. Counted from the start, their row p is
    the p-th interaction of a sequence; from the end, the one p before its newest, whatever the sequence's
    length. A pair is looked up by its greater and its smaller index, so both ways need the same triangle.
    """
    length = positions.shape[1]
    if structure == "toeplitz":
        return toeplitz(kernel, length)[None]
    apart = distances(length)
    later, earlier = positions[:, :, None], positions[:, None, :]
    if structure == "full":
        high, low = jnp.maximum(later, earlier), jnp.minimum(later, earlier)
        return jnp.moveaxis(kernel[:, high * (high + 1) // 2 + low], 0, 1)
    band = kernel.shape[2]
    near = jnp.asarray(np.minimum(apart, band - 1))[None]
    return jnp.where(jnp.asarray(apart < band)[None, None], jnp.moveaxis(kernel[:, later, near], 0, 1), 0.0)


def mix(x: Array, weights: Array, allowed: Array, dtype: Any, chunks: int = 1) -> Array:
    """``x`` [B, L, H, d] with each position replaced by a weighted sum of those it may see.

    In ``chunks`` stretches of time (`jaxrec.attention.functional.stretches`), on which the result does not depend.
    """
    flat = weights.shape[1] == 1
    source = merge_heads(x) if flat else x
    outs = []
    for start, stop in stretches(x.shape[1], chunks):
        part = (slice(None), slice(None), slice(start, stop), slice(stop))
        masked = jnp.where(allowed[part], weights[part], 0.0)
        if flat:
            outs.append(contract("bjk,bke->bje", masked[:, 0], source[:, :stop], dtype))
        else:
            outs.append(contract("bhjk,bkhd->bjhd", masked, source[:, :stop], dtype))
    return (outs[0] if chunks == 1 else jnp.concatenate(outs, axis=1)).reshape(x.shape)


class KernelAttention(Mechanism):
    """``(x [B, L, D], context, train, queries=None) -> [B, L, D]``.

    Parameters: ``3 (D^2 + D)``, ``D^2 + D`` with an output projection, the position scheme's, and for each of
    U and L, n being the maximum length: 0 (identity), ``n`` (Toeplitz), ``n (n + 1) / 2`` (full) or ``n *
    bandwidth`` (banded), times H with ``per_head``, none here if shared. Weight decay on kernels leaves them out
    (`jaxrec.optim.decay_mask`). A position scheme's bias is added after U. Sows
    ``attention_weights`` float32[B, H, L, L].
    """

    config: KernelAttentionConfig

    @nn.compact
    def __call__(
        self, x: Array, context: AttentionContext, train: bool = False, queries: Array | None = None
    ) -> Array:
        config, dtype = self.config, self.shape.dtype
        batch, length, _ = x.shape
        turn, bias_of = self.position_terms(context)
        q, k, v = Projections(config.heads, self.shape, name="projections")(x, queries)
        kernels = dict(PositionKernels(config, self.shape, False, name="kernel")())
        if config.kernels(shared=True):
            option = "share_upper" if config.share_upper else "share_lower"
            kernels.update(config.from_shared(context, option))
        keep, probability = self.keep_mask((batch, config.heads, length, 1, length), train)

        # By distance alone: the same for every row, and built once.
        by_distance = {
            name: mixing_weights("toeplitz", kernels[name], context.positions)
            for name, structure in (("upper", config.upper), ("lower", config.lower))
            if structure == "toeplitz"
        }

        def mixed(name: str, structure: Structure, x: Array, rows: Rows, chunks: int) -> Array:
            if structure == "identity":
                return x
            weights = (
                by_distance[name]
                if structure == "toeplitz"
                else mixing_weights(structure, kernels[name], rows.positions)
            )
            return mix(x, weights, rows.allowed(), dtype, chunks)

        def core(rows: Rows, chunks: int) -> tuple[Array, dict[str, Array]]:
            q, k, v = rows.inputs
            k = mixed("upper", config.upper, k, rows, chunks)
            v = mixed("lower", config.lower, v, rows, chunks)
            out, weights = softmax_core(
                q,
                k,
                v,
                segments=rows.segments,
                bias=bias_of(rows),
                keep=rows.keep,
                probability=probability,
                dtype=dtype,
                chunks=chunks,
            )
            return out, {"attention_weights": weights[:, :, :, 0]}

        inputs = (turn(q) * q.shape[-1] ** -0.5, turn(k), v)
        rows = Rows(inputs, context.segments, context.positions, context.timestamps, keep)
        attended = merge_heads(self.over_rows(core, rows, config.heads * length * length))
        return OutputProjection(self.shape, name="output")(attended)


def kernel_matrices(
    config: KernelAttentionConfig, max_length: int, kernels: Mapping[str, Any], position_origin: str = "start"
) -> tuple[np.ndarray, np.ndarray]:
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
