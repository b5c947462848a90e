"""E2: what a model loses when it feeds back its own predictions, and whether training with them helps.

    python -m experiments.revisited.generation
    python -m experiments.revisited.generation --steps 5 --data path/to/LastFM.txt --out runs/generation-lastfm

The last ``steps`` items of each user are held out (leave-last-n). Every variant trains with the same budget and seeds, and
generates ``steps`` items after each history: `jaxrec.analysis.generation` has the measures. Writes
``experiments/results/generation-STEPS_<dataset>.{md,json,png}``; an interrupted study resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.differences import difference_table, paired_differences
from experiments.record import RESULTS, command_line, dataset_line, split_line, write_record
from experiments.variants import SharedSettings, Variant, plan_line, study
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.generation import GenerationQuality, generation_figure, generation_quality
from jaxrec.analysis.tables import to_markdown
from jaxrec.data.dataset import SequenceDataset
from jaxrec.models import GRU4RecConfig
from jaxrec.runs import Run
from jaxrec.serving.generation import GREEDY, GenerationConfig
from jaxrec.tasks import NextItemConfig

#: How items are chosen, by the name in the tables.
CHOICES = {
    "greedy": GREEDY,
    "planned": GenerationConfig(window="planned"),
    "draws": GenerationConfig("sample", top_k=50),
}


@dataclasses.dataclass(frozen=True)
class Options(SharedSettings):
    """Measure generated sequences.

    Attributes:
      steps: items held out of each user, and generated.
      exposures: shares of inputs that training replaces by predictions.
    """

    steps: int = 5
    exposures: tuple[float, ...] = (0.1, 0.25)
    out: str = "runs/generation"


def variants(options: Options) -> list[Variant]:
    """SASRec as preset first, then other positions, exposure to predictions, and a recurrent encoder."""
    exposed = [
        Variant(f"exposure {share:g}", {"task": NextItemConfig(exposure=share)})
        for share in options.exposures
    ]
    return [
        Variant("from the end", {}),
        Variant("from the start", {"batches": {"position_origin": "start"}}),
        Variant("rotary", {"encoder": {"positions": "rotary"}}),
        *exposed,
        Variant("gru4rec", {"encoder": GRU4RecConfig()}),
    ]


def main(options: Options) -> None:
    """Train, generate, and write the record."""
    rows = variants(options)
    chosen = options.chosen(rows)
    dataset = options.load()
    base = options.base({"split": {"strategy": "leave-last-n", "n": options.steps}})
    trained = {**study(base, chosen, dataset, Path(options.out)), "plan": options.plan(rows)}
    record(options, trained, measure(options, chosen, dataset), dataset.name)


def measure(
    options: Options, chosen: list[Variant], dataset: SequenceDataset
) -> dict[str, dict[str, GenerationQuality]]:
    """{variant: {choice: quality}} of the trained variants."""
    out: dict[str, dict[str, GenerationQuality]] = {}
    for variant in chosen:
        run = Run(Path(options.out) / variant.name.replace(" ", "-"), dataset)
        out[variant.name] = {
            name: generation_quality(run, options.steps, choice) for name, choice in CHOICES.items()
        }
    return out


def comparisons(qualities: dict[str, dict[str, GenerationQuality]]) -> list[dict[str, Any]]:
    """Paired differences over users and seeds, corrected over all of them (Holm).

    Of each variant: own items against true ones (mean NDCG@10 over the steps), the same where both miss the targets that
    the sequence holds before their step, and the generated sequence against one list of the same length (recall). Of each
    variant against the first: NDCG@10 after own items, and recall.
    """
    pairs: list[tuple[str, np.ndarray, np.ndarray]] = []
    first = next(iter(qualities.values()))["greedy"].values
    for name, by_choice in qualities.items():
        values = by_choice["greedy"].values
        pairs.append((f"{name}: own less true items, NDCG@10", values["true 10"], values["own 10"]))
        fair = values["true 10, early missed"]
        pairs.append((f"{name}: own less true items, early targets missed, NDCG@10", fair, values["own 10"]))
        pairs.append((f"{name}: sequence less one list, recall", values["list recall"], values["recall"]))
    same_models = {name for name, _, _ in pairs}
    for name, by_choice in itertools.islice(qualities.items(), 1, None):
        values = by_choice["greedy"].values
        pairs.append((f"{name} less the first variant, own NDCG@10", first["own 10"], values["own 10"]))
        pairs.append((f"{name} less the first variant, recall", first["recall"], values["recall"]))
    return paired_differences(pairs, same_models)


def record(
    options: Options,
    trained: dict[str, Any],
    qualities: dict[str, dict[str, GenerationQuality]],
    dataset: str,
) -> None:
    """Write tables, figure and everything measured."""
    name = f"generation-{options.steps}_{dataset.lower().replace(' ', '-')}"
    tests = comparisons(qualities)
    tables = []
    for variant, by_choice in qualities.items():
        for choice, quality in by_choice.items():
            steps, whole = to_markdown(*quality.rows()), to_markdown(*quality.whole_rows())
            tables.append(f"**{variant}, {choice}**\n\n{steps}\n\n{whole}")
    write_record(
        name,
        {
            **{
                key: trained[key]
                for key in ("plan", "dataset", "split", "protocol", "seeds", "versions", "hardware")
            },
            "trained": [
                {key: row[key] for key in ("name", "metrics", "training")} for row in trained["variants"]
            ],
            "generation": {
                variant: {choice: quality.to_dict() for choice, quality in by_choice.items()}
                for variant, by_choice in qualities.items()
            },
            "differences": tests,
        },
        title=f"Generated sequences of {options.steps} items on {dataset}",
        command=command_line("experiments.revisited.generation"),
        body=[
            *filter(None, [plan_line(trained["plan"])]),
            f"{dataset_line(trained['dataset'])} {split_line(trained['split'])}. Seeds {trained['seeds']}.",
            f"![Figure]({name}.png)",
            difference_table(tests),
            *tables,
        ],
    )
    greedy = {variant: by_choice["greedy"] for variant, by_choice in qualities.items()}
    save_figure(generation_figure(greedy), RESULTS / f"{name}.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
