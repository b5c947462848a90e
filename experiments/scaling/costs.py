"""Simple model of a training step: operations, bytes and collective bytes, with the measured limits of a machine.

The model counts matrix products exactly and everything else by passes over arrays, with constants chosen beforehand
(`PASSES`, `SCORE_PASSES`), not fitted. Time is operations over the rate of a large matrix product plus bytes over the rate
of a copy: nothing overlaps, and every product reaches the rate of a large one. So it is a yardstick, not a forecast.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

#: Reads and writes of a float32 [T, D] array in one layer, forward and backward: products' operands and results,
#: norms, residuals, dropout, activation.
PASSES = 60
#: Reads and writes of the [T, H, L] scores of attention that reach memory, forward and backward.
SCORE_PASSES = 6
#: Operations of one exponential, with the mask and the sum beside it.
EXPONENTIAL = 20


#: Arrays [T, D] that each layer holds for its backward pass, as many more in all around the layers; and of each query
#: position in a layer of Multi-Item-Query attention.
HELD, HELD_BY_QUERY = 20, 7
#: Positions whose scores the exact loss holds at once, and MiB that it holds at most.
LOSS_CHUNK, LOSS_MIB = 320, 58


class Cost(NamedTuple):
    """Of one step on one device."""

    operations: float
    bytes: float
    collective_bytes: float = 0.0


class Limits(NamedTuple):
    """Of one device: the fastest of several measurements of a large matrix product, and of a copy (read and write)."""

    float32_operations_per_second: float
    bfloat16_operations_per_second: float
    bytes_per_second: float

    def operations_per_second(self, dtype: str) -> float:
        """Of matrix products with operands of ``dtype``."""
        return (
            self.bfloat16_operations_per_second if dtype == "bfloat16" else self.float32_operations_per_second
        )


@dataclasses.dataclass(frozen=True)
class Shape:
    """A training step.

    Attributes:
      rows: B, of the whole batch.
      length: L; all B L positions are taken to be real.
      width: D.
      layers: of the encoder.
      items: V.
      query_positions: m of Multi-Item-Query attention; 0 = softmax attention.
      heads: of the attention.
      ffn_width: 0 = D.
      dtype: operands of products.
      data, item: axes of the mesh.
      negatives: of sampled softmax, shared by the batch; 0 = exact cross-entropy.
      users: of the dataset; 0 = four batches of them.
    """

    rows: int = 32
    length: int = 50
    width: int = 64
    layers: int = 2
    items: int = 4000
    query_positions: int = 0
    heads: int = 1
    ffn_width: int = 0
    dtype: str = "float32"
    data: int = 1
    item: int = 1
    negatives: int = 0
    users: int = 0


def parameters(shape: Shape) -> tuple[int, int]:
    """(of the item table, of all else), without biases and norms."""
    d, m = shape.width, shape.query_positions
    attention = (3 + max(m, 1) + (3 if m else 0)) * d * d
    return (shape.items + 1) * d, shape.layers * (
        attention + 2 * d * (shape.ffn_width or d)
    ) + shape.length * d


def step_cost(shape: Shape) -> Cost:
    """Of one step, forward, backward and Adam, with exact cross-entropy over the catalogue, for one device."""
    d, m, length = shape.width, shape.query_positions, shape.length
    inner, queries = shape.ffn_width or d, max(m, 1)
    tokens = shape.rows * length / shape.data
    # A product of [a, b] by [b, c] is 2 a b c operations; the backward pass has two for each of the forward pass.
    layer = 2 * d * d * (3 + queries) + 4 * length * d * queries + 4 * d * inner
    if m:
        layer += 3 * queries * 2 * d * d + 4 * queries * queries * d
    encoder = 3 * tokens * shape.layers * layer
    own_items = shape.items / shape.item
    loss = tokens * (shape.negatives or own_items) * (6 * d + EXPONENTIAL)
    table, dense = parameters(shape)
    held = table / shape.item + dense
    activations = tokens * shape.layers * 4 * (PASSES * d + SCORE_PASSES * shape.heads * length * queries)
    adam = 28 * held  # reads parameter, gradient and two moments, writes three
    # Read for each chunk of positions; with negatives the gradient of the table is filled with zeros alone.
    catalogue = 4 * own_items * d * (1.0 if shape.negatives else 3 * max(1.0, tokens / 640))
    return Cost(encoder + loss, activations + adam + catalogue, collective_bytes(shape, table, dense, tokens))


def temporary_bytes(shape: Shape) -> float:
    """Of one step on one device, beside the state: gradients, what the backward pass needs, and scores of the loss."""
    tokens = shape.rows * shape.length / shape.data
    table, dense = parameters(shape)
    gradients = 4 * (table / shape.item + dense)
    arrays = HELD * (shape.layers + 1) + HELD_BY_QUERY * shape.layers * shape.query_positions
    held = 4 * arrays * tokens * shape.width
    chunk = min(tokens, LOSS_CHUNK)
    scores = 4 * (tokens * shape.negatives if shape.negatives else min(chunk * shape.items, LOSS_MIB * 2**18))
    return gradients + held + scores


def resident_bytes(shape: Shape, log_length: int) -> float:
    """Of the log on the device: the item of each interaction, int32, and a count of each item, float32."""
    return 4 * ((shape.users or 4 * shape.rows) * log_length + shape.items + 1)


def collective_bytes(shape: Shape, table: int, dense: int, tokens: float) -> float:
    """Sent by one device: ring all-reduces of gradients over ``data``, of vectors and their gradients over ``item``."""

    def all_reduce(size: float, devices: int) -> float:
        return 2 * (devices - 1) / devices * 4 * size

    gradients = all_reduce(table / shape.item + dense, shape.data)
    vectors = all_reduce(
        tokens * shape.width, shape.item
    )  # inputs looked up; and again the loss's pull on the states
    return gradients + 3 * vectors + 3 * all_reduce(tokens, shape.item)


def seconds(cost: Cost, shape: Shape, limits: Limits, link_bytes_per_second: float = 0.0) -> float:
    """Predicted seconds of a step."""
    took = cost.operations / limits.operations_per_second(shape.dtype) + cost.bytes / limits.bytes_per_second
    return took + (cost.collective_bytes / link_bytes_per_second if link_bytes_per_second else 0.0)


def fastest(call: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the fastest of several calls, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return min(times)


def spread(call: Callable[[], Any], repeats: int, steps: int) -> dict[str, float]:
    """Median, least and most seconds per step over calls of several steps; the first call is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append((time.perf_counter() - begin) / steps)
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def measure_limits(quick: bool = False) -> Limits:
    """Measured limits of this device: products of [n, n] by [n, n], and a copy of an array larger than the caches."""
    on_cpu = jax.default_backend() == "cpu"
    n = 256 if quick else 2048 if on_cpu else 8192
    rates = {}
    for dtype in ("float32", "bfloat16"):
        a = jnp.ones((n, n), dtype)

        @jax.jit
        def product(a: Array) -> Array:
            return lax.dot_general(a, a, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

        rates[dtype] = 2 * n**3 / fastest(lambda a=a, product=product: product(a))
    size = 1 << (20 if quick else 26 if on_cpu else 30)
    x = jnp.ones((size // 4,), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    return Limits(rates["float32"], rates["bfloat16"], 2 * size / fastest(lambda: copy(x)))
