"""Digests of the content of arrays, computed on the devices that hold them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrec.sharding import in_turn

#: Odd multipliers of the coordinates along the axes of an array.
_AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0x2545F491, 0x68E31DA5, 0x5851F42D)


def content_digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """16 hexadecimal digits per array, by name.

    A digest is two sums of the array's bits, each element weighted by an odd number that depends on its
    coordinates, modulo 2^32: any change of a single element changes it. Rows of zeros do not, so an item table
    has one digest whatever the mesh pads it to. The sums run where the arrays lie, one pass over the memory.
    """
    sums = jax.device_get({name: in_turn(_weighted_sums(x)) for name, x in arrays.items()})
    return {name: f"{int(first):08x}{int(second):08x}" for name, (first, second) in sums.items()}


# Compiled for each shape and not for all arrays together: the parameters, their best values and the moments of the
# optimiser share programs.
@jax.jit
def _weighted_sums(x: Array) -> Array:
    """uint32[2]."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = functools.reduce(
        jnp.add,
        (
            lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(_AXES[axis])
            for axis in range(bits.ndim)
        ),
        jnp.zeros(bits.shape, jnp.uint32),
    )
    sums = []
    for salt in (0x3C6EF372, 0xA54FF53A):
        weights = place ^ jnp.uint32(salt)
        weights = (weights ^ (weights >> 15)) * jnp.uint32(0x2C1B3C6D)
        weights = (weights ^ (weights >> 12)) | jnp.uint32(1)
        sums.append(jnp.sum(bits * weights, dtype=jnp.uint32))
    return jnp.stack(sums)
