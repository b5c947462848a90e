"""The order of items with equal scores: a fixed pseudo-random order, the same for every model on a dataset.

Items are numbered by their first appearance, so low numbers are popular: an order by number would give a scorer that
knows nothing the popular items first. Each item has a key instead, a one-to-one function of its number and of a seed that
is read off the dataset's fingerprint; of two equal scores the lower key comes first. So a constant scorer has, over seeds,
the hits of chance, and the same ones in every run and on any number of devices.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def tie_seed(fingerprint: str) -> int:
    """The seed of the order, 0 to 2^31 - 1, from a dataset's fingerprint (hexadecimal)."""
    return int(fingerprint[:8], 16) & 0x7FFFFFFF


def tie_keys(items: Any, seed: int, xp: Any = np) -> Any:
    """uint32, the key of each item of an integer array; different for different items.

    Args:
      items: numbers of items, at least 0.
      seed: see `tie_seed`.
      xp: ``numpy`` or ``jax.numpy``.
    """
    keys = xp.asarray(items).astype(xp.uint32) ^ xp.uint32(seed)
    for shift, factor in ((16, 0x7A4B2D35), (13, 0x9C8E6F4B), (15, 0x3F5D1E27)):
        keys = (keys ^ (keys >> xp.uint32(shift))) * xp.uint32(factor)
    return keys ^ (keys >> xp.uint32(16))
