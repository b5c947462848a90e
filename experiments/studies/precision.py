"""Accuracy and speed of bfloat16 products against float32 ones, on one dataset, over seeds.

    python -m experiments.studies.precision
    python -m experiments.studies.precision --data path/to/ml-1m.txt.gz --preset sasrec-ml1m --out runs/precision-ml1m

In both, parameters, optimiser, sums, norms, log-sum-exp and the scores that rank are float32; only operands of matrix
products differ. A CPU rounds these operands too, in attention as elsewhere, and multiplies the rounded numbers in float32
but for two products of the loss: accuracy there is that of bfloat16 products, speed is not. Nothing is tuned. Rates are
measured separately, in interleaved rounds, so that they hold on a busy machine. An interrupted study resumes where it
stopped. Writes ``experiments/results/precision_<dataset>.{md,json}``.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.benchmarks import training_speed
from experiments.variants import Variant, apply, recorder, study
from jaxrec.data import load_dataset
from jaxrec.data.dataset import SequenceDataset
from jaxrec.presets import PRESETS

ON_A_CPU = (
    "On a CPU the operands of every product, those of attention included, are rounded to bfloat16 and multiplied in "
    "float32, but for two products of the loss: the accuracy is that of bfloat16 products, the speed is not."
)
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare precisions.

    Attributes:
      data: as for ``jaxrec train``.
      preset: starting configuration.
      seeds: models for each precision.
      epochs: most epochs of each; 0 = the preset's.
      rounds: rounds of the rate measurement; 0 = leave it out.
      steps: steps per round.
      out: run directories; an interrupted study resumes there.
    """

    data: str = "movietweetings"
    preset: str = "sasrec"
    seeds: int = 5
    epochs: float = 0.0
    rounds: int = 5
    steps: int = 20
    out: str = "runs/precision"


def rates(options: Options, dataset: SequenceDataset) -> dict[str, Any]:
    """Real interactions per second of each precision, as medians over interleaved rounds."""
    trials = {}
    for dtype in DTYPES:
        chosen = training_speed.Options(options.data, options.preset, dtype=dtype, steps=options.steps)
        mode = training_speed.configuration(chosen).batches.mode
        trials[dtype] = training_speed.Trial(chosen, mode, dataset)
    for _ in range(options.rounds):
        for trial in trials.values():
            trial.round()
    ratios = [a / b for a, b in zip(trials["float32"].seconds, trials["bfloat16"].seconds, strict=True)]
    return {
        "interactions_per_second": {
            dtype: statistics.median(t / s for t, s in zip(trial.targets, trial.seconds, strict=True))
            for dtype, trial in trials.items()
        },
        "bfloat16_over_float32": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "rounds": options.rounds,
        "steps": options.steps,
    }


def main(options: Options) -> None:
    """Run the study and write its tables."""
    dataset = load_dataset(options.data)
    training = {"seeds": tuple(range(options.seeds))}
    if options.epochs:
        training["epochs"] = options.epochs
    base = apply(PRESETS[options.preset](), {"data": {"source": options.data}, "training": training})
    variants = [
        Variant(dtype, {"encoder": {"dtype": dtype}, "objective": {"dtype": dtype}}) for dtype in DTYPES
    ]
    result = study(base, variants, dataset, Path(options.out))
    if jax.default_backend() == "cpu":
        result["markdown"] += f"\n{ON_A_CPU}\n"
    if options.rounds:
        result["rate"] = rates(options, dataset)
        each = result["rate"]["interactions_per_second"]
        result["markdown"] += (
            f"\nRate, measured in turns ({options.rounds} rounds of {options.steps} steps): float32 "
            f"{each['float32']:,.0f}, bfloat16 {each['bfloat16']:,.0f} real interactions/s; bfloat16 runs at "
            f"{result['rate']['bfloat16_over_float32']:.2f} times the speed "
            f"({result['rate']['least']:.2f} to {result['rate']['most']:.2f})."
        )
    recorder("precision", "bfloat16 against float32", dataset, __spec__.name)(result)


if __name__ == "__main__":
    main(tyro.cli(Options))
