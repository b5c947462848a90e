"""Batches: the arrays that an encoder reads, the options that shape them, and the filling of rows from the log."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from jaxrec.data.packing import MAX_SEGMENTS
from jaxrec.errors import ConfigError
from jaxrec.options import Idle, Range, Search, validate

PositionOrigin = Literal["start", "end"]

#: Former names of fields, as they occur in the configuration of an older run.
RENAMED_FIELDS = {"batches.origin": "batches.position_origin"}


class Batch(NamedTuple):
    """Pytree of [B, L] arrays for every encoder and every training mode; int32 but for ``weights`` (float32).

    Attributes:
      items: interacted items, 0 = padding.
      positions: index inside the own sequence, counted from its start or from its end (``position_origin``).
      segments: 0 = padding, 1.. = number of the sequence in the row; the positions of a sequence are adjacent.
      targets: the item to predict, 0 = none here.
      weights: weight of the target in the loss, 0 where there is none.
      timestamps: seconds since the dataset's first event, or None.
      users: index of the user; -1 on padding, and where the user is new or not named.
    """

    items: Any
    positions: Any
    segments: Any
    targets: Any
    weights: Any
    timestamps: Any = None
    users: Any = None


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Cutting of sequences into training batches.

    Attributes:
      mode: packed puts several sequences into a row, padded one; prefix packs every prefix of every sequence, with its last
        target (or see prefix_targets). With position_origin end each last target sees positions relative to itself
        (Revisiting SASRec, experiment E1); with start the positions are those of packed mode.
      batch_size: B, rows of a training step.
      max_length: L, positions of a row and the longest history that the model sees.
      position_origin: positions count from the start or from the end of a sequence (the original SASRec counts from the
        end).
      long_histories: of a sequence longer than L, train on the last L interactions or on all of them, cut into consecutive
        windows.
      targets: train on all time steps, or on the last of each sequence only.
      prefix_targets: in prefix mode, train on the last target of each prefix, or on all of its time steps: early targets
        then count once for every longer prefix.
      prefixes_per_sequence: in prefix mode, prefixes of each sequence that an epoch draws; 0 = all.
      max_segments: most sequences in one row.
      shares: equal parts of the log, user after user, from which the rows of every batch come in equal numbers, the first
        rows from the first share. Of several processes each then reads its own shares only, and ranks the held-out cases of
        its own part. It changes the batches, so it belongs to the run, whatever the number of processes; a share that ends
        early repeats rows until the longest ends.
    """

    mode: Literal["packed", "padded", "prefix"] = "packed"
    batch_size: Annotated[int, Range("[1, inf)"), Search("32,64,128,256")] = 64
    max_length: Annotated[int, Range("[1, inf)")] = 50
    position_origin: PositionOrigin = "start"
    long_histories: Annotated[Literal["last", "windows"], Idle("mode", ("prefix",))] = "last"
    targets: Annotated[Literal["all", "last"], Idle("mode", ("prefix",))] = "all"
    prefix_targets: Literal["last", "all"] = "last"
    prefixes_per_sequence: Annotated[int, Range("[0, inf)"), Idle("mode", ("packed", "padded"))] = 0
    max_segments: Annotated[int, Range("[1, inf)"), Idle("mode", ("padded",))] = MAX_SEGMENTS
    shares: Annotated[int, Range("[1, inf)")] = 1

    def __post_init__(self) -> None:
        """Check each option."""
        validate(self, "batches")
        if self.batch_size % self.shares:
            raise ConfigError(
                f"--batches.batch-size must be a multiple of --batches.shares, got {self.batch_size} and {self.shares}"
            )
        if self.prefix_targets == "all" and self.mode != "prefix":
            raise ConfigError(
                f"--batches.prefix-targets all needs --batches.mode prefix, got {self.mode}; set it, or use "
                "--batches.targets"
            )

    @property
    def last_only(self) -> bool:
        """Whether only the last target of each sequence of a row counts."""
        return (self.prefix_targets if self.mode == "prefix" else self.targets) == "last"


def gather_batch(  # noqa: PLR0913 - one call fills a batch of any kind
    rows: Any,
    items: Any,
    *,
    max_length: int,
    position_origin: PositionOrigin = "start",
    last_only: Any = False,
    with_targets: bool = True,
    pad_left: bool = False,
    timestamps: Any = None,
    xp: Any = np,
) -> Batch:
    """Fill the rows of a plan from the log.

    Args:
      rows: `PackedRows` with arrays of ``xp``; the lengths of a row add up to at most ``max_length``.
      items: int32[N], the log's items, user after user and oldest first.
      max_length: L, the width of the batch.
      position_origin: what ``positions`` count from: "start" (0 = first of the sequence) or "end" (0 = newest).
      last_only: weight only the last target of each sequence (prefix mode, or the last-position loss).
      with_targets: False for histories to be scored: targets and weights are zero.
      pad_left: padding before the sequences rather than after them.
      timestamps: int32[N] aligned with ``items``, or None.
      xp: ``numpy`` or ``jax.numpy``.

    Returns:
      A `Batch` of [R, L] arrays.
    """
    lengths = rows.lengths.astype(np.int32)
    stops = xp.cumsum(lengths, axis=1, dtype=np.int32)
    total = stops[:, -1:]
    column = xp.arange(max_length, dtype=np.int32)[None, :] + xp.zeros_like(total)
    if pad_left:
        column = column - (max_length - total)
    real = (column >= 0) & (column < total)
    slot = (column[:, :, None] >= stops[:, None, :]).sum(axis=2, dtype=np.int32)
    slot = xp.clip(slot, 0, lengths.shape[1] - 1)

    def of_sequence(values: Any) -> Any:
        return xp.take_along_axis(values, slot, axis=1)

    offset = column - of_sequence(stops - lengths)
    last_index = items.shape[0] - 1
    # A history to be scored may end in a position of its own after the log's last interaction.
    place = xp.clip(xp.where(real, of_sequence(rows.starts) + offset, 0), 0, last_index)
    remaining = of_sequence(lengths) - 1 - offset
    zero = np.int32(0)
    if with_targets:
        targets = xp.where(real, items[xp.clip(place + 1, 0, last_index)], zero).astype(np.int32)
        counts = real & ((remaining == 0) | xp.logical_not(last_only))
        targets = xp.where(counts, targets, zero)
        weights = counts.astype(np.float32)
    else:
        targets = xp.zeros_like(column)
        weights = xp.zeros(column.shape, np.float32)
    return Batch(
        items=xp.where(real, items[place], zero).astype(np.int32),
        positions=xp.where(real, offset if position_origin == "start" else remaining, zero).astype(np.int32),
        segments=xp.where(real, slot + 1, zero).astype(np.int32),
        targets=targets,
        weights=weights,
        timestamps=None if timestamps is None else xp.where(real, timestamps[place], zero).astype(np.int32),
        users=xp.where(real, of_sequence(rows.users), np.int32(-1)).astype(np.int32),
    )
