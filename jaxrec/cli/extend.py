"""`jaxrec extend`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrec.cli.common import emit, parse
from jaxrec.data.readers.config import DataConfig
from jaxrec.files import as_word


@dataclasses.dataclass(frozen=True)
class Extend:
    """Add new items to a trained run, so that it ranks them; the rows of all others stay as they are."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="run directory")]
    items: Annotated[
        str,
        tyro.conf.arg(
            help="csv, tsv or Parquet file with one row per new item: its id, title, similar items (column similar) and "
            "attributes (--data.attribute-columns)"
        ),
    ]
    out: Annotated[str, tyro.conf.arg(help="run directory to write; must be new or empty")]
    by: Annotated[
        Literal["auto", "similar", "attributes", "vectors"],
        tyro.conf.arg(help="source of the row of a new item, where the run has no vectors of items"),
    ] = "auto"
    neighbours: Annotated[int, tyro.conf.arg(help="closest items whose mean a new row is")] = 10
    overwrite: Annotated[bool, tyro.conf.arg(help="delete a run that is already in --out")] = False
    data: Annotated[
        DataConfig, tyro.conf.arg(help="columns of --items, and --data.item-vectors for their vectors")
    ] = DataConfig()
    json: Annotated[bool, tyro.conf.arg(help="print the result as one JSON object")] = False


def extend(arguments: list[str]) -> int:
    """Run ``jaxrec extend``; return the exit status."""
    given = parse(Extend, arguments, "extend")

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.extend import extend_run

    enable_compilation_cache()
    result = extend_run(
        given.run,
        given.items,
        given.out,
        by=given.by,
        neighbours=given.neighbours,
        data=given.data,
        overwrite=given.overwrite,
    )
    out, word = Path(given.out), as_word(given.out)
    text = "\n".join(
        [
            *result.lines(),
            f"everything is in {out}; next: jaxrec recommend {word} --history ITEM ITEM -k 10",
            f"with a newer log: jaxrec train --preset {word} --init-from {word} --training.init-items match --data LOG",
        ]
    )
    emit(
        {"items": result.items, "by": result.by, "neighbours": result.neighbours, "workdir": str(out)},
        text,
        given.json,
    )
    return 0
