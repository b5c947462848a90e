"""Matrix products whose operands are float32 or bfloat16 and whose sums are float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, kernel: Array, dtype: Any = jnp.float32) -> Array:
    """``x [..., I] @ kernel [I, O]`` with operands in ``dtype`` and the sum in float32, forward and backward.

    The product rule that JAX derives multiplies the float32 cotangent with the ``dtype`` operand, which leaves the fast
    units unused; here the cotangent is cast too.
    """
    return _product(x, kernel, dtype)


def _product(x: Array, kernel: Array, dtype: Any) -> Array:
    return lax.dot_general(
        x.astype(dtype),
        kernel.astype(dtype),
        (((x.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def _matmul_forward(x: Array, kernel: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel, dtype), (x, kernel)


def _matmul_backward(dtype: Any, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    x_bar = _product(cotangent, kernel.T, dtype)
    leading = tuple(range(x.ndim - 1))
    kernel_bar = lax.dot_general(
        x.astype(dtype),
        cotangent.astype(dtype),
        ((leading, leading), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return x_bar.astype(x.dtype), kernel_bar.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def operand_dtype(dtype: Any, backend: str) -> Any:
    """The precision in which `contract` may hold its operands.

    On a CPU float32 alone: XLA refuses some transposed batched bfloat16 products only when they run
    ("Unsupported element type for DotThunk"), and groups of rows in float32 are faster there than bfloat16
    is. `jaxrec.nn.precision.matmul`, with its two-dimensional products, keeps to ``dtype``.
    """
    return jnp.float32 if backend == "cpu" else dtype


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(equation: str, x: Array, y: Array, dtype: Any) -> Array:
    """``einsum(equation, x, y)`` with operands in ``dtype`` and sums in float32, forward and backward.

    Every index must appear in two of the three terms. See `operand_dtype` for what a CPU does.
    """
    dtype = operand_dtype(dtype, jax.default_backend())
    return jnp.einsum(equation, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


def _contract_forward(equation: str, x: Array, y: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return contract(equation, x, y, dtype), (x, y)


def _contract_backward(
    equation: str, dtype: Any, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = saved
    operands, result = equation.split("->")
    left, right = operands.split(",")
    x_bar = contract(f"{result},{right}->{left}", cotangent, y, dtype)
    y_bar = contract(f"{left},{result}->{right}", x, cotangent, dtype)
    return x_bar.astype(x.dtype), y_bar.astype(y.dtype)


contract.defvjp(_contract_forward, _contract_backward)


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
