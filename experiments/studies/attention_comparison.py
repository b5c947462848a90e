"""Every attention mechanism in one encoder, on one dataset, with one budget.

    python -m experiments.studies.attention_comparison
    python -m experiments.studies.attention_comparison --data path/to/LastFM.txt --out runs/attention-lastfm

Writes ``experiments/results/attention_<dataset>.{md,json}`` after each mechanism; until all are done, it says which are
missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro

from experiments.variants import SharedSettings, Variant
from jaxrec.attention import (
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    PointwiseAttentionConfig,
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
    UniformAttentionConfig,
    WassersteinAttentionConfig,
)
from jaxrec.models import STOSAConfig
from jaxrec.objectives import BPRPositiveVersusNegativeConfig, CrossEntropyConfig, ObjectiveConfig


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare attention mechanisms."""

    learning_rate: float = 2e-3
    out: str = "runs/attention"


def variants(dropout: float = 0.1) -> list[Variant]:
    """Return the rows; the others are compared with the first."""
    softmax = SoftmaxAttentionConfig(dropout=dropout)

    def of(name: str, attention: object, **encoder: object) -> Variant:
        return Variant(name, {"encoder.attention": attention, "encoder": encoder})

    def stosa(name: str, objective: ObjectiveConfig, variant: Any = "none") -> Variant:
        # Its means and covariances count as two: half the width gives scores of the same size.
        attention = WassersteinAttentionConfig(dropout=dropout, variant=variant)
        encoder = STOSAConfig(width=32, layers=2, dropout=0.3, attention=attention)
        return Variant(name, {"encoder": encoder, "objective": objective})

    pointwise = PointwiseAttentionConfig(dropout=dropout)

    def miq(window: int) -> Variant:
        return of(f"miq m={window}", MultiItemQueryAttentionConfig(dropout=dropout, query_window=window))

    def awrsr(variant: Any) -> Variant:
        return of(f"awrsr {variant}", RefinedAttentionConfig(dropout=dropout, variant=variant))

    def kernel(upper: Any, lower: Any) -> Variant:
        return of(f"kernel {upper} {lower}", KernelAttentionConfig(dropout=dropout, upper=upper, lower=lower))

    # The mechanisms' proposed forms first: what an interrupted study has is then most telling.
    return [
        of("softmax", softmax),
        miq(5),
        awrsr("simple"),
        of("uniform", UniformAttentionConfig()),
        kernel("toeplitz", "full"),
        of("hstu block", pointwise, block="attention-only"),
        of("ligr block", softmax, block="gated"),
        stosa("stosa", CrossEntropyConfig()),
        stosa("stosa awrsr stochastic", CrossEntropyConfig(), "stochastic"),
        of("softmax no positions", softmax, positions="none"),
        of("softmax rotary", softmax, positions="rotary"),
        of("softmax relative bias", softmax, positions="relative-bias"),
        of("softmax alibi", softmax, positions="alibi"),
        of("softmax time interval", softmax, positions="time-interval"),
        awrsr("value-weighted"),
        awrsr("additive"),
        kernel("toeplitz", "toeplitz"),
        miq(3),
        of("hstu", pointwise),
        of("hstu block time interval", pointwise, block="attention-only", positions="time-interval"),
        stosa("stosa bpr-pvn", BPRPositiveVersusNegativeConfig()),
    ]


def main(options: Options) -> None:
    """Run the study and write its tables."""
    options.conduct("attention", variants())


if __name__ == "__main__":
    main(tyro.cli(Options))
