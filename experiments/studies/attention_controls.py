"""Controls of the attention comparison: the same mechanisms with the same kind of positions, and uniform weights.

    python -m experiments.studies.attention_controls

Every row with learned positions counted from the end of the training sequence stood above every row without them in
`experiments.studies.attention_comparison`. Here positions and mechanism change one at a time: learned from the start,
sinusoidal, and four heads for the schemes that one head hardly lets act; HSTU and the positional kernel with learned
positions from the end; and attention that gives every key the same weight, against which refined weights are held.

Writes ``experiments/results/attention-controls_<dataset>.{md,json}`` after each row; until all are done, it says which are
missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro

from experiments.variants import SharedSettings, Variant
from jaxrec.attention import (
    KernelAttentionConfig,
    PointwiseAttentionConfig,
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
    UniformAttentionConfig,
)


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Compare attention mechanisms under controlled positions."""

    learning_rate: float = 2e-3
    out: str = "runs/attention-controls"


def variants(dropout: float = 0.1) -> list[Variant]:
    """Return the rows; the others are compared with the first."""
    softmax = SoftmaxAttentionConfig(dropout=dropout)
    four_heads = dataclasses.replace(softmax, heads=4)

    def row(name: str, attention: Any, origin: str = "end", **encoder: Any) -> Variant:
        batches = {"position_origin": origin}
        return Variant(name, {"encoder.attention": attention, "encoder": encoder, "batches": batches})

    pointwise = PointwiseAttentionConfig(dropout=dropout)
    return [
        row("softmax", softmax),
        row("uniform", UniformAttentionConfig()),
        row("awrsr simple", RefinedAttentionConfig(dropout=dropout, variant="simple")),
        row("softmax, positions from start", softmax, "start"),
        row("hstu block, learned positions", pointwise, block="attention-only", positions="learned"),
        row("alibi, 4 heads", four_heads, positions="alibi"),
        row("kernel, learned positions", KernelAttentionConfig(dropout=dropout), positions="learned"),
        row("awrsr additive", RefinedAttentionConfig(dropout=dropout, variant="additive")),
        row("rotary, 4 heads", four_heads, positions="rotary"),
        row("awrsr value-weighted", RefinedAttentionConfig(dropout=dropout, variant="value-weighted")),
        row("softmax, 4 heads", four_heads),
        row("relative bias, 4 heads", four_heads, positions="relative-bias"),
        row("softmax, sinusoidal positions", softmax, positions="sinusoidal"),
        row("uniform, no positions", UniformAttentionConfig(), positions="none"),
    ]


def main(options: Options) -> None:
    """Run the study and write its tables."""
    options.conduct("attention-controls", variants())


if __name__ == "__main__":
    main(tyro.cli(Options))
