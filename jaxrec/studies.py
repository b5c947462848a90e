"""Questions to ask of finished runs: is the difference real, what does the protocol do, how steady are the lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.batches import Batch
from jaxrec.data.dataset import SequenceDataset
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.compare import Comparison, compare_runs, load_run
from jaxrec.evaluation.encode import encode_histories
from jaxrec.evaluation.protocols import SIDE_BY_SIDE, side_by_side
from jaxrec.evaluation.seen import seen_items
from jaxrec.evaluation.significance import Effect
from jaxrec.evaluation.stability import Stability, compare_stability, measure_stability
from jaxrec.reporting.attention_figures import write_attention_figures
from jaxrec.reporting.comparison import effect_figure, save_figure, stability_figure
from jaxrec.serving.recommender import Recommender
from jaxrec.training.config import RunConfig, load_config
from jaxrec.training.loop import seed_params
from jaxrec.training.restore import restore_params
from jaxrec.training.setup import Setup, prepare
from jaxrec.training.step import Params


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """A saved run, ready to be asked.

    Attributes:
      path: its directory.
      setup: data, split, encoder, configuration.
      params: best parameters, every array with a leading axis of seeds.
    """

    path: Path
    setup: Setup
    params: Params

    @property
    def config(self) -> RunConfig:
        """The configuration that it was trained with."""
        return self.setup.config

    def of_seed(self, index: int) -> Params:
        """One seed's parameters."""
        return seed_params(self.params, index)


def open_run(run: str | Path, dataset: SequenceDataset | None = None) -> OpenRun:
    """Load a run's data and best parameters.

    Args:
      run: run directory.
      dataset: in place of the one that the run's configuration names; its fingerprint must be the same.

    Raises:
      ConfigError: no run there.
      CheckpointError: no usable checkpoint, or the dataset is another.
    """
    run = Path(run)
    setup = prepare(load_config(run / "config.json"), dataset)
    params = restore_params(run, setup.config, setup.encoder, None, fingerprint=setup.dataset.fingerprint)
    return OpenRun(run, setup, params)


