"""Two ways to train on histories that are longer than a row: the newest part, or on all of it in windows.

    python -m experiments.studies.long_histories --data LastFM.txt

Rows end at the newest interaction ("last") or cover the whole history in consecutive windows ("windows"); positions count
from the end or from the start of a row. All four have the same most epochs; windows have more targets in each.

Writes ``experiments/results/long-histories_<dataset>.{md,json}`` after each row; until all are done, it says which are
missing.
"""

from __future__ import annotations

import dataclasses

import tyro

from experiments.variants import SharedSettings, Variant


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare ways to train on long histories.

    Attributes:
      max_length: L, items of a row.
    """

    max_length: int = 50
    learning_rate: float = 1e-3
    dropout: float = 0.5
    patience: int = 10
    epochs: float = 100.0
    out: str = "runs/long-histories"


def variants(max_length: int) -> list[Variant]:
    """Return the rows; the others are compared with the first, the default."""
    return [
        Variant(
            f"{part}, positions from {origin}",
            {"batches": {"long_histories": part, "position_origin": origin, "max_length": max_length}},
        )
        for origin in ("end", "start")
        for part in ("last", "windows")
    ]


def main(options: Options) -> None:
    """Run the study and write its tables."""
    options.conduct("long-histories", variants(options.max_length))


if __name__ == "__main__":
    main(tyro.cli(Options))
