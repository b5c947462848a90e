"""exp(x) for the catalogue kernel, where on a CPU it would otherwise cost as much as a matrix product."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

SAFE_SHIFT = 50.0  # exp(50) times any catalogue and any sum of its vectors stays finite in float32
_LOWEST = -87.0  # exp of less is not a normal float32

# 2**f = 1 + f (c1 + c2 f + ...) on [-1/2, 1/2], fitted for the least largest relative error: 2e-7 in float32.
_COEFFICIENTS = (0.693147, 0.24022242, 0.055507336, 0.009671513, 0.0013264727)
_ROUNDS_TO_INTEGER = 1.5 * 2**23  # added to a small whole number, leaves it in the low bits of the float


def exponential(x: Array, drop: Array, dtype: str) -> Array:
    """``exp(x)``, 0 where ``drop`` is set, in ``dtype`` ("float32" or "bfloat16"); for x at most 80.

    The relative error is at most 2e-7 + 1e-7 |x| before rounding to ``dtype`` (no more than what rounding x
    itself costs); below exp(-87) the result stays at that, 1e-38.
    """
    return lax.platform_dependent(
        x, drop, cpu=lambda x, drop: _bits(x, drop, dtype), default=lambda x, drop: _plain(x, drop, dtype)
    )


def _plain(x: Array, drop: Array, dtype: str) -> Array:
    return jnp.where(drop, 0.0, jnp.exp(x)).astype(dtype)


def _bits(x: Array, drop: Array, dtype: str) -> Array:
    """2**k (by the exponent's bits) times a polynomial; rounds to bfloat16 half up, in whole numbers too."""
    binary = jnp.maximum(x, _LOWEST) * np.float32(1.4426950408889634)
    whole = jnp.round(binary)
    fraction = binary - whole
    value = jnp.full_like(x, np.float32(_COEFFICIENTS[-1]))
    for coefficient in _COEFFICIENTS[-2::-1]:
        value = value * fraction + np.float32(coefficient)
    value = value * fraction + np.float32(1.0)
    power = lax.bitcast_convert_type(whole + np.float32(_ROUNDS_TO_INTEGER), jnp.int32) << 23
    bits = jnp.where(drop, 0, lax.bitcast_convert_type(value, jnp.int32) + power)
    if dtype == "float32":
        return lax.bitcast_convert_type(bits, jnp.float32)
    halves = lax.bitcast_convert_type(bits + 0x8000, jnp.uint32) >> 16
    return lax.bitcast_convert_type(halves.astype(jnp.uint16), jnp.bfloat16)
