"""New items for a trained run: rows of their own, made of similar items or of their vectors, and nothing else changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse

from jaxrec.config import RunConfig, save_config
from jaxrec.data.catalogue import AttributeTable, StringArray
from jaxrec.data.dataset import SequenceDataset, save_dataset
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.items import NewItems, read_new_items
from jaxrec.data.readers.vectors import (
    ATTRIBUTES,
    attribute_vectors,
    made_of_attributes,
    unit_rows,
    vectors_of,
)
from jaxrec.errors import ConfigError, DataError
from jaxrec.reporting.results import write_run
from jaxrec.runs import Run
from jaxrec.sharding import MeshConfig
from jaxrec.training.adopt import adopt
from jaxrec.training.run_directory import data_sources, run_lock
from jaxrec.training.state_sharding import ParameterSharding
from jaxrec.training.trees import flatten

#: Inside an extended run: its log, with the grown catalogue.
DATASET = "dataset"

By = Literal["auto", "similar", "attributes", "vectors"]


@dataclasses.dataclass(frozen=True)
class Extension:
    """Outcome of an extension.

    Attributes:
      results: the content of ``results.json`` of the new run.
      items: original ids of the new items.
      by: source of their rows: "content" (the run's own map of vectors), "similar", "attributes" or "vectors".
      neighbours: for each new item the ids of the items whose mean its row is; empty for "content".
    """

    results: dict[str, Any]
    items: list[str]
    by: str
    neighbours: dict[str, list[str]]

    def lines(self) -> list[str]:
        """The new items, and where their rows come from."""
        if self.by == "content":
            return [f"{len(self.items)} items added; their rows are made of their vectors"]
        lines = [f"{len(self.items)} items added; the row of each is the mean of similar items, by {self.by}"]
        for name in self.items[:5]:
            close = self.neighbours[name]
            lines.append(f"  {name}: {', '.join(close[:5])}{', ...' if len(close) > 5 else ''}")
        return lines


def extend_run(
    run: str | Path | Run,
    items: Any,
    workdir: str | Path,
    *,
    by: By = "auto",
    neighbours: int = 10,
    data: DataConfig = DataConfig(),  # noqa: B008
    overwrite: bool = False,
) -> Extension:
    """Add items to the catalogue of a run, so that it ranks them; the rows of all others stay as they are, bit for bit.

    Args:
      run: a finished run, whose dataset can be loaded.
      items: a file or table with one row per new item: its id and what the catalogue has of others (title, attributes), and
        for ``by`` "similar" a column ``similar`` with ids of known items, separated as attributes are.
      workdir: run directory to write, with a copy of the log.
      by: what makes the row of a new item where the run has no vectors of items: the mean of the items that its table names
        ("similar"), or of the ``neighbours`` closest by attributes or by vectors. "auto" takes the first that is there.
      neighbours: number of closest items.
      data: columns of ``items``, as for ``data.item_table``; ``item_vectors`` names a file with the vectors of the new
        items (and of the known ones, for ``by`` "vectors").
      overwrite: delete a run that is already in ``workdir``.

    Raises:
      DataError: an id is known already or given twice, or there is nothing to make a row of.
      ConfigError: ``neighbours`` is below 1.
      RunExistsError: ``workdir`` holds a run; with ``overwrite``, what is read here.
    """
    if neighbours < 1:
        raise ConfigError(f"--neighbours must be at least 1, got {neighbours}")
    opened = run if isinstance(run, Run) else Run(run)
    if opened.config.encoder.item_codes.on:
        raise ConfigError(
            f"the run {opened.path} composes its items of codes, of which new ones have none: expected a run with "
            f"--encoder.item-codes.method none, got {opened.config.encoder.item_codes.method!r}; train on the grown log"
        )
    old = opened.dataset
    new = read_new_items(dataclasses.replace(data, item_table=""), items)
    known = [name for name in new.ids if old.item_index(name) is not None]
    if known:
        raise DataError(
            f"--items must hold new items only: {len(known)} of {len(new.ids)} are in the catalogue of {opened.path}, the "
            f"first {known[0]!r}; leave them out"
        )
    attributes = _grown_attributes(old.attributes, new)
    content = _content(opened, old, new, attributes, data)
    close: list[np.ndarray] = []
    if content is None:
        by, close = _neighbours(old, new, attributes, by, neighbours, data)
    dataset = _grown(old, new, attributes, content)
    arrays = _grown_arrays(opened, close, content, len(new.ids))
    workdir = Path(workdir)
    config = _config(opened.config, workdir)
    source = by if content is None else "content"
    table = str(items) if isinstance(items, (str, Path)) else ""
    read = (*data_sources(opened.config.data), *data_sources(data))
    sources = [("RUN", str(opened.path)), ("--items", table), *read]
    origin = {"extended": str(opened.path), "items": len(new.ids), "by": source}
    with run_lock(workdir):
        fit = adopt(config, arrays, dataset, workdir, origin, overwrite, sources)
        save_dataset(dataset, workdir / DATASET)
        results = write_run(fit)
        save_config(config, workdir / "config.json")
    names = [old.catalogue.original_ids(rows) for rows in close]
    return Extension(results, list(new.ids), source, dict(zip(new.ids, names, strict=False)))


def _config(config: RunConfig, workdir: Path) -> RunConfig:
    return dataclasses.replace(
        config,
        data=DataConfig(source=str(workdir / DATASET)),
        mesh=MeshConfig(),
        training=dataclasses.replace(config.training, init_from="", init_items="same"),
    )


def _grown_attributes(old: AttributeTable | None, new: NewItems) -> AttributeTable | None:
    """The table with rows for the new items; attributes that are new are numbered last."""
    if old is None:
        return None
    lists = new.attributes or [[] for _ in new.ids]
    numbers = {name: number for number, name in enumerate(old.names, start=1)}
    values = [[numbers.setdefault(name, len(numbers) + 1) for name in dict.fromkeys(row)] for row in lists]
    ends = old.offsets[-1] + np.cumsum([len(row) for row in values])
    flat = np.array([value for row in values for value in row], np.int32)
    return AttributeTable(
        np.concatenate([old.offsets, ends]).astype(np.int64),
        np.concatenate([old.values, flat]).astype(np.int32),
        list(numbers),
    )


def _content(
    run: Run, old: SequenceDataset, new: NewItems, attributes: AttributeTable | None, data: DataConfig
) -> np.ndarray | None:
    """float32[n, C], vectors of the new items for a run that makes its items of vectors; None for another run."""
    width = old.vector_width
    if not width:
        return None
    if data.item_vectors in ("", ATTRIBUTES) and made_of_attributes(old.attributes, old.item_vectors):
        assert attributes is not None
        vectors = attribute_vectors(attributes)[old.n_items :, :width]
        bare = np.flatnonzero(~vectors.any(axis=1))
        if len(bare):
            raise DataError(
                f"item {new.ids[int(bare[0])]!r} of --items has no attribute that the run knows, and the run makes items "
                "of attributes: name some in the columns that --data.attribute-columns gives, or give --data.item-vectors "
                "FILE"
            )
        return vectors
    if not data.item_vectors:
        raise DataError(
            f"the run {run.path} makes its items of vectors of {width} numbers: give those of the new items with "
            "--data.item-vectors FILE"
        )
    vectors = vectors_of(new.ids, None, data)
    if vectors.shape[1] != width:
        raise DataError(
            f"--data.item-vectors {data.item_vectors} must hold vectors of {width} numbers as the run's are, got "
            f"{vectors.shape[1]}: make them by the same model"
        )
    return vectors


def _neighbours(
    old: SequenceDataset,
    new: NewItems,
    attributes: AttributeTable | None,
    by: By,
    count: int,
    data: DataConfig,
) -> tuple[By, list[np.ndarray]]:
    """Known items whose mean makes each new row."""
    if by == "auto":
        by = "similar" if new.similar else "vectors" if data.item_vectors else "attributes"
    if by == "similar":
        return by, [_named(old, new, row) for row in range(len(new.ids))]
    if by == "vectors":
        if not data.item_vectors:
            raise DataError("--by vectors needs --data.item-vectors FILE with vectors of known and new items")
        units = unit_rows(vectors_of([*old.item_ids, *new.ids], None, data))
    else:
        if attributes is None or not new.attributes:
            raise DataError(
                "there is nothing to make the rows of new items of: give a column 'similar' in --items, or "
                "--data.attribute-columns where the run's catalogue has attributes, or --data.item-vectors FILE"
            )
        units = _unit_attributes(attributes)
    known = units[: old.n_items]
    chosen = []
    for row in range(len(new.ids)):
        # Rounded, so that equally close items are taken in their order.
        closeness = np.round(known @ _dense(units[old.n_items + row]), 6)
        if closeness.max() <= 0:
            raise DataError(
                f"item {new.ids[row]!r} of --items shares nothing with any known item, by {by}: name similar items in a "
                "column 'similar'"
            )
        best = np.argsort(-closeness, kind="stable")[:count]
        chosen.append(best[closeness[best] > 0] + 1)
    return by, chosen


def _unit_attributes(attributes: AttributeTable) -> sparse.csr_array:
    """float64[V, A], 1 where an item has an attribute, in rows of length 1; most items have few of many attributes."""
    offsets = np.asarray(attributes.offsets[1:], np.int64)
    columns = np.asarray(attributes.values, np.int64) - 1
    shape = (len(offsets) - 1, attributes.n_attributes)
    table = sparse.csr_array((np.ones(len(columns)), columns, offsets), shape=shape)
    lengths = np.sqrt(np.maximum(np.diff(offsets), 1))
    return sparse.csr_array(table.multiply(1 / lengths[:, None]))


def _dense(row: np.ndarray | sparse.csr_array) -> np.ndarray:
    return row if isinstance(row, np.ndarray) else row.toarray().ravel()


def _named(old: SequenceDataset, new: NewItems, row: int) -> np.ndarray:
    names = new.similar[row] if new.similar else []
    rows = old.item_indices(names)
    if not len(rows) or not rows.all():
        unknown = next((name for name, item in zip(names, rows, strict=True) if not item), None)
        came = f"the unknown id {unknown!r}" if unknown is not None else "none"
        raise DataError(
            f"column 'similar' of --items must name known items for {new.ids[row]!r}, got {came}; use ids of the run's "
            "catalogue"
        )
    return rows


def _grown(
    old: SequenceDataset, new: NewItems, attributes: AttributeTable | None, content: np.ndarray | None
) -> SequenceDataset:
    """The same log with a longer catalogue."""
    titles = None
    if old.item_titles is not None:
        titles = StringArray.of([*old.item_titles, *(new.titles or [""] * len(new.ids))])
    vectors = None
    if content is not None:
        assert old.item_vectors is not None
        vectors = np.concatenate([old.item_vectors, content])
    return dataclasses.replace(
        old,
        item_ids=StringArray.of([*old.item_ids, *new.ids]),
        item_titles=titles,
        attributes=attributes,
        item_vectors=vectors,
        meta={"name": old.name, "steps": [*_steps(old), {"step": "extended", "items": len(new.ids)}]},
    )


def _steps(dataset: SequenceDataset) -> Sequence[Any]:
    steps = dataset.meta.get("steps", [])
    return steps if isinstance(steps, (list, tuple)) else []


def _grown_arrays(
    run: Run, close: Sequence[np.ndarray], content: np.ndarray | None, count: int
) -> dict[str, np.ndarray]:
    """Parameters by name, every table with rows for the new items at its end."""
    arrays = {name: np.asarray(array) for name, array in flatten(run.best_params).items()}
    for name, axis in ParameterSharding(run.task).tables().items():
        table = arrays[name][:, : run.task.spec.n_items + 1]  # a mesh adds rows
        if axis != 1:
            raise ConfigError(
                f"the encoder has a parameter {name} whose items do not lie along its first axis: it cannot be extended"
            )
        if name.endswith("items/content"):
            assert content is not None
            rows = np.broadcast_to(unit_rows(content), (len(table), *content.shape))
        elif content is not None:  # the change that a known item is allowed
            rows = np.zeros((len(table), count, *table.shape[2:]), table.dtype)
        else:
            means = [table[:, items].mean(axis=1, dtype=np.float64) for items in close]
            rows = np.stack(means, axis=1)
        arrays[name] = np.concatenate([table, rows.astype(table.dtype)], axis=1)
    return arrays