def run_names(runs: Sequence[str | Path]) -> list[str]:
    """Short names of run directories: their last parts, or their paths where those would be the same."""
    names = [Path(run).name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def compare(
    runs: Sequence[str | Path],
    metrics: Sequence[str] = ("HR@10", "NDCG@10"),
    part: str = "test",
    out: str | Path | None = None,
) -> Comparison:
    """Every run against the first, paired over users, from the ranks that the runs saved.

    Args:
      runs: run directories of one dataset and split; the first is the baseline.
      metrics: what to compare.
      part: "test" or "valid".
      out: directory for ``comparison.md``, ``comparison.tex`` and ``effects.png``; None writes nothing.

    Raises:
      DataError: a run is unfinished, or runs are not comparable (fingerprint, split, protocol, users).
    """
    loaded = []
    for name, run in zip(run_names(runs), runs, strict=True):
        files = sorted(
            Path(run).glob(f"ranks/{part}_seed*.npz"), key=lambda file: int(file.stem.split("seed")[1])
        )
        if not files:
            raise DataError(f"no saved {part} ranks in {run}: expected the directory of a finished run")
        loaded.append(load_run(name, files))
    comparison = compare_runs(loaded, metrics)
    if out is not None:
        directory = _new_directory(out, ("comparison.md", "comparison.tex", "effects.png"))
        (directory / "comparison.md").write_text(comparison.to_markdown() + "\n")
        (directory / "comparison.tex").write_text(comparison.to_latex() + "\n")
        if comparison.differences:
            save_figure(effect_figure(comparison), directory / "effects.png")
    return comparison


def protocols(
    run: str | Path, part: str = "test", dataset: SequenceDataset | None = None
) -> list[dict[str, Any]]:
    """One model under every protocol in use: what each choice alone does to the number.

    Returns:
      For each protocol its name, metrics (mean over seeds), and the difference to the project's own.
    """
    opened = open_run(run, dataset)
    setup, cases = opened.setup, opened.setup.split.cases(part)
    rows_of_target = np.repeat(np.arange(len(cases.users)), np.diff(cases.target_offsets))
    seen = seen_items(cases, setup.dataset.items).select(rows_of_target)
    by_seed = []
    for index in range(len(opened.config.training.seeds)):
        params = opened.of_seed(index)
        hidden = encode_histories(
            setup.forward,
            params,
            setup.dataset.items,
            cases.history_starts,
            cases.history_stops,
            max_length=opened.config.batches.max_length,
            origin=opened.config.batches.origin,
            timestamps=setup.timestamps,
            users=cases.users,
        )[rows_of_target]
        candidates = [
            each
            for each in SIDE_BY_SIDE
            if each.kind == "full" or each.negatives < setup.dataset.n_items // 2
        ]
        by_seed.append(
            side_by_side(
                hidden,
                setup.encoder.item_table(params),
                cases.targets,
                seen,
                setup.split.item_counts,
                protocols=candidates,
                ks=opened.config.evaluation.ks,
            )
        )
    out = []
    for rows in zip(*by_seed, strict=True):
        means = {name: float(np.mean([row.metrics[name] for row in rows])) for name in rows[0].metrics}
        changes = {name: float(np.mean([row.difference[name] for row in rows])) for name in rows[0].metrics}
        out.append({"protocol": rows[0].name, "metrics": means, "difference": changes})
    return out


@dataclasses.dataclass(frozen=True)
class StabilityStudy:
    """Stability of several runs under the same perturbations.

    Attributes:
      runs: {name: one `Stability` a perturbation}, of each run's first seed.
      effects: {name: {perturbation: difference in rank-biased overlap to the first run}}, for all runs but the first.
    """

    runs: dict[str, list[Stability]]
    effects: dict[str, dict[str, Effect]]

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of a table."""
        header, rows = [], []
        for name, measured in self.runs.items():
            for each in measured:
                summary = each.summary()
                header = ["run", "perturbation", *summary]
                rows.append([name, each.perturbation.name, *summary.values()])
        return header, rows


def stability(
    runs: Sequence[str | Path], part: str = "test", k: int = 10, out: str | Path | None = None
) -> StabilityStudy:
    """How lists and ranks move when histories are perturbed, paired between runs.

    Args:
      runs: run directories of one dataset and split; the first is the baseline.
      part: "test" or "valid".
      k: length of the lists.
      out: directory for ``stability.png``; None writes nothing.

    Raises:
      DataError: runs of different datasets or splits.
    """
    if not runs:
        raise DataError("runs must hold at least one run directory, got none")
    measured: dict[str, list[Stability]] = {}
    first: OpenRun | None = None
    for name, run in zip(run_names(runs), runs, strict=True):
        opened = open_run(run)
        first = first or opened
        for what, a, b in (
            ("dataset", first.setup.dataset.fingerprint, opened.setup.dataset.fingerprint),
            ("split", dict(first.setup.split.options), dict(opened.setup.split.options)),
        ):
            if a != b:
                raise DataError(
                    f"runs must have the same {what}, but that of {name} differs from that of the first"
                )
        setup, params = opened.setup, opened.of_seed(0)
        measured[name] = measure_stability(
            setup.forward,
            setup.encoder.item_table(params),
            params,
            setup.split.cases(part),
            setup.dataset.items,
            max_length=opened.config.batches.max_length,
            origin=opened.config.batches.origin,
            k=k,
            timestamps=setup.timestamps,
        )
    base, *others = measured
    effects = {name: compare_stability(measured[base], measured[name]) for name in others}
    if out is not None:
        directory = _new_directory(out, ("stability.png",))
        save_figure(stability_figure(measured), directory / "stability.png")
    return StabilityStudy(measured, effects)


def draw_attention(
    run: str | Path, history: Sequence[Any], out: str | Path, seed: int | None = None
) -> list[tuple[str, Path]]:
    """Draw what a trained model attends to in one history, and its positional kernels where it has any.

    Args:
      run: run directory.
      history: original item ids, oldest first; unknown ids are passed over.
      out: directory for the figures.
      seed: which of the run's models; None = the first.

    Returns:
      (caption, file) of each figure.

    Raises:
      ConfigError: the history has no known item.
    """
    recommender = Recommender.load(run, seed)
    config, length = recommender.config, recommender.config.batches.max_length
    ids = recommender.items.item_indices(history)
    ids = ids[ids > 0][-length:]
    if not len(ids):
        raise ConfigError("history has no item of the catalogue: expected at least one known id")
    n = len(ids)
    row = np.zeros((1, length), np.int32)
    items, segments, positions = row.copy(), row.copy(), row.copy()
    items[0, :n], segments[0, :n] = ids, 1
    positions[0, :n] = np.arange(n) if config.batches.origin == "start" else np.arange(n)[::-1]
    batch = Batch(items, positions, segments, row, row.astype(np.float32), timestamps=row)
    titles = recommender.items.item_titles or recommender.items.item_ids
    return write_attention_figures(
        recommender.encoder, recommender.params, batch, [titles[i - 1] for i in ids], Path(out)
    )


def _new_directory(out: str | Path, files: Sequence[str]) -> Path:
    """Make ``out`` and refuse to replace any of ``files`` in it."""
    directory = Path(out)
    there = [name for name in files if (directory / name).exists()]
    if there:
        raise ConfigError(f"out: {directory} already holds {', '.join(there)}; choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    return directory
