"""Options of reading a log: the section "data" of a run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxrec.data.dataset import LOADED_WITH, SequenceDataset, check_dataset
from jaxrec.data.readers.tables import parquet_files
from jaxrec.data.readers.text import TextLayout
from jaxrec.data.readers.times import TimeUnit
from jaxrec.errors import ConfigError
from jaxrec.files import is_directory
from jaxrec.options import Range, validate

#: Source of a run that was trained on a dataset handed over by a script.
IN_MEMORY = "(a dataset in memory)"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    r"""Source of the interactions, its columns and format, and the filters, for `jaxrec.data.load_dataset`.

    Attributes:
      source: "movietweetings" (bundled); a CSV, TSV, Parquet, Arrow or text file; the directory of a saved dataset or of
        Parquet files; or the name of a public dataset (``jaxrec datasets`` lists them).
      name: of the dataset; empty = that of the file.
      user_column: name of the user column; empty = recognised by the usual names (user_id, userId, ...).
      item_column: name of the item column; empty = recognised by the usual names (item_id, movieId, ...).
      time_column: name of the time column; empty = recognised by the usual names, or file order where there is none.
      time_unit: unit of numeric times: s, ms, us, ns, or auto to judge by their size.
      rating_column: name of the rating column, for ``min_rating``; empty = recognised by the usual names.
      min_rating: keep only interactions with at least this rating; None = all, whatever their rating.
      separator: of delimited text, one or more characters such as "::" or ";" (\t: a tab); empty = by the file's extension.
      has_header: whether the first line names the columns; without one they are column_1, column_2, ...
      encoding: of text files, such as utf-8 or latin-1.
      layout: of a .txt file: pairs (``user item`` per line), sequences (``user item item ...`` per line) or auto.
      first_of_pair: keep only the first row, in the order of the file, of a user with an item.
      filter: drop users and items with fewer than ``min_interactions``: one-pass once (the original SASRec's), k-core
        until none is left, none never; one-pass-then-users drops users once more after it (BERT4Rec's); items-then-users
        drops items of too few distinct users and then users of too few distinct items (Scalable-SASRec's); sessions drops
        short users (sessions), rare items, and users that have become short (SR-GNN's).
      min_interactions: threshold of the filter; without one it has no effect.
      min_user_interactions: threshold of users, where it is another one; 0 = min_interactions.
      item_table: a file with one row per item, for titles and attributes; empty = none.
      item_separator: of the item table, where it is delimited text; empty = by its extension.
      item_has_header: whether the first line of the item table names its columns.
      item_id_column: its column of item ids; empty = recognised by the usual names.
      title_column: its column of titles; empty = recognised by the usual names.
      attribute_columns: its columns of attributes, such as genres.
      attribute_separator: between the attributes of one cell, as in "Crime|Drama"; empty = one attribute per cell.
      item_attributes: a JSON file {item id: [attribute, ...]}, the form of S3-Rec; empty = none.
      item_vectors: a vector for each item, for encoders that read them: a Parquet file with a column of lists, a .npy file
        with ``vector_ids``, or "attributes" (1 where an item has an attribute); empty = none.
      vector_column: of a Parquet file of vectors: the column of lists; empty = the only one.
      vector_ids: of a .npy file of vectors: a text file with the item id of each row, one per line.
      missing_vectors: of items without a vector: "error" rejects the data, "zero" gives them zeros.
      archive: of a public dataset: its downloaded files; empty = in the data directory (JAXREC_DATA).
      rule: of a public dataset: the filter of a paper; empty = its first rule. Options that differ from their defaults
        replace those of the rule; the rule "all" filters nothing.
      other_edition: accept an archive whose checksum is not the published one.
      verify: of a saved dataset: read it all and compare its fingerprint, rather than sizes and samples.
    """

    source: str = "movietweetings"
    name: str = ""
    user_column: str = ""
    item_column: str = ""
    time_column: str = ""
    time_unit: TimeUnit = "auto"
    rating_column: str = ""
    min_rating: float | None = None
    separator: str = ""
    has_header: bool = True
    encoding: str = "utf-8"
    layout: TextLayout = "auto"
    first_of_pair: bool = False
    filter: Literal["none", "k-core", "one-pass", "one-pass-then-users", "items-then-users", "sessions"] = (
        "none"
    )
    min_interactions: Annotated[int, Range("[1, inf)")] = 5
    min_user_interactions: Annotated[int, Range("[0, inf)")] = 0
    item_table: str = ""
    item_separator: str = ""
    item_has_header: bool = True
    item_id_column: str = ""
    title_column: str = ""
    attribute_columns: tuple[str, ...] = ()
    attribute_separator: str = "|"
    item_attributes: str = ""
    item_vectors: str = ""
    vector_column: str = ""
    vector_ids: str = ""
    missing_vectors: Literal["error", "zero"] = "error"
    archive: tuple[str, ...] = ()
    rule: str = ""
    other_edition: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        validate(self, "data")

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, and the source."""
        default = DataConfig()
        values = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return {"source": self.source, **values}

    @classmethod
    def of(cls, dataset: SequenceDataset) -> DataConfig:
        """Return the options that load ``dataset`` again; `IN_MEMORY` is the source of one that no options give."""
        check_dataset(dataset)
        record = dataset.meta.get(LOADED_WITH)
        if not isinstance(record, Mapping) or record.get("fingerprint") != dataset.fingerprint:
            return cls(source=IN_MEMORY, name=dataset.name)
        options = record["options"].items()
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options}
        return cls(**values)

    def moved(self, source: str) -> DataConfig:
        """Return the options of the same data at another place: a raw file, or a saved dataset, which needs none."""
        saved = is_directory(source) and not parquet_files(Path(source))
        return DataConfig(source=source) if saved else self.replace(source=source)

    def replace(self, **options: Any) -> DataConfig:
        """Return a copy with other options; None means the default, a list becomes a tuple, one archive a tuple of it.

        Raises:
          ConfigError: an option does not exist.
        """
        defaults = DataConfig()
        unknown = set(options) - set(vars(defaults))
        if unknown:
            raise ConfigError(
                f"unknown option {', '.join(sorted(map(repr, unknown)))} of load_dataset: expected some of "
                f"{', '.join(vars(defaults))}"
            )
        archive = options.get("archive")
        if archive is not None:
            paths = (archive,) if isinstance(archive, (str, os.PathLike)) else archive
            options["archive"] = tuple(os.fspath(path) for path in paths)
        values: dict[str, Any] = {
            name: getattr(defaults, name)
            if value is None
            else tuple(value)
            if isinstance(value, list)
            else value
            for name, value in options.items()
        }
        return dataclasses.replace(self, **values)
