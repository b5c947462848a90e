"""Trained models against the best way to rank without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.differences import difference_table, paired_differences
from jaxrec.analysis.compare import saved_ranks
from jaxrec.config import RunConfig
from jaxrec.data.splits import Split
from jaxrec.evaluation.baselines import evaluate_baselines
from jaxrec.evaluation.evaluate import Evaluation
from jaxrec.runs import Run


class Untrained(NamedTuple):
    """The way without training that validation chooses, and its ranks of the test targets."""

    name: str
    evaluation: Evaluation


def best_untrained(split: Split, config: RunConfig) -> Untrained:
    """Choose among `jaxrec.evaluation.baselines` by the validation metric of ``config``, and rank the test targets.

    Args:
      split: of the data.
      config: metric and protocol of the models that it is compared with.
    """
    valid = evaluate_baselines(split, "valid", config.evaluation)
    name = max(valid, key=lambda name: valid[name].metrics[config.metric])
    return Untrained(name, evaluate_baselines(split, "test", config.evaluation)[name])


def against_untrained(runs: Mapping[str, Path], untrained: Untrained, metric: str) -> list[dict[str, Any]]:
    """Paired differences of finished runs less ``untrained``, corrected over all of them (Holm).

    Args:
      runs: run directories by the names of their rows.
      untrained: see `best_untrained`.
      metric: to compare.

    Raises:
      ValueError: a run was evaluated on other users or targets.
    """
    values = untrained.evaluation.values(metric)
    pairs = []
    for name, run in runs.items():
        own = saved_ranks(name, Run(run).ranks("test"))
        if not np.array_equal(own.evaluations[0].targets, untrained.evaluation.targets):
            raise ValueError(f"{name}: expected the test targets of {untrained.name}, got others in {run}")
        pairs.append((f"{name} less {untrained.name}, {metric}", values[None], own.values(metric)))
    return paired_differences(pairs)


def untrained_table(name: str, metric: str, rows: list[dict[str, Any]]) -> str:
    """Markdown of `against_untrained`."""
    return (
        f"Against {name}, the best of these by validation {metric}; over users and seeds, corrected over all rows:"
        f"\n\n{difference_table(rows)}"
    )
