"""Matrix products with float32 or bfloat16 operands and float32 sums, forward and backward.

"float32" is that of JAX's default precision: a GPU with tensor cores may round such operands to TensorFloat-32 (10 bits), a
TPU to bfloat16, unless JAX's ``jax_default_matmul_precision`` is "highest". The scores of an evaluation have exact operands
on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

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
    return _product(equation, operand(x, dtype), operand(y, dtype))


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


def _product(equation: str, x: Array, y: Array) -> Array:
    """The product of two operands, in the order that moves the fewest elements.

    Batched products of a CPU want ``[batch, rows, summed] . [batch, summed, columns]``; XLA copies an operand with another
    order of axes, which costs as much as the product. With the operands exchanged, the large one often needs no copy, such
    as ``[L, L]`` scores beside ``[L, d]`` values in a backward pass.
    """
    if not all(isinstance(size, int) for size in x.shape + y.shape):
        # Sizes that an export leaves open cannot be compared.
        return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
    terms, result = equation.split("->")
    left, right = terms.split(",")
    size = dict(zip(left + right, x.shape + y.shape, strict=True))
    plans = [_Plan.of(left, right, result, size), _Plan.of(right, left, result, size)]
    if plans[1].moved < plans[0].moved:
        return plans[1].run(y, x)
    return plans[0].run(x, y)


class _Plan(NamedTuple):
    """One order of the operands of a product.

    Attributes:
      moved: elements that are copied into another order of axes.
      first, second: axes of the operands, such as "bij".
      batch, summed: axes in both operands and the result, and in both operands alone.
      result: axes of the result.
    """

    moved: int
    first: str
    second: str
    batch: str
    summed: str
    result: str

    @classmethod
    def of(cls, first: str, second: str, result: str, size: Mapping[str, int]) -> _Plan:
        """The plan for axes of these sizes; axes of size 1 need no move."""
        batch = "".join(axis for axis in result if axis in first and axis in second)
        summed = "".join(axis for axis in first if axis in second and axis not in result)
        rows = "".join(axis for axis in first if axis in result and axis not in batch)
        columns = "".join(axis for axis in second if axis in result and axis not in batch)

        def moved(axes: str, *orders: str) -> int:
            long = [axis for axis in axes if size[axis] > 1]
            fits = any(long == [axis for axis in order if size[axis] > 1] for order in orders)
            return 0 if fits else math.prod(size[axis] for axis in axes)

        # Without a batch, the product reads its operands in either order.
        turned = [] if batch else [summed + rows, columns + summed]
        total = (
            moved(first, batch + rows + summed, *turned)
            + moved(second, batch + summed + columns, *turned)
            + moved(result, batch + rows + columns)
        )
        return cls(total, first, second, batch, summed, result)

    def run(self, x: Array, y: Array) -> Array:
        """The product of the first operand and the second."""
        batch, summed = self.batch, self.summed
        rows = [axis for axis in self.first if axis not in batch + summed]
        columns = [axis for axis in self.second if axis not in batch + summed]

        def places(axes: str, term: str) -> list[int]:
            return [term.index(axis) for axis in axes]

        out = lax.dot_general(
            x,
            y,
            (
                (places(summed, self.first), places(summed, self.second)),
                (places(batch, self.first), places(batch, self.second)),
            ),
            preferred_element_type=jnp.float32,
        )
        return lax.transpose(out, places(self.result, batch + "".join(rows + columns)))


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
    # With the leading axes as one, XLA makes no turned copy of x for the gradient of the kernel.
    y = einsum("ai,io->ao", x.reshape(-1, x.shape[-1]), kernel, dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[1])
