"""Zvuk of SberZvuk: plays of tracks, with their session and duration, as one Parquet file."""

from __future__ import annotations

from pathlib import Path

from jaxrec.data.named import RawDataset, public_dataset
from jaxrec.datasets.archives import parquet_columns


@public_dataset(
    "zvuk",
    title="Zvuk, plays of music (zvuk-interactions.parquet)",
    size="382,790 users, 1,506,950 tracks, 244,673,551 plays",
    url="https://www.kaggle.com/datasets/alexxl/zvuk-dataset",
    licence="as the Kaggle page states",
    citation="Shevchenko et al., From Variability to Stability: Advancing RecSys Benchmarking Practices, KDD 2024, "
    "arXiv 2402.09766",
    files=("zvuk-interactions.parquet",),
    rules={
        "5-core": {"filter": "k-core", "min_interactions": 5},
        "one-pass-5": {"filter": "one-pass", "min_interactions": 5},
        "scalable-sasrec": {"filter": "items-then-users", "min_interactions": 5, "min_user_interactions": 20},
        "all": {},
    },
)
def read_zvuk(archive: Path) -> RawDataset:
    """Read plays; their ``play_duration`` is the rating that ``--min-rating`` compares, in the unit of the file."""
    columns = {"user": "user_id", "item": "track_id", "timestamp": "datetime", "rating": "play_duration"}
    return RawDataset(parquet_columns(archive, columns), {})
