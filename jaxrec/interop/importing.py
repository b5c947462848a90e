"""From a published checkpoint and the log it was trained on to a run: items matched by id, parameters in our layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.config import RunConfig, save_config
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.readers.config import DataConfig
from jaxrec.data.readers.load import load_dataset
from jaxrec.errors import DataError
from jaxrec.interop.formats import FORMATS, ImportedModel, ImportOptions, Reader
from jaxrec.interop.torch_files import read_torch_file
from jaxrec.objectives import OBJECTIVES
from jaxrec.reporting.results import write_run
from jaxrec.training.adopt import adopt
from jaxrec.training.run_directory import data_sources, run_lock

#: Arrays with a row per item.
ITEM_ARRAYS = ("items/table", "output_table", "item_bias")


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """Outcome of an import.

    Attributes:
      results: the content of ``results.json``.
      model: the checkpoint in our terms.
      format_name: of the checkpoint.
      config: of the run.
      rows_left: item rows of the file without an item in the dataset.
    """

    results: dict[str, Any]
    model: ImportedModel
    format_name: str
    config: RunConfig
    rows_left: int

    def lines(self) -> list[str]:
        """Describe the mapping: tensors and options, assumptions, tensors without a counterpart."""
        encoder = self.config.encoder
        options = {
            f"--encoder.{name.replace('_', '-')}": value
            for name, value in vars(encoder).items()
            if value != getattr(type(encoder)(), name) and name != "attention"
        }
        if (heads := self.model.encoder.attention.heads) != 1:
            options["--attention.heads"] = heads
        options["--batches.max-length"] = self.model.max_length
        options["--batches.position-origin"] = self.model.position_origin
        lines = [f"{len(self.model.mapping)} tensors of format {self.format_name} imported as"]
        lines += [f"  {name} {value}" for name, value in options.items()]
        if self.model.unused:
            lines.append("no counterpart:")
            lines += [f"  {name}: {reason}" for name, reason in self.model.unused.items()]
        if self.rows_left:
            lines.append(
                f"{self.rows_left} rows of the item table belong to no item of the dataset: left out"
            )
        lines += [f"assumed: {setting}" for setting in self.model.assumed]
        return lines


def read_model(
    file: str | Path,
    format_name: str,
    options: ImportOptions = ImportOptions(),  # noqa: B008
) -> ImportedModel:
    """Read a checkpoint as an encoder's configuration and parameters.

    Args:
      file: that the format's code wrote.
      format_name: a name in `FORMATS`.
      options: settings that the file does not hold.

    Raises:
      CheckpointError: the file is refused, damaged, or of another architecture.
      ConfigError: the format does not exist, or an option does not fit.
    """
    form = FORMATS[format_name]()
    form.check_variant(options)
    return form.read(Reader(read_torch_file(file, form.inert), format_name), options)


def import_checkpoint(
    file: str | Path,
    format_name: str,
    config: RunConfig,
    workdir: str | Path,
    *,
    dataset: SequenceDataset | None = None,
    options: ImportOptions = ImportOptions(),  # noqa: B008
    item_ids: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ImportReport:
    """Turn a published checkpoint into a run that evaluates, recommends and can be trained on.

    Args:
      file: that the format's code wrote; nothing in it is executed.
      format_name: a name in `FORMATS`.
      config: data, split and evaluation of the run; its encoder, lengths and objective are replaced.
      workdir: run directory.
      dataset: in place of the one that ``config.data`` names.
      options: settings that the file does not hold.
      item_ids: original id of each row 1..V of the item table; None = as the file says, or the row's own number.
      overwrite: delete a run that is already in ``workdir``.

    Raises:
      CheckpointError: the file is refused, damaged, or of another architecture.
      DataError: an item of the dataset has no row in the file.
      ConfigError: the format does not exist, or an option does not fit.
      RunExistsError: ``workdir`` holds a run; with ``overwrite``, what is read here.
    """
    model = read_model(file, format_name, options)
    if dataset is None:
        dataset = load_dataset(config.data)
    else:  # the run names what loads it again
        config = dataclasses.replace(config, data=DataConfig.of(dataset))
    rows = item_rows(model, format_name, dataset, item_ids)
    config = dataclasses.replace(
        config,
        encoder=model.encoder,
        objective=OBJECTIVES[model.objective](),
        batches=dataclasses.replace(
            config.batches, max_length=model.max_length, position_origin=model.position_origin
        ),
        training=dataclasses.replace(config.training, init_from="", init_items="same"),
    )
    seeds = len(config.training.seeds)
    arrays = {
        name: np.repeat((array[rows] if name in ITEM_ARRAYS else array)[None], seeds, axis=0)
        for name, array in model.params.items()
    }
    sources = [("FILE", str(file)), *data_sources(config.data)]
    origin = {"imported": str(file), "format": format_name}
    with run_lock(Path(workdir)):
        fit = adopt(config, arrays, dataset, Path(workdir), origin, overwrite, sources)
        results = write_run(fit)
        save_config(config, Path(workdir) / "config.json")
        return ImportReport(results, model, format_name, config, model.item_rows + 1 - len(rows))


def item_rows(
    model: ImportedModel, format_name: str, dataset: SequenceDataset, item_ids: Sequence[str] | None
) -> np.ndarray:
    """int64[V+1], the row of the file's item table for each item of the dataset; row 0 for padding.

    Raises:
      DataError: ids are missing, repeated, or too many, or an item has no row.
    """
    if item_ids is None:
        item_ids = model.item_ids
    if item_ids is None:
        if not FORMATS[format_name].ids_are_rows:
            raise DataError(
                f"files of format {format_name} do not hold the ids of their items: give --items, a text file with the "
                f"original id of each of the {model.item_rows} rows 1, 2, ... of the item table, one per line"
            )
        item_ids = [str(row) for row in range(1, model.item_rows + 1)]
    if len(item_ids) != model.item_rows:
        raise DataError(
            f"--items must name each of the {model.item_rows} items of the checkpoint, got {len(item_ids)} ids"
        )
    row_of = {str(name): row for row, name in enumerate(item_ids, start=1)}
    if len(row_of) != len(item_ids):
        raise DataError(f"--items must name each item once, got {len(item_ids) - len(row_of)} repeated ids")
    missing = [name for name in dataset.item_ids if name not in row_of]
    if missing:
        raise DataError(
            f"{len(missing)} of the {dataset.n_items} items of --data have no row in the checkpoint, the first "
            f"{missing[0]!r} (its ids begin with {', '.join(map(repr, list(row_of)[:3]))}): give the data it was trained "
            "on, with ids as there, or --items with the original id of each row"
        )
    return np.array([0, *(row_of[name] for name in dataset.item_ids)], np.int64)
