"""Matrix products with float32 or bfloat16 operands and float32 sums, forward and backward."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(
    equation: str, x: Float[Array, ...], y: Float[Array, ...], dtype: Any = jnp.float32
) -> Float[Array, ...]:
    """``jnp.einsum(equation, x, y)`` with operands rounded to ``dtype`` and summed in float32.

    The derivative of JAX multiplies the float32 cotangent with the ``dtype`` operand, which leaves the fast units of
    an accelerator unused; here the cotangent is rounded too.

    Args:
      equation: two operands and one result, letters only; every index appears in two of the three terms.
      x: left operand.
      y: right operand.
      dtype: precision of the operands; see `operand` for what a CPU does.

    Returns:
      The product, float32.
    """
    return jnp.einsum(equation, operand(x, dtype), operand(y, dtype), preferred_element_type=jnp.float32)


def operand(x: Float[Array, "*size"], dtype: Any) -> Float[Array, "*size"]:
    """Round an operand of a product to ``dtype``; a CPU then holds the rounded numbers in float32.

    XLA's CPU backend has no kernel for some transposed batched bfloat16 products, and is slower in bfloat16 than in
    float32. Products of rounded operands summed in float32 are the same numbers either way, so a CPU shows what an
    accelerator computes.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return x.astype(jnp.float32)
    if jax.default_backend() != "cpu":
        return x.astype(dtype)
    precision = jnp.finfo(dtype)
    # A pair of conversions would be optimised away; this is not.
    return lax.reduce_precision(x.astype(jnp.float32), precision.nexp, precision.nmant)


def _forward(equation: str, x: Array, y: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return einsum(equation, x, y, dtype), (x, y)


def _backward(
    equation: str, dtype: Any, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = operands
    terms, result = equation.split("->")
    left, right = terms.split(",")
    x_bar = einsum(f"{result},{right}->{left}", cotangent, y, dtype)
    y_bar = einsum(f"{left},{result}->{right}", x, cotangent, dtype)
    return x_bar.astype(x.dtype), y_bar.astype(y.dtype)


einsum.defvjp(_forward, _backward)


def matmul(
    x: Float[Array, "*rows I"], kernel: Float[Array, "I O"], dtype: Any = jnp.float32
) -> Float[Array, "*rows O"]:
    """``x [..., I] @ kernel [I, O]`` by `einsum`."""
    leading = "abcdefgh"[: x.ndim - 1]
    return einsum(f"{leading}i,io->{leading}o", x, kernel, dtype)
