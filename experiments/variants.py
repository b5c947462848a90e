"""Compare variants of one configuration fairly: same data, split, budget and seeds; chosen on validation; tested once.

A study is a list of variants, each with the candidate settings that its tuning budget allows. Every candidate trains
with the first seed and is judged on validation; the best trains with all seeds and is ranked on the test targets.
Differences to the first variant are paired over users, with seeds nested. A variant that is already in the output
directory is not trained again, so an interrupted study resumes where it stopped; its records name the missing variants.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure

from experiments.differences import difference_table, paired_differences
from experiments.record import RESULTS, command_line, dataset_line, named_data, split_line, write_record
from experiments.untrained import against_untrained, best_untrained, untrained_table
from jaxrec.analysis.beyond_accuracy import beyond_accuracy_of
from jaxrec.analysis.compare import Comparison, Difference, compare, effect_figure, saved_ranks
from jaxrec.analysis.figures import save_figure
from jaxrec.analysis.tables import mean_and_deviation, to_markdown
from jaxrec.api import fit
from jaxrec.config import RunConfig, config_hash, load_config, to_dict
from jaxrec.config import differences as changed_settings
from jaxrec.data import load_dataset
from jaxrec.data.dataset import SequenceDataset
from jaxrec.data.sampler import RowStream
from jaxrec.data.splits import Split, split_dataset
from jaxrec.presets import sasrec
from jaxrec.runs import Run
from jaxrec.training.logging import read_metrics
from jaxrec.training.loop import train

Settings = Mapping[str, Any]
#: Length of the lists whose coverage is reported.
LISTS = 10


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      name: in the table.
      sections: what differs from the base: {section: the whole section, or {field: value}}.
      candidates: tuning budget: further differences to choose from on validation; one = no tuning.
    """

    name: str
    sections: Settings
    candidates: Sequence[Settings] = ({},)


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Options of every study; a study adds those of its own tuning.

    Attributes:
      data: as for ``jaxrec train``, or a dataset of S3-Rec's archive as in s3rec_data.zip:LastFM.
      seeds: models for each variant.
      epochs: most epochs of each.
      patience: a model that has not improved on validation for so many evaluations, two epochs apart, has ended. With few
        users validation is noisy, and with few steps per epoch models are slow: both want more.
      out: run directories; an interrupted study resumes there.
      only: names of the variants to train; empty = all.
    """

    data: str = "movietweetings"
    seeds: int = 5
    epochs: float = 40.0
    patience: int = 4
    out: str = "runs/study"
    only: tuple[str, ...] = ()

    #: Options that say what is read and written, and decide about no figure.
    places: ClassVar[tuple[str, ...]] = ("data", "out", "only")

    def conduct(
        self,
        what: str,
        variants: Sequence[Variant],
        sections: Settings | None = None,
        *,
        metrics: Sequence[str] = ("HR@10", "NDCG@10"),
        tables: Callable[[dict[str, Any]], Sequence[str]] | None = None,
        figure: Callable[[dict[str, Any]], Figure] | None = None,
        title: str = "",
    ) -> None:
        """Train the preset "sasrec" in all ``variants``; write ``experiments/results/WHAT_<dataset>.{md,json,png}``.

        The records are written after each variant; until the last one they list the missing variants.

        Args:
          what: is compared: "attention" or "objectives".
          variants: all of the study; the first is what the others are compared with.
          sections: what differs from the preset in all of them.
          metrics: metrics to compare.
          tables: further Markdown of the record, from the result of `study`; it may add figures to the result.
          figure: figure of the record, from the result of `study`; None = the differences with their intervals.
          title: of the record; empty = ``what``.
        """
        chosen = self.chosen(variants)
        dataset = self.load()
        module = sys.modules[type(self).__module__].__spec__.name  # "__main__" when it is run as a script
        write_record_of = recorder(what, title or what.capitalize(), dataset, module, figure)

        def record(result: dict[str, Any]) -> None:
            """Write the record with its further tables."""
            result = {**result, "plan": self.plan(variants)}
            added = tables(result) if tables is not None else ()
            write_record_of({**result, "markdown": "\n\n".join([result["markdown"], *added])})

        study(self.base(sections), chosen, dataset, Path(self.out), metrics, record)

    def shared(self) -> Settings:
        """Changes of the preset by the options of the study, for all variants."""
        training = {
            "seeds": tuple(range(self.seeds)),
            "epochs": self.epochs,
            "evaluate_every": 2,
            "patience": self.patience,
            "checkpoint_seconds": 60.0,
        }
        return {"data": {"source": self.data}, "training": training}

    def base(self, sections: Settings | None = None) -> RunConfig:
        """Configuration that all variants share: the preset "sasrec" with the options of the study.

        Args:
          sections: what differs besides, as in `Variant`.
        """
        return apply(apply(sasrec(), self.shared()), sections or {})

    def load(self) -> SequenceDataset:
        """Load the data of the study: ``PATH``, or ``PATH/s3rec_data.zip:NAME`` for a dataset of S3-Rec's archive."""
        archive, _, name = self.data.rpartition(":")
        if archive.endswith(".zip") and name:
            return load_dataset(f"s3rec-{name.lower()}", archive=archive)
        return load_dataset(self.data)

    def chosen(self, variants: Sequence[Variant]) -> list[Variant]:
        """Variants that ``only`` names.

        Raises:
          SystemExit: it names one that the study lacks.
        """
        unknown = set(self.only) - {variant.name for variant in variants}
        if unknown:
            raise SystemExit(
                f"only: expected some of {', '.join(variant.name for variant in variants)}; got {sorted(unknown)}"
            )
        return [variant for variant in variants if not self.only or variant.name in self.only]

    def plan(self, variants: Sequence[Variant]) -> dict[str, Any]:
        """Variants, seeds and other options as the study was planned, and those that were asked for.

        Args:
          variants: all of the study.
        """
        options = {
            field.name: (field.default, getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in self.places
        }
        return {
            "variants": [variant.name for variant in variants],
            "left_out": [variant.name for variant in variants if self.only and variant.name not in self.only],
            "changed": {
                name: {"planned": planned, "ran": ran}
                for name, (planned, ran) in options.items()
                if planned != ran
            },
        }


@dataclasses.dataclass(frozen=True)
class SharedSettings(StudyOptions):
    """Options of a study whose variants have one learning rate and one dropout, without tuning.

    Attributes:
      learning_rate: the same for all.
      dropout: of the encoder, the same for all; attention weights keep theirs.
    """

    learning_rate: float = 1e-3
    dropout: float = 0.3

    def shared(self) -> Settings:
        """Changes of the preset by the options of the study, for all variants."""
        optimizer, encoder = {"learning_rate": self.learning_rate}, {"dropout": self.dropout}
        return {**super().shared(), "optimizer": optimizer, "encoder": encoder}


def apply(config: RunConfig, sections: Settings) -> RunConfig:
    """``config`` with sections (by dotted path) replaced, or fields of them."""
    for path, value in sections.items():
        fields = (
            {f"{path}.{name}": x for name, x in value.items()}
            if isinstance(value, Mapping)
            else {path: value}
        )
        config = config.updated(fields)
    return config


def steps_ratio(batches: Settings, reference: Settings, split: Split) -> float:
    """Epochs of ``batches`` with as many steps as one of ``reference``.

    Args:
      batches: options that differ from those of the preset "sasrec".
      reference: the same of what is compared with.
      split: of the data.
    """

    def rows(options: Settings) -> int:
        config = apply(sasrec(), {"batches": options}).batches
        return RowStream(split.train_starts, split.train_stops, config, seed=0).rows_per_epoch

    return rows(reference) / rows(batches)


def tuned(
    base: RunConfig, variant: Variant, dataset: SequenceDataset, log: Path
) -> tuple[RunConfig, list[dict[str, Any]]]:
    """The best candidate by validation with the first seed, and what each candidate reached."""
    configs = [apply(apply(base, variant.sections), candidate) for candidate in variant.candidates]
    if len(configs) == 1:
        return configs[0], []
    tried = []
    for candidate, config in zip(variant.candidates, configs, strict=True):
        file = log / f"{config_hash(config)}.json"
        if not file.exists():
            one = apply(config, {"training": {"seeds": base.training.seeds[:1]}})
            result = train(one, dataset, progress=False)
            file.write_text(json.dumps({"valid": result.valid[0].metrics[base.metric]}))
        tried.append({"candidate": _plain(candidate), **json.loads(file.read_text())})
    best = max(range(len(tried)), key=lambda i: tried[i]["valid"])
    return configs[best], tried


def _plain(candidate: Settings) -> dict[str, Any]:
    return {
        name: value if isinstance(value, Mapping) else dataclasses.asdict(value)
        for name, value in candidate.items()
    }


def study(
    base: RunConfig,
    variants: Sequence[Variant],
    dataset: SequenceDataset,
    out: Path,
    metrics: Sequence[str] = ("HR@10", "NDCG@10"),
    record: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train every variant under ``out`` and compare them with the first.

    Args:
      base: configuration that all variants share.
      variants: variants to train; the first is the reference.
      dataset: data of all variants.
      out: folder of the run directories.
      metrics: metrics to compare.
      record: called with the result so far after each newly trained variant but the first, with the names of those to come
        under "unfinished", and with the whole result at the end.

    Returns:
      The figures of the tables.
    """
    (out / "tuning").mkdir(parents=True, exist_ok=True)
    untrained = best_untrained(split_dataset(dataset, base.split), base)
    rows: list[dict[str, Any]] = []
    runs: list[Path] = []

    def result_without(unfinished: list[str]) -> dict[str, Any]:
        """Collect what is finished, beside the best way without training."""
        names = {row["name"]: run for row, run in zip(rows, runs, strict=True)}
        differences = against_untrained(names, untrained, base.metric)
        added = {"name": untrained.name, "metric": base.metric, "rows": differences}
        return {**_so_far(rows, runs, results, metrics, unfinished), "untrained": added}

    for number, variant in enumerate(variants, start=1):
        run = out / variant.name.replace(" ", "-")
        config, tried = tuned(base, variant, dataset, out / "tuning")
        new = train_once(dataset, config, run)
        results = json.loads((run / "results.json").read_text())
        runs.append(run)
        row = {
            "name": variant.name,
            "tried": tried,
            **{key: results[key] for key in ("metrics", "valid_metrics", "timing", "training")},
            "seed_epochs": epochs_of_seeds(run),
            "config": named_data(results["config"]),
            "lists": _lists(run, dataset),
            "commit": results["versions"].get("commit", "unknown"),
        }
        rows.append(row)
        print(
            f"{variant.name}: valid {results['valid_metrics'][base.metric]['mean']:.4f}, test "
            + ", ".join(f"{m} {value}" for m, value in zip(metrics, _values(results, metrics), strict=True))
            + f", {results['timing']['training_seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        if record is not None and new and 1 < number < len(variants):
            record(result_without([each.name for each in variants[number:]]))
    result = result_without([])
    if record is not None:
        record(result)
    return result


def train_once(dataset: SequenceDataset, config: RunConfig, run: Path) -> bool:
    """Train a run, from where it stopped if it did, unless it is finished; whether there was anything to train.

    Args:
      dataset: data of the run.
      config: of the run.
      run: run directory.

    Raises:
      SystemExit: the finished run has other settings.
    """
    if (run / "results.json").exists():
        refuse_other_settings(run, config)
        return False
    fit(dataset, config, run, resume=(run / "config.json").exists(), progress=False)
    return True


def refuse_other_settings(run: Path, config: RunConfig) -> None:
    """Check that a finished run has the settings of the study that finds it; paths of data may differ.

    Args:
      run: run directory.
      config: that the study would train.

    Raises:
      SystemExit: it has others, so that its row would have another budget than its neighbours.
    """
    changed = changed_settings(to_dict(load_config(run / "config.json")), to_dict(config))
    ignored = ("data.", "training.checkpoint_seconds", "training.init_from")
    changes = [
        f"{field}: trained with {saved!r}, now {given!r}"
        for field, (saved, given) in changed.items()
        if not field.startswith(ignored)
    ]
    if changes:
        raise SystemExit(
            f"{run} holds a finished run with other settings ({'; '.join(changes)}): repeat its command, choose another "
            "--out, or delete the run"
        )


def epochs_of_seeds(run: Path) -> list[float]:
    """Epochs that each seed of a finished run was trained: one that has ended early takes no part in later steps.

    Args:
      run: run directory.
    """
    training = json.loads((run / "results.json").read_text())["training"]
    last: dict[int, int] = {}
    for line in read_metrics(run / "log.jsonl"):
        for seed, loss in enumerate(line.get("loss", ())):
            if loss is not None:
                last[seed] = max(last.get(seed, 0), line["step"])
    return [step / training["steps"] * training["epochs"] for _, step in sorted(last.items())]


def _lists(run: Path, dataset: SequenceDataset) -> dict[str, dict[str, Any]]:
    """Coverage, concentration and novelty of a finished run's first `LISTS` items per user, cached beside the run."""
    file = run / f"lists_{LISTS}.json"
    if not file.exists():
        file.write_text(json.dumps(beyond_accuracy_of(Run(run, dataset), "test", LISTS)))
    return json.loads(file.read_text())


def _so_far(
    rows: list[dict[str, Any]],
    runs: list[Path],
    results: Mapping[str, Any],
    metrics: Sequence[str],
    unfinished: list[str],
) -> dict[str, Any]:
    if len(runs) > 1:
        comparison = compare(runs, metrics)
        text, differences, cases = comparison.to_markdown(), comparison.differences, comparison.users
    else:  # `StudyOptions.only` may name a single one
        text, differences = (
            to_markdown(["run", *metrics], [[rows[0]["name"], *_values(results, metrics)]]),
            (),
        )
        cases = 0
    return {
        "unfinished": unfinished,
        "cases": cases,
        "dataset": results["dataset"],
        "split": results["split"],
        "protocol": results["protocol"],
        "baselines": results["baselines"],
        "seeds": results["seeds"],
        # A study that was interrupted may have gone on with other code.
        "versions": {
            **results["versions"],
            "commit": " and ".join(dict.fromkeys(row["commit"] for row in rows)),
        },
        "hardware": results["hardware"],
        "variants": list(rows),
        "markdown": text,
        "differences": [dataclasses.asdict(each) for each in differences],
    }


def _values(results: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    return [mean_and_deviation(results["metrics"][metric]["values"]) for metric in metrics]


def recorder(
    what: str,
    title: str,
    dataset: SequenceDataset,
    module: str,
    figure: Callable[[dict[str, Any]], Figure] | None = None,
) -> Callable[[dict[str, Any]], None]:
    """`write` to ``experiments/results/WHAT_<dataset>``, as the result of the present command in ``module``."""
    return functools.partial(
        write,
        title=f"{title} on {dataset.name}",
        command=command_line(module),
        name=f"{what}_{dataset.name.lower().replace(' ', '-')}",
        figure=figure,
    )


def contrasts(
    out: Path | str, pairs: Sequence[tuple[str, str]], metrics: Sequence[str] = ("NDCG@10",)
) -> list[dict[str, Any]]:
    """Paired differences between finished variants of a study, corrected over all of them (Holm).

    Args:
      out: folder of the run directories.
      pairs: (a, b), names of variants; the difference is b less a.
      metrics: to compare.
    """
    runs = {name: Run(Path(out) / name.replace(" ", "-")) for name in dict.fromkeys(itertools.chain(*pairs))}
    ranks = {name: saved_ranks(name, run.ranks("test")) for name, run in runs.items()}
    asked = [(a, b, metric) for a, b in pairs for metric in metrics]
    rows = paired_differences(
        [
            (f"{b} less {a}, {metric}", ranks[a].values(metric), ranks[b].values(metric))
            for a, b, metric in asked
        ]
    )
    return [
        {"a": a, "b": b, "metric": metric, **row} for (a, b, metric), row in zip(asked, rows, strict=True)
    ]


def answers(
    out: Path | str,
    pairs: Sequence[tuple[str, str]],
    result: dict[str, Any],
    heading: str = "Pairs of rows, corrected over these:",
    metrics: Sequence[str] = ("NDCG@10",),
) -> list[str]:
    """Markdown of `contrasts` between those pairs whose variants are trained, which the result gets as "questions".

    Args:
      out: folder of the run directories.
      pairs: of all variants of the study.
      result: of `study` so far.
      heading: of the table.
      metrics: to compare.
    """
    names = {row["name"] for row in result["variants"]}
    asked = [pair for pair in pairs if set(pair) <= names]
    if not asked:
        return []
    result["questions"] = contrasts(out, asked, metrics)
    return [heading, difference_table(result["questions"])]


def effects(result: Mapping[str, Any], shown: Sequence[str] = ()) -> Figure:
    """Draw the differences of a study's result to its first variant.

    Args:
      result: of `study`.
      shown: metrics to draw; empty = all.
    """
    rows = [Difference(**each) for each in result["differences"]]
    rows = [row for row in rows if not shown or row.metric in shown]
    metrics = tuple(dict.fromkeys(row.metric for row in rows))
    return effect_figure(Comparison(metrics, {}, rows, result["cases"], result["protocol"], 0.95))


def plan_line(plan: Mapping[str, Any]) -> str:
    """The part of a plan that did not run, and the options that differ from it, in words; empty where all of it ran."""
    less: list[str] = []
    others: list[str] = []
    for name, change in plan["changed"].items():
        text = f"{name} {change['ran']} instead of {change['planned']}"
        (less if _is_less(name, **change) else others).append(text)
    if plan["left_out"]:
        less.append(f"without {'; '.join(plan['left_out'])}")
    sentences = []
    if less:
        sentences.append(f"**Less than planned** ({len(plan['variants'])} variants): {', '.join(less)}.")
    if others:
        sentences.append(f"Other options than the defaults: {', '.join(others)}.")
    return " ".join(sentences)


def _is_less(name: str, planned: Any, ran: Any) -> bool:
    """Whether a study with this option does less work: fewer seeds, epochs or values of a list."""
    if isinstance(planned, tuple):
        return set(ran) < set(planned)
    return (name == "seeds" or name.endswith("epochs")) and ran < planned


def write(
    result: dict[str, Any],
    title: str,
    command: str,
    name: str,
    folder: Path | str = RESULTS,
    figure: Callable[[dict[str, Any]], Figure] | None = None,
) -> None:
    """Write the record ``name`` of a study, with its figure."""
    tuning = [
        f"- {row['name']}: "
        + "; ".join(f"{json.dumps(t['candidate'])} {t['valid']:.4f}" for t in row["tried"])
        for row in result["variants"]
        if row["tried"]
    ]
    baselines = [
        f"- {name}: " + ", ".join(f"{metric} {values[metric]:.4f}" for metric in ("HR@10", "NDCG@10"))
        for name, values in result["baselines"].items()
    ]
    costs = []
    for row in result["variants"]:
        valid = row["valid_metrics"]["NDCG@10"]["mean"]
        covered = row["lists"][f"coverage@{LISTS}"]
        costs.append(
            f"| {row['name']} | {row['training']['parameters']:,} | {valid:.4f} | "
            f"{mean_and_deviation(covered['values'], 3)} |"
        )
    partial = (
        f"**Partial**: not trained yet: {', '.join(result['unfinished'])}. The command resumes the study."
        if result["unfinished"]
        else ""
    )
    seeds = f"Seeds {result['seeds']}."
    chosen = "Settings and stopping" if tuning else "Nothing was tuned; stopping"
    verb = "were" if tuning else "was"
    drawn = figure or (effects if result["differences"] else None)
    body = [
        partial,
        plan_line(result["plan"]) if "plan" in result else "",
        f"{dataset_line(result['dataset'])} {split_line(result['split'])}; {result['protocol']}. {seeds} {chosen} {verb} "
        "chosen on validation; test targets were ranked once.",
        result["markdown"],
        f"![Figure]({name}.png)" if drawn else "",
        "Without training:\n\n" + "\n".join(baselines),
        untrained_table(**result["untrained"]) if "untrained" in result else "",
        "\n".join(
            [
                f"| variant | parameters | validation NDCG@10 | coverage@{LISTS} |",
                "|---|---|---|---|",
                *costs,
            ]
        ),
        "Tuning (validation, first seed):\n\n" + "\n".join(tuning) if tuning else "",
    ]
    write_record(
        name, result, title=title, command=command, body=[part for part in body if part], folder=folder
    )
    if drawn:
        save_figure(drawn(result), Path(folder) / f"{name}.png")
