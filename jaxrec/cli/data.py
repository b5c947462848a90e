"""`jaxrec audit` and `jaxrec prepare`."""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from jaxrec.cli.common import emit, parse


@dataclasses.dataclass(frozen=True)
class _Source:
    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(help="csv, tsv, parquet, arrow or text file, or saved dataset"),
    ]
    user_column: Annotated[str, tyro.conf.arg(help="default: recognised by the usual names")] = ""
    item_column: Annotated[str, tyro.conf.arg(help="default: recognised by the usual names")] = ""
    time_column: Annotated[str, tyro.conf.arg(help="default: recognised by the usual names")] = ""
    first_of_pair: Annotated[
        bool, tyro.conf.arg(help="keep only the first interaction of a user with an item")
    ] = False
    filter: Annotated[
        Literal["none", "k-core", "one-pass"], tyro.conf.arg(help="drop rare users and items")
    ] = "none"
    min_interactions: Annotated[int, tyro.conf.arg(help="of a user and of an item, for the filter")] = 5

    def load(self) -> Any:
        from jaxrec.data.readers.load import DataConfig

        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(_Source)
            if field.name != "data"
        }
        return DataConfig(source=self.data, **options).load()


@dataclasses.dataclass(frozen=True)
class Audit(_Source):
    """What in a log of interactions makes results fragile: ties in time, duplicates, leaks, short users."""

    json: Annotated[bool, tyro.conf.arg(help="print the findings as one JSON object")] = False


def audit(arguments: list[str]) -> int:
    given = parse(Audit, arguments, "audit")

    from jaxrec.data import audit

    findings = audit(given.load())
    emit(findings.to_dict(), str(findings), given.json)
    return 0


@dataclasses.dataclass(frozen=True)
class Prepare(_Source):
    """Read a log once and save it as memory-mapped arrays, which open at once."""

    out: Annotated[str, tyro.conf.arg(help="directory to write; must be new or empty")] = "dataset"
    json: Annotated[bool, tyro.conf.arg(help="print the summary as one JSON object")] = False


def prepare(arguments: list[str]) -> int:
    given = parse(Prepare, arguments, "prepare")
    dataset = given.load()
    dataset.save(given.out)
    summary = {
        "directory": given.out,
        "fingerprint": dataset.fingerprint,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": dataset.n_interactions,
    }
    text = (
        f"{dataset.n_users:,} users, {dataset.n_items:,} items, {dataset.n_interactions:,} interactions "
        f"saved in {given.out}\n"
        f"next: jaxrec train --data {given.out}"
    )
    emit(summary, text, given.json)
    return 0
