"""`load_dataset` and its options: one way from any log of interactions to a `SequenceDataset`."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.data.bundled import BUNDLED, load_bundled
from jaxrec.data.dataset import LOADED_WITH, SequenceDataset, open_dataset
from jaxrec.data.interactions import (
    AtLeast,
    Filter,
    FirstOfPair,
    ItemsThenUsers,
    KCore,
    OnePass,
    apply_filters,
    filter_dataset,
    to_dataset,
)
from jaxrec.data.named import DATASETS, RawDataset
from jaxrec.data.readers.config import IN_MEMORY, DataConfig
from jaxrec.data.readers.items import Attributes, Titles, read_items
from jaxrec.data.readers.log import read_log
from jaxrec.data.readers.tables import (
    UNDERSTOOD,
    TextFormat,
    describe_file,
    describe_parts,
    parquet_files,
    reading,
    scan_file,
    scan_parts,
    scan_table,
    suffix_of,
)
from jaxrec.data.readers.text import read_text
from jaxrec.data.readers.vectors import attach_vectors
from jaxrec.errors import ConfigError, DataError
from jaxrec.files import is_directory, is_file
from jaxrec.options import option_name

#: Module whose import registers the loaders of public datasets in `jaxrec.data.named.DATASETS`.
LOADERS = "jaxrec.datasets"

#: Options that apply to a finished dataset too; the others need a raw log.
_OF_FINISHED = (
    *("source", "name", "first_of_pair", "filter", "min_interactions", "min_user_interactions"),
    "verify",
    *("item_vectors", "vector_column", "vector_ids", "missing_vectors", "item_id_column"),
)

#: Beginning of the sentence about thresholds without a filter.
_IDLE = "nothing was filtered: "


def load_dataset(
    source: Any,
    config: DataConfig | None = None,
    *,
    item_table: Any = None,
    item_attributes: Any = None,
    **options: Any,
) -> SequenceDataset:
    """Load interactions from anything.

    >>> log = {"user_id": ["ann", "bob", "ann"], "item_id": ["x", "x", "y"], "timestamp": [3, 1, 9]}
    >>> dataset = load_dataset(log)
    >>> dataset.n_users, dataset.n_items, dataset.n_interactions
    (2, 2, 3)

    Args:
      source: "movietweetings" (bundled); the path of a .csv, .tsv (also .gz), .parquet, .arrow, .feather or .ipc file; of
        a .txt (also .gz) with ``user item`` or ``user item item ...`` per line; of a directory that
        `SequenceDataset.save` wrote, or of Parquet files; the name of a public dataset (`jaxrec.data.DATASETS`); a Polars,
        pandas or pyarrow table; a NumPy array [N, 2] or [N, 3] or a structured one; a dict of arrays; or a tuple of arrays
        (users, items[, times]); or a `DataConfig`, which has a source among its options.
      config: the options; by default all of them have their default values.
      item_table: a table of items for titles and attributes: a file, or a Polars, pandas or pyarrow table.
      item_attributes: attributes as a mapping or a JSON file {item id: [attribute, ...]}.
      **options: further fields of `DataConfig`, such as ``filter="k-core"``; they replace those of ``config``.

    Returns:
      The dataset. Users are numbered by first appearance in the source, items by first appearance in the sequences;
      interactions are sorted by (user, time), and ties keep the order of the source.

    Raises:
      ConfigError: an option does not exist or has an impossible value.
      DataError: a column, a time or an id is missing or unusable, the file is empty or absent, or nothing is left after
        the filters. The message names the column, counts the rows and gives the first.
    """
    if isinstance(source, DataConfig):
        if config is not None:
            raise ConfigError("load_dataset takes one DataConfig: got one as the source and one as config")
        source, config = source.source, source
    config = (config or DataConfig()).replace(**options)
    if isinstance(source, (str, os.PathLike)):
        config = config.replace(source=os.fspath(source))
    tables: dict[str, Any] = {}
    for name, value in (("item_table", item_table), ("item_attributes", item_attributes)):
        if isinstance(value, (str, os.PathLike)):
            config = config.replace(**{name: os.fspath(value)})
        elif value is not None:
            tables[name] = value
    dataset = attach_vectors(_load(source, config, tables), config)
    if tables or not isinstance(source, (str, os.PathLike)):
        return dataset
    return dataset.with_meta({LOADED_WITH: {"options": config.changed(), "fingerprint": dataset.fingerprint}})


def _load(source: Any, config: DataConfig, tables: Mapping[str, Any]) -> SequenceDataset:
    ready = open_finished(source, config)
    if ready is not None:
        unused = [name for name in (*config.changed(), *tables) if name not in _OF_FINISHED]
        if unused:
            raise DataError(
                f"{_name_of(source)} is a finished dataset, to which only filters apply: leave out "
                f"{', '.join(option_name('data', name) for name in unused)}, or give them where the raw log is read"
            )
        if config.name:
            ready = ready.with_meta({"name": config.name})
        warnings = list(ready.meta.get("warnings", ()))
        if config.filter != "none":  # what an earlier call left out is made good
            warnings = [sentence for sentence in warnings if not sentence.startswith(_IDLE)]
        warnings += _idle_thresholds(config)
        if warnings != list(ready.meta.get("warnings", ())):
            ready = ready.with_meta({"warnings": warnings})
        filters = _filters(config)
        return filter_dataset(ready, filters) if filters else ready
    raw = open_raw(source, config, tables)
    return raw if isinstance(raw, SequenceDataset) else _build(raw)


@dataclasses.dataclass(frozen=True)
class RawLog:
    """A log as its source has it, before anything of it is read.

    Attributes:
      frame: the table, lazy.
      config: options, those of a public dataset's rule included.
      tables: item table and attributes in memory, by the names of `load_dataset`'s arguments.
      meta: name and source of the dataset, and what its loader adds.
    """

    frame: pl.LazyFrame
    config: DataConfig
    tables: Mapping[str, Any]
    meta: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Name of the table, for messages."""
        return str(self.meta["source"].get("file", "the table"))

    def filters(self) -> list[Filter]:
        """Return the filters in their order."""
        return _filters(self.config)


