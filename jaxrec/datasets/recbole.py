"""Atomic files of RecBole: ``name.inter`` with typed columns, and ``name.item`` with titles and attributes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import polars as pl

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.data.readers.tables import plain_name, reading
from jaxrec.datasets.archives import content, is_archive
from jaxrec.errors import DataError

_TITLES = ("title", "movietitle", "name", "gametitle", "itemname", "appname")


@public_dataset(
    "recbole",
    title="Any dataset in RecBole's atomic files",
    size="that of the dataset",
    url="https://recbole.io/dataset_list.html",
    licence="that of the dataset",
    citation="Zhao et al., RecBole: Towards a Unified, Comprehensive and Efficient Framework, CIKM 2021",
    files=("NAME.inter", "NAME.item"),
    rules={"all": {}, "5-core": {"filter": "k-core", "min_interactions": 5}},
)
def read_recbole(archive: Path, items: Path | None = None) -> RawDataset:
    """Read an ``.inter`` file and, where given, an ``.item`` file; or a zip with both.

    Columns are typed in the header (``user_id:token``); those of type ``token_seq`` hold attributes separated by blanks. A
    ``.user`` file may lie in the zip; it has nothing that a dataset keeps, since users have ids alone.
    """
    if is_archive(archive):
        inter, item = _members(archive)
        log = _table(content(archive, inter), inter)
        about = _table(content(archive, item), item) if item else None
    else:
        log = _table(content(archive), archive.name)
        about = None if items is None else _table(content(items), items.name)
    names = {plain_name(name.split(":")[0]): name for name in log.columns}
    user = names.get("userid") or names.get("sessionid")
    if user is None or "itemid" not in names:
        raise DataError(
            f"an .inter file needs user_id (or session_id) and item_id; got {', '.join(log.columns)}"
        )
    columns = {"user": user, "item": names["itemid"]}
    columns |= {key: names[key] for key in ("rating", "timestamp") if key in names}
    interactions = log.select(pl.col(name).alias(new) for new, name in columns.items())
    if about is None:
        return RawDataset(interactions, {})
    return RawDataset(interactions, {}, items=_titles(about), attributes=_attributes(about))


def _members(archive: Path) -> tuple[str, str]:
    with reading(f"archive {archive.name!r}"), zipfile.ZipFile(archive) as opened:
        names = [Path(name).name for name in opened.namelist()]
    inter = [name for name in names if name.endswith(".inter")]
    if len(inter) != 1:
        raise DataError(
            f"archive {archive.name!r} holds {len(inter)} .inter files, expected one: {', '.join(inter)}"
        )
    item = f"{inter[0].removesuffix('.inter')}.item"
    return inter[0], item if item in names else ""


def _table(text: bytes, name: str) -> pl.DataFrame:
    with reading(f"file {name!r}"):
        frame = pl.read_csv(text, separator="\t", infer_schema=False, quote_char=None)
    if not all(":" in column for column in frame.columns):
        raise DataError(
            f"file {name!r} must have columns such as user_id:token, got {', '.join(frame.columns)}"
        )
    return frame


def _item_column(about: pl.DataFrame) -> str:
    column = next((name for name in about.columns if plain_name(name.split(":")[0]) == "itemid"), None)
    if column is None:
        raise DataError(f"an .item file needs item_id; got {', '.join(about.columns)}")
    return column


def _titles(about: pl.DataFrame) -> pl.DataFrame | None:
    title = next((name for name in about.columns if plain_name(name.split(":")[0]) in _TITLES), None)
    if title is None:
        return None
    return about.select(pl.col(_item_column(about)).alias("item"), pl.col(title).alias("title"))


def _attributes(about: pl.DataFrame) -> dict[str, list[str]] | None:
    listed = [
        name
        for name in about.columns
        if name.endswith(":token_seq") and plain_name(name.split(":")[0]) not in _TITLES
    ]
    if not listed:
        return None
    rows = about.select(_item_column(about), *listed).fill_null("").rows()
    return {item: [value for cell in cells for value in cell.split()] for item, *cells in rows}
