"""Paired differences of several measurements, corrected for their number, and their table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec.analysis.significance import holm, minimal_detectable_difference, paired_bootstrap
from jaxrec.analysis.tables import to_markdown


def paired_differences(
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], same_models: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Differences b less a with seeds nested, corrected over all pairs (Holm).

    Args:
      pairs: (name of the comparison, a, b); a and b are float[seeds, users] of the same users.
      same_models: names of comparisons whose a and b come from the same trained models, seed by seed.

    Returns:
      For each pair its name as "comparison", difference, interval and p, "p_holm", and as "detectable" the smallest
      difference that these users and seeds could have shown in p, before its correction.
    """
    paired = [name in same_models for name, _, _ in pairs]
    effects = [paired_bootstrap(a, b, paired_seeds=own) for (_, a, b), own in zip(pairs, paired, strict=True)]
    corrected = holm([effect.p_value for effect in effects])
    return [
        {
            "comparison": name,
            **effect._asdict(),
            "p_holm": float(p),
            "detectable": minimal_detectable_difference(a, b, paired_seeds=own),
        }
        for (name, a, b), own, effect, p in zip(pairs, paired, effects, corrected, strict=True)
    ]


def difference_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of `paired_differences`."""
    return to_markdown(
        ["difference", "mean", "95 % interval", "p (Holm)", "detectable"],
        [
            [
                row["comparison"],
                f"{row['difference']:+.4f}",
                f"{row['low']:+.4f} to {row['high']:+.4f}",
                f"{row['p_holm']:.4f}",
                f"{row['detectable']:.4f}",
            ]
            for row in rows
        ],
    )
