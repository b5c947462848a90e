"""Questions to ask of finished runs: is the difference real, what does the protocol do, how steady are the lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxrec.data.batches import Batch
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.splits import EvaluationCases, split_dataset
from jaxrec.errors import ConfigError, DataError
from jaxrec.evaluation.beyond import beyond_accuracy
from jaxrec.evaluation.compare import Comparison, compare_runs, load_run
from jaxrec.evaluation.encode import encode_histories
from jaxrec.evaluation.protocols import SIDE_BY_SIDE, side_by_side
from jaxrec.evaluation.scoring import top_k
from jaxrec.evaluation.seen import seen_items
from jaxrec.evaluation.significance import Effect
from jaxrec.evaluation.stability import Stability, compare_stability, measure_stability
from jaxrec.reporting.attention_figures import write_attention_figures
from jaxrec.reporting.comparison import effect_figure, group_figures, save_figure, stability_figure
from jaxrec.reporting.results import over_seeds
from jaxrec.reporting.written import new_directory, write_tables
from jaxrec.serving.recommender import Recommender
from jaxrec.training.config import RunConfig, load_config
from jaxrec.training.loop import seed_params
from jaxrec.training.mesh import MeshConfig
from jaxrec.training.restore import restore_params
from jaxrec.training.setup import Setup, prepare
from jaxrec.training.state import Params

#: What `compare` writes.
COMPARISON_FILES = (
    "comparison.md",
    "comparison.tex",
    "effects.png",
    "by_history_length.png",
    "by_popularity.png",
)


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

    def states(self, params: Params, cases: EvaluationCases) -> Array:
        """float32[E, D], what scores the next item of each case."""
        batches = self.config.batches
        return encode_histories(
            self.setup.forward,
            params,
            self.setup.dataset.items,
            cases.history_starts,
            cases.history_stops,
            max_length=batches.max_length,
            origin=batches.origin,
            timestamps=self.setup.timestamps,
            users=cases.users,
            resident=self.setup.host_log is None,
        )


def open_run(
    run: str | Path,
    dataset: SequenceDataset | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
) -> OpenRun:
    """Load a run's data and best parameters.

    Args:
      run: run directory.
      mesh: devices to work on, whatever those it was trained on.
      dataset: in place of the one that the run's configuration names; its fingerprint must be the same.

    Raises:
      ConfigError: no run there.
      CheckpointError: no usable checkpoint, or the dataset is another.
    """
    run = Path(run)
    config = dataclasses.replace(load_config(run / "config.json"), mesh=mesh)
    setup = prepare(config, dataset)
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
    dataset: SequenceDataset | None = None,
) -> Comparison:
    """Every run against the first, paired over users, from the ranks that the runs saved.

    Args:
      runs: run directories of one dataset and split; the first is the baseline.
      metrics: what to compare.
      part: "test" or "valid".
      out: directory for `COMPARISON_FILES`: tables, differences with intervals, and the last metric by history
        length and by popularity; None writes nothing.
      dataset: what the figures by group take lengths and counts from; None = what the first run's
        configuration names.

    Raises:
      DataError: fewer than two runs, a run is unfinished, or runs are not comparable (fingerprint, split,
        protocol, users).
    """
    if len(runs) < 2:
        raise DataError(f"runs must be two at least to be compared, got {len(runs)}")
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
        config = load_config(Path(runs[0]) / "config.json")
        dataset = config.data.load() if dataset is None else dataset
        fingerprint = loaded[0].meta["fingerprint"]
        if dataset.fingerprint != fingerprint:
            raise DataError(
                f"dataset must be the one of the runs, with fingerprint {fingerprint[:16]}, got one with "
                f"{dataset.fingerprint[:16]}: give the same file with the same filters"
            )
        figures = group_figures(
            {run.name: run.evaluations for run in loaded},
            split_dataset(dataset, config.split),
            part,
            metrics[-1],
        )
        directory = new_directory(out, COMPARISON_FILES)
        (directory / "comparison.md").write_text(comparison.to_markdown() + "\n")
        (directory / "comparison.tex").write_text(comparison.to_latex() + "\n")
        for name, figure in {"effects": effect_figure(comparison), **figures}.items():
            save_figure(figure, directory / f"{name}.png")
    return comparison


def beyond_accuracy_of(opened: OpenRun, part: str, k: int) -> dict[str, dict[str, Any]]:
    """What lists of ``k`` are like besides being right: mean, sd and values over the seeds of each measure.

    Seen items are left out as in the run's evaluation.

    Raises:
      ConfigError: ``k`` is below 1 or above the catalogue.
    """
    setup, cases = opened.setup, opened.setup.split.cases(part)
    dataset, found = setup.dataset, []
    seen = seen_items(cases, dataset.items) if opened.config.evaluation.remove_seen else None
    for index in range(len(opened.config.training.seeds)):
        params = opened.of_seed(index)
        lists = top_k(opened.states(params, cases), setup.encoder.item_table(params), k, seen)[1]
        found.append(beyond_accuracy(lists, setup.split.item_counts, dataset.n_users, dataset.attributes))
    return over_seeds(found)


@dataclasses.dataclass(frozen=True)
class ProtocolStudy:
    """One model under several protocols.

    Attributes:
      results: for each protocol its name, metrics (mean over seeds), and the difference to the project's own,
        which is the first.
      seeds: how many models the means are over.
    """

    results: list[dict[str, Any]]
    seeds: int

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of a table: value and, in brackets, what the choice does to it."""
        first = self.results[0]["metrics"]
        names = [name for name in first if name in ("HR@10", "NDCG@10", "MRR")] or list(first)
        rows = [
            [each["protocol"], *(f"{each['metrics'][n]:.4f} ({each['difference'][n]:+.4f})" for n in names)]
            for each in self.results
        ]
        return ["protocol", *names], rows


