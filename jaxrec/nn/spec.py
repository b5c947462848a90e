"""Sizes of the data that a model is built for."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Sizes that an encoder is built for, read off the dataset, the batches and the task.

    Attributes:
      n_items: V, items of the catalogue, with ids 1..V; 0 is padding.
      max_length: L, positions of a row at most.
      position_origin: what ``Batch.positions`` counts from.
      n_users: U, users of the dataset, with indices 0..U-1.
      n_attributes: A, attributes of items, with ids 1..A; 0 where the dataset has none.
      n_special: tokens beside the items (such as a mask), with ids V+1..V+n_special; they are never candidates.
      vector_width: C, numbers in the vector that the dataset has for each item; 0 where it has none.
      has_timestamps: whether ``Batch.timestamps`` is given.
    """

    n_items: int
    max_length: int
    position_origin: Literal["start", "end"] = "start"
    n_users: int = 0
    n_attributes: int = 0
    n_special: int = 0
    vector_width: int = 0
    has_timestamps: bool = False
