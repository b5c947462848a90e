"""Every attention mechanism in one encoder, on one dataset, with one budget.

    python -m experiments.attention_comparison
    python -m experiments.attention_comparison --data path/to/LastFM.txt --out runs/attention-lastfm

Writes ``experiments/results/attention_<dataset>.{md,json}``.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import tyro

from experiments.variants import Variant, apply, study, write
from jaxrec.attention import (
    KernelAttentionConfig,
    MultiItemQueryAttentionConfig,
    PointwiseAttentionConfig,
    RefinedAttentionConfig,
    SoftmaxAttentionConfig,
)
from jaxrec.data import load_dataset
from jaxrec.presets import sasrec


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare attention mechanisms.

    Attributes:
      data: as for ``jaxrec train``.
      seeds: models for each mechanism.
      epochs: most epochs of each.
      learning_rate: the same for all.
      out: run directories; an interrupted study goes on there.
      only: names of the variants to run; empty = all.
    """

    data: str = "movietweetings"
    seeds: int = 5
    epochs: float = 40.0
    learning_rate: float = 2e-3
    out: str = "runs/attention"
    only: tuple[str, ...] = ()


def variants(dropout: float = 0.1) -> list[Variant]:
    """The first is what the others are compared with."""
    softmax = SoftmaxAttentionConfig(dropout=dropout)

    def of(name: str, attention: object, **encoder: object) -> Variant:
        return Variant(name, {"attention": attention, "encoder": encoder})

    return [
        of("softmax", softmax),
        of("softmax no positions", softmax, positions="none"),
        of("softmax rotary", softmax, positions="rotary"),
        of("softmax alibi", softmax, positions="alibi"),
        of("softmax relative bias", softmax, positions="relative-bias"),
        of("softmax time interval", softmax, positions="time-interval"),
        of("miq m=3", MultiItemQueryAttentionConfig(dropout=dropout, query_window=3)),
        of("miq m=5", MultiItemQueryAttentionConfig(dropout=dropout, query_window=5)),
        of("awrsr simple", RefinedAttentionConfig(dropout=dropout, variant="simple")),
        of("awrsr value-weighted", RefinedAttentionConfig(dropout=dropout, variant="value-weighted")),
        of("awrsr additive", RefinedAttentionConfig(dropout=dropout, variant="additive")),
        of("kernel toeplitz full", KernelAttentionConfig(dropout=dropout, upper="toeplitz", lower="full")),
        of(
            "kernel toeplitz toeplitz",
            KernelAttentionConfig(dropout=dropout, upper="toeplitz", lower="toeplitz"),
        ),
        of("hstu", PointwiseAttentionConfig(dropout=dropout)),
    ]


def main(options: Options) -> None:
    """Run the study and write its tables."""
    dataset = load_dataset(options.data)
    base = apply(
        sasrec(),
        {
            "data": {"source": options.data},
            "optimizer": {"learning_rate": options.learning_rate},
            "training": {
                "seeds": tuple(range(options.seeds)),
                "epochs": options.epochs,
                "evaluate_every": 2,
                "patience": 4,
                "checkpoint_seconds": 60.0,
            },
        },
    )
    chosen = [variant for variant in variants() if not options.only or variant.name in options.only]
    result = study(base, chosen, dataset, Path(options.out))
    command = "python -m experiments.attention_comparison " + shlex.join(sys.argv[1:])
    name = dataset.name.lower().replace(" ", "-")
    write(
        result,
        f"Attention mechanisms on {dataset.name}",
        command.strip(),
        Path(f"experiments/results/attention_{name}"),
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