def protocols(
    run: str | Path,
    part: str = "test",
    dataset: SequenceDataset | None = None,
    out: str | Path | None = None,
) -> ProtocolStudy:
    """One model under every protocol in use: what each choice alone does to the number.

    Args:
      run: run directory.
      part: "test" or "valid".
      dataset: see `open_run`.
      out: directory for ``protocols.md`` and ``protocols.tex``; None writes nothing.
    """
    opened = open_run(run, dataset)
    setup, cases = opened.setup, opened.setup.split.cases(part)
    rows_of_target = np.repeat(np.arange(len(cases.users)), np.diff(cases.target_offsets))
    seen = seen_items(cases, setup.dataset.items).select(rows_of_target)
    by_seed = []
    for index in range(len(opened.config.training.seeds)):
        params = opened.of_seed(index)
        hidden = opened.states(params, cases)[rows_of_target]
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
    results = []
    for rows in zip(*by_seed, strict=True):
        means = {name: float(np.mean([row.metrics[name] for row in rows])) for name in rows[0].metrics}
        changes = {name: float(np.mean([row.difference[name] for row in rows])) for name in rows[0].metrics}
        results.append({"protocol": rows[0].name, "metrics": means, "difference": changes})
    study = ProtocolStudy(results, len(by_seed))
    if out is not None:
        write_tables(out, "protocols", [study.rows()])
    return study


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

    def effect_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: rank-biased overlap of each run minus that of the first."""
        base = next(iter(self.runs))
        rows = [
            [
                f"{name} - {base}",
                edit,
                f"{effect.difference:+.4f}",
                f"[{effect.low:+.4f}, {effect.high:+.4f}]",
                f"{effect.p_value:.4f}",
            ]
            for name, by_edit in self.effects.items()
            for edit, effect in by_edit.items()
        ]
        return ["rank-biased overlap", "perturbation", "difference", "95% interval", "p"], rows

    def tables(self) -> list[tuple[list[str], list[list[Any]]]]:
        """Both tables, or the first alone where there is one run."""
        return [self.rows(), self.effect_rows()] if self.effects else [self.rows()]


def stability(
    runs: Sequence[str | Path],
    part: str = "test",
    k: int = 10,
    out: str | Path | None = None,
    dataset: SequenceDataset | None = None,
) -> StabilityStudy:
    """How lists and ranks move when histories are perturbed, paired between runs.

    Args:
      runs: run directories of one dataset and split; the first is the baseline.
      part: "test" or "valid".
      k: length of the lists.
      out: directory for ``stability.md``, ``stability.tex`` and ``stability.png``; None writes nothing.
      dataset: see `open_run`.

    Raises:
      ConfigError: ``k`` is below 1 or above the catalogue.
      DataError: runs of different datasets or splits.
    """
    if not runs:
        raise DataError("runs must hold at least one run directory, got none")
    measured: dict[str, list[Stability]] = {}
    first: OpenRun | None = None
    for name, run in zip(run_names(runs), runs, strict=True):
        opened = open_run(run, dataset)
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
    study = StabilityStudy(measured, effects)
    if out is not None:
        write_tables(out, "stability", study.tables(), {"stability.png": stability_figure(measured)})
    return study


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
      DataError: the model needs the time of each interaction, which a list of items does not have.
    """
    recommender = Recommender.load(run, seed)
    config, length = recommender.config, recommender.config.batches.max_length
    if recommender.needs_times:
        raise DataError(
            "this model needs the time of each interaction (positions 'time-interval'), and a history of item ids has "
            "none: build a Batch with timestamps and call jaxrec.reporting.attention_figures.write_attention_figures"
        )
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