def open_raw(source: Any, config: DataConfig, tables: Mapping[str, Any]) -> RawLog | SequenceDataset:
    """Open a raw log: a file, a public dataset, a table; or the dataset that a registered loader gives.

    Args:
      source: as for `load_dataset`, but no finished dataset.
      config: the options.
      tables: item table and attributes in memory.

    Raises:
      ConfigError: no such rule.
      DataError: the source cannot be opened.
    """
    named = _named(source)
    if named is not None:
        raw = named(config)
        if isinstance(raw, RawDataset):
            return _of_public(raw, config, tables)
        ready = open_finished(raw, config)
        if ready is not None:
            return _load(raw, config.replace(source=""), tables)
        return open_raw(raw, config.replace(source=""), tables)
    unused = [name for name in ("archive", "rule", "other_edition") if getattr(config, name)]
    if unused:
        raise DataError(
            f"{_name_of(source)} is no public dataset (jaxrec datasets lists them): leave out "
            f"{', '.join(option_name('data', name) for name in unused)}"
        )
    frame, described, default_name = _open_source(source, config)
    return RawLog(frame, config, tables, {"name": config.name or default_name, "source": described})


def _of_public(raw: RawDataset, config: DataConfig, tables: Mapping[str, Any]) -> RawLog:
    """A public dataset; options of the caller replace those of the dataset's rule."""
    defaults = DataConfig()
    own = {
        name: value for name, value in raw.options.items() if getattr(config, name) == getattr(defaults, name)
    }
    tables = {
        **({} if raw.items is None or config.item_table else {"item_table": raw.items}),
        **({} if raw.attributes is None or config.item_attributes else {"item_attributes": raw.attributes}),
        **tables,
    }
    with reading(f"the interactions of {config.source}"):
        scanned = scan_table(raw.interactions)
    if scanned is None:
        raise DataError(
            f"the loader of {config.source!r} must give a table, got {type(raw.interactions).__name__}"
        )
    meta = {**raw.meta, "name": config.name or raw.meta.get("name", config.source), "source": raw.source}
    return RawLog(scanned[0], config.replace(**own), tables, meta)


def _build(raw: RawLog) -> SequenceDataset:
    log, note = read_log(raw.frame, raw.config, raw.where)
    titles, attributes = items_of(raw)
    log = apply_filters(log, raw.filters())
    with reading("the item table"):
        dataset = to_dataset(log, meta=meta_of(raw, note), titles=titles, attributes=attributes)
    return with_unmatched_items(dataset)


def items_of(raw: RawLog) -> tuple[Titles | None, Attributes | None]:
    """Read titles and attributes of the items of a raw log; see `read_items`."""
    return read_items(raw.config, **{name.removeprefix("item_"): value for name, value in raw.tables.items()})


