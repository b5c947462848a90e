"""The few layers that attention mechanisms and encoders share: mixed-precision products, dropout, initialisers.

Parameters, sums, norms and the residual stream are float32. ``dtype`` names the precision of the operands of matrix
products only, so bfloat16 runs use the matrix units without rounding what is accumulated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxrec.nn.precision import matmul

Initializer = Callable[..., Array]


class Dense(nn.Module):
    """Affine map of the last axis: ``[..., I] -> [..., features]``, float32 out; ``I * features + features`` parameters."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        """Map ``x`` [..., I] to [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = matmul(x, kernel, self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
        return y


def unit_rows(x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Return rows over their Euclidean norm; a zero row stays zero, with zero gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = square > 0
    return jnp.where(
        some, x * lax.rsqrt(jnp.where(some, square, jnp.ones((), x.dtype))), jnp.zeros((), x.dtype)
    )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*rows D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "*rows D"]:
    """Normalise the last axis to mean 0 and variance 1, then ``scale`` and ``bias`` it (Ba et al. 2016, arXiv 1607.06450).

    The backward pass is written out: JAX's own holds arrays of the size of ``x`` that are cheaper to compute again.
    """
    return _normalised(x, scale, bias, epsilon)[0]


def _normalised(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean), 0.0)
    factor = lax.rsqrt(variance + epsilon)
    own = (1,) * (x.ndim - 1) + (-1,)
    out = (x - mean) * factor * scale.reshape(own) + bias.reshape(own)
    return out, (x, mean, factor, scale)


def _norm_backward(epsilon: float, saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    x, mean, factor, scale = saved
    unit = (x - mean) * factor
    pull = cotangent * scale.reshape((1,) * (x.ndim - 1) + (-1,))
    along = jnp.mean(pull * unit, axis=-1, keepdims=True)
    x_bar = factor * (pull - jnp.mean(pull, axis=-1, keepdims=True) - unit * along)
    rows = tuple(range(x.ndim - 1))
    return x_bar, jnp.sum(cotangent * unit, axis=rows), jnp.sum(cotangent, axis=rows)


layer_norm.defvjp(_normalised, _norm_backward)


class LayerNorm(nn.Module):
    """`layer_norm` with its ``2 D`` parameters, named as those of Flax."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalise ``x`` [..., D]."""
        size = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), size, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), size, jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon)


def take_positions(
    x: Float[Array, "B L *size"], query_positions: Int[Array, "B S"]
) -> Float[Array, "B S *size"]:
    """Take ``x [B, L, ...]`` at ``query_positions`` int32[B, S] of each row: [B, S, ...]."""
    index = query_positions.reshape(*query_positions.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


def dropout_mask(key: Array, shape: tuple[int, ...], rate: float) -> tuple[Bool[Array, ...], float]:
    """Draw a keep-mask ``bool[shape]``; return it with the probability that it keeps an element.

    Eight random bits per element: on a CPU the bits cost more than the layer they regularise. The rate is therefore
    rounded to a multiple of 1/256 below 1, and the probability returned is the exact one of the mask.
    """
    dropped = min(round(rate * 256), 255)
    size = 1
    for extent in shape:
        size *= extent
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    octets = lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)
    return octets >= jnp.uint8(dropped), 1.0 - dropped / 256.0


class Dropout(nn.Module):
    """Inverted dropout of whole-number 256ths (see `dropout_mask`); draws from the ``dropout`` stream while training."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*size"], train: bool) -> Float[Array, "*size"]:
        """Drop elements of ``x`` while training."""
        if not train or round(self.rate * 256) == 0:
            return x
        keep, probability = dropout_mask(self.make_rng("dropout"), x.shape, self.rate)
        return jnp.where(keep, x / jnp.asarray(probability, x.dtype), jnp.zeros((), x.dtype))
