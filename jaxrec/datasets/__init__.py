"""Loaders of public datasets, registered by name: official archive in, `jaxrec.data.SequenceDataset` out."""

from __future__ import annotations

from typing import Any

from jaxrec.data.bundled import BUNDLED
from jaxrec.data.named import DATASETS, PublicDataset, data_home
from jaxrec.datasets import (
    amazon,
    anime,
    gowalla,
    lastfm,
    movielens,
    movietweetings,
    pickled,
    recbole,
    s3rec,
    sessions,
    steam,
    yambda,
    yelp,
    zvuk,
)

__all__ = [
    "DATASETS",
    "amazon",
    "anime",
    "describe_datasets",
    "format_datasets",
    "gowalla",
    "lastfm",
    "movielens",
    "movietweetings",
    "pickled",
    "recbole",
    "s3rec",
    "sessions",
    "steam",
    "yambda",
    "yelp",
    "zvuk",
]


def describe_datasets(name: str = "") -> list[dict[str, Any]]:
    """Describe the registered datasets, or the one called ``name``, as plain values.

    Raises:
      UnknownNameError: no such dataset.
    """
    names = [name] if name else [*BUNDLED, *sorted(DATASETS)]
    return [_describe(one) for one in names]


def _describe(name: str) -> dict[str, Any]:
    if name in BUNDLED:
        whole = DATASETS["movietweetings-100k"]
        assert isinstance(whole, PublicDataset)
        return {
            "name": name,
            "title": "MovieTweetings 100K, 5-core",
            "size": "4,333 users, 2,414 items, 68,055 interactions",
            "url": whole.url,
            "licence": whole.licence,
            "citation": whole.citation,
            "bundled": True,
            "rules": [],
        }
    part = DATASETS[name]
    if not isinstance(part, PublicDataset):
        return {
            "name": name,
            "title": (part.__doc__ or "").strip().split("\n")[0],
            "bundled": False,
            "rules": [],
        }
    return {
        "name": name,
        "title": part.title,
        "size": part.size,
        "url": part.url,
        "licence": part.licence,
        "citation": part.citation,
        "files": list(part.files),
        "checksums": [
            *(f"sha256 {digest}" for digest in part.sha256),
            *(f"md5 {digest}" for digest in part.md5),
        ],
        "rules": list(part.rules),
        "options": {rule: dict(options) for rule, options in part.rules.items()},
        "bundled": False,
        "on_disk": [str(path) for path in part.on_disk()],
    }


def format_datasets(about: list[dict[str, Any]], *, full: bool = False) -> str:
    """Format what `describe_datasets` returned as text: a table, or all entries of each."""
    if full:
        blocks = []
        for entry in about:
            lines = [f"{key:<9} {_plain(value)}" for key, value in entry.items() if value not in ([], {})]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)
    rows = [("name", "title", "size", "rules", "on disk")]
    for entry in about:
        present = "bundled" if entry["bundled"] else "yes" if entry.get("on_disk") else "no"
        rows.append(
            (entry["name"], entry["title"], entry.get("size", ""), ", ".join(entry["rules"]), present)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    advice = (
        f"\nArchives are looked for in {data_home()} (JAXREC_DATA), or given: jaxrec prepare NAME --archive FILE --out DIR\n"
        "`jaxrec datasets NAME` shows source, licence, citation and checksums of one dataset, `--full` those of all."
    )
    return "\n".join(lines) + advice


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {options or 'everything'}" for key, options in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