def meta_of(raw: RawLog, note: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``meta``, given the notes of the reader."""
    # A loader that says why times are missing knows better than the reader.
    warnings = [*raw.meta.get("warnings", note.get("warnings", ())), *_idle_thresholds(raw.config)]
    return {**raw.meta, **note, **({"warnings": warnings} if warnings else {})}


def with_unmatched_items(dataset: SequenceDataset) -> SequenceDataset:
    """Add a warning where titles or attributes were given and no item of the log has any, since the ids differ."""
    titles, attributes = dataset.item_titles, dataset.attributes
    absent = [] if titles is None or any(titles) else ["a title"]
    absent += [] if attributes is None or len(attributes.values) else ["an attribute"]
    if not absent:
        return dataset
    sentence = (
        f"no item has {' or '.join(absent)}: write ids as the log does, such as {dataset.item_ids[0]!r}"
    )
    return dataset.with_meta({"warnings": [*dataset.meta.get("warnings", ()), sentence]})


def _idle_thresholds(config: DataConfig) -> list[str]:
    """A sentence where thresholds are given without the filter that would apply them."""
    given = [name for name in ("min_interactions", "min_user_interactions") if name in config.changed()]
    if config.filter != "none" or not given:
        return []
    listed = " and ".join(f"{option_name('data', name)} {getattr(config, name)}" for name in given)
    return [f"{_IDLE}{listed} needs --data.filter, such as k-core or one-pass"]


def _filters(config: DataConfig) -> list[Filter]:
    filters: list[Filter] = [FirstOfPair()] if config.first_of_pair else []
    least, users = config.min_interactions, config.min_user_interactions
    long_users = AtLeast("users", users or least)
    kinds: dict[str, list[Filter]] = {
        "none": [],
        "k-core": [KCore(least, users)],
        "one-pass": [OnePass(least, users)],
        "one-pass-then-users": [OnePass(least, users), long_users],
        "items-then-users": [ItemsThenUsers(least, users or least)],
        "sessions": [long_users, AtLeast("items", least), long_users],
    }
    return filters + kinds[config.filter]


def _name_of(source: Any) -> str:
    return (
        repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else f"the {type(source).__name__}"
    )


def open_finished(source: Any, config: DataConfig) -> SequenceDataset | None:
    """Open the bundled or the saved dataset that ``source`` names; None where it names none."""
    if isinstance(source, SequenceDataset):
        return source
    if isinstance(source, str) and source == IN_MEMORY:
        raise DataError(
            f"this run was trained on the dataset {config.name!r} that a script held in memory: pass the same dataset to "
            "the call, or save it (dataset.save(DIR)) and give --data DIR"
        )
    if isinstance(source, str) and source in BUNDLED:
        return load_bundled(source)
    if not isinstance(source, str | os.PathLike) or not is_directory(source) or parquet_files(Path(source)):
        return None
    # A folder that an archive was unpacked into often has the name of the public dataset.
    if is_file(Path(source) / "meta.json") or _named(source) is None:
        return open_dataset(source, verify=config.verify)
    return None


def _named(source: Any) -> Any:
    """The registered loader that ``source`` names, if it does; a file or a saved dataset of that name goes first."""
    if not isinstance(source, str) or is_file(source):
        return None
    if source not in DATASETS:
        importlib.import_module(LOADERS)
    return DATASETS[source] if (source in DATASETS) else None  # noqa: SIM401 - a failed look-up raises


def _open_source(source: Any, config: DataConfig) -> tuple[pl.LazyFrame, dict[str, Any], str]:
    """Lazy frame, description and default name of a raw log."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if is_directory(path):
            files = parquet_files(path)
            with reading(f"directory {str(path)!r}"):
                return scan_parts(files), describe_parts(path, files), path.name or path.resolve().name
        if not is_file(path):
            raise DataError(
                f"no file {_short(str(path))!r}: give an existing file ({UNDERSTOOD}), the directory of a saved dataset, "
                f"the name of a bundled one ({', '.join(BUNDLED)}) or of a public one (jaxrec datasets lists them)"
            )
        with reading(f"file {str(path)!r}"):
            described = describe_file(path)
            default_name = path.name.split(".")[0]
            if suffix_of(path) == ".txt" and not config.separator:
                frame, layout = read_text(path, config.layout, config.encoding)
                return frame.lazy(), {**described, "layout": layout}, default_name
            text = TextFormat(config.separator, config.has_header, config.encoding)
            return scan_file(path, text), described, default_name
    with reading("the table"):
        table = scan_table(source)
    if table is None:
        raise DataError(
            f"cannot read interactions from {type(source).__name__}: expected a path, a Polars, pandas or pyarrow table, a "
            "NumPy array, a dict of arrays or a tuple (users, items[, times])"
        )
    return table[0], {"table": table[1]}, "table"


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
