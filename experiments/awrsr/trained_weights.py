"""Attention weights before and after training: how concentrated, how far from uniform and from the first weights.

    python -m experiments.awrsr.trained_weights runs/attention-controls/awrsr-simple ... --record awrsr_trained_weights

Reads runs of softmax attention and its refinements, such as those of `experiments.studies.attention_controls`. The
histories are those that the test targets follow, cut to the model's length.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro

from experiments.record import command_line, dataset_line, write_record
from jaxrec.analysis.attention_maps import attention_weights, weight_statistics
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.data.batches import Batch, gather_batch
from jaxrec.data.packing import Sequences, pad
from jaxrec.runs import Run
from jaxrec.training.state import Params, initial_params

#: Statistics by column of the table; see `jaxrec.analysis.attention_maps.WeightStatistics`.
COLUMNS = {
    "entropy": "entropy (1 = uniform)",
    "from_uniform": "from uniform",
    "reach": "reach (1 = uniform)",
    "from_first": "from the first weights",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure attention weights of finished runs before and after training.

    Attributes:
      runs: directories of finished runs.
      histories: number of test histories, drawn evenly over the users.
      record: name of the record to write; empty = print only.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    histories: int = 512
    record: str = ""


def test_histories(run: Run, number: int) -> Batch:
    """Newest interactions before ``number`` test targets, evenly spread: arrays of [number, L]."""
    cases, batches = run.setup.split.test, run.config.batches
    chosen = np.unique(np.linspace(0, len(cases.users) - 1, number).astype(int))
    stops = cases.history_stops[chosen]
    starts = np.maximum(cases.history_starts[chosen], stops - batches.max_length)
    return gather_batch(
        pad(Sequences(starts, stops - starts, cases.users[chosen])),
        np.asarray(run.dataset.items),
        max_length=batches.max_length,
        position_origin=batches.position_origin,
        with_targets=False,
    )


def statistics(run: Run, params: Params, batch: Batch) -> dict[str, dict[str, float]]:
    """Means over histories and queries with more than one key: ``{layer: {statistic: value}}``."""
    return {
        layer: weight_statistics(
            sown["attention_weights"], np.asarray(batch.segments), sown.get("first_weights")
        ).means()
        for layer, sown in attention_weights(run.encoder, params, batch).items()
    }


def measure(run: Run, number: int) -> list[dict[str, Any]]:
    """One row per layer and moment, each statistic with its value per seed."""
    batch = test_histories(run, number)
    moments = {
        "before": [statistics(run, initial_params(run.task, jnp.uint32(seed)), batch) for seed in run.seeds],
        "after": [statistics(run, run.params(seed), batch) for seed in run.seeds],
    }
    return [
        {
            "run": run.name,
            "layer": layer,
            "moment": moment,
            **{name: [one[layer][name] for one in by_seed] for name in by_seed[0][layer]},
        }
        for moment, by_seed in moments.items()
        for layer in by_seed[0]
    ]


def main(options: Options) -> None:
    """Measure, print, and write the record."""
    runs = [Run(path) for path in options.runs]
    rows = [row for run in runs for row in measure(run, options.histories)]
    table = to_markdown(
        ["run", "layer", "training", *COLUMNS.values()],
        [
            [
                row["run"],
                row["layer"].removeprefix("layer_"),
                row["moment"],
                *(mean_and_deviation(row[name], 3) if name in row else "" for name in COLUMNS),
            ]
            for row in rows
        ],
    )
    print(table)
    if options.record:
        results = runs[0].results
        write_record(
            options.record,
            {"histories": options.histories, "rows": rows, "seeds": [list(run.seeds) for run in runs]},
            title="Attention weights before and after training",
            command=command_line(__spec__.name),
            body=[
                f"{dataset_line(results['dataset'])} {options.histories} test histories; means over queries with more "
                "than one key, ± standard deviation over seeds. Distances are total variations (0 to 1). Before: the "
                "initial parameters of the same seeds; after: the best by validation.",
                table,
            ],
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
