"""Commands for analyses of finished runs; see `jaxrec.analysis`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxrec.cli.common import emit, parse
from jaxrec.errors import ConfigError

Runs = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="RUN [RUN ...]", help="run directories; the first is the baseline"),
]


Data = Annotated[str, tyro.conf.arg(help="override the dataset path stored in the run")]


Latex = Annotated[bool, tyro.conf.arg(help="print LaTeX tables rather than Markdown")]


Json = Annotated[bool, tyro.conf.arg(help="print the result as one JSON object on the last line")]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Test the difference between runs: paired over users with seeds nested, corrected for several runs."""

    runs: Runs
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(help="metrics to compare")] = ("HR@10", "NDCG@10")
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="held-out part")] = "test"
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown, LaTeX and figures; default: none")] = ""
    data: Data = ""
    latex: Latex = False
    json: Json = False


def compare(arguments: list[str]) -> int:
    """Run ``jaxrec compare RUN RUN ...``; return the exit status."""
    options = parse(Compare, arguments, "compare")

    from jaxrec.analysis.compare import compare as compare_directories

    data = _moved(options.runs, options.data)
    comparison = compare_directories(options.runs, options.metrics, options.split, options.out or None, data)
    emit(
        {**dataclasses.asdict(comparison), "limits": comparison.limits() if comparison.differences else []},
        comparison.to_latex() if options.latex else comparison.to_markdown(),
        options.json,
    )
    return 0


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """Sort runs of one dataset by a metric, with intervals and the pairs that cannot be told apart."""

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help="run directories")
    ]
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(help="metrics; the first sorts and is tested")] = (
        "NDCG@10",
        "HR@10",
    )
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="held-out part")] = "test"
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown, LaTeX and figures; default: none")] = ""
    latex: Latex = False
    json: Json = False


def leaderboard(arguments: list[str]) -> int:
    """Run ``jaxrec leaderboard``; return the exit status."""
    options = parse(Leaderboard, arguments, "leaderboard")

    from jaxrec.analysis.leaderboard import leaderboard as leaderboard_of

    result = leaderboard_of(options.runs, options.metrics, options.split, options.out or None)
    text = _tables([result.rows()], latex=True) if options.latex else result.to_markdown()
    emit(result.to_dict(), text, options.json)
    return 0


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Rank by a next-item run, by a next-user run on the transposed log, and by both, weighted by validation."""

    items: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="run on the log")]
    users: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="USER-RUN", help="run on the log that jaxrec transpose saved"),
    ]
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="held-out part to rank")] = "test"
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(help="metrics to compare")] = ("HR@10", "NDCG@10")
    metric: Annotated[str, tyro.conf.arg(help="that chooses the weight; default: the validation metric")] = ""
    scale: Annotated[
        Literal["z-score", "log-softmax"], tyro.conf.arg(help="common scale of both models' scores, per user")
    ] = "z-score"
    popularity: Annotated[
        float,
        tyro.conf.arg(help="weight of an item's log share of interactions in the next-user model; 1 = Bayes"),
    ] = 0.0
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown, LaTeX and figures; default: none")] = ""
    data: Data = ""
    user_data: Annotated[str, tyro.conf.arg(help="override the dataset path stored in USER-RUN")] = ""
    json: Json = False


def ensemble(arguments: list[str]) -> int:
    """Run ``jaxrec ensemble RUN USER-RUN``; return the exit status."""
    options = parse(Ensemble, arguments, "ensemble")

    from jaxrec.analysis.duality import FILES, measure_duality
    from jaxrec.analysis.tables import check_free
    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.evaluation.metrics import check_metrics
    from jaxrec.runs import Run

    check_metrics(options.metrics)  # before both runs are ranked
    if options.out:
        check_free(options.out, FILES)
    enable_compilation_cache()
    result = measure_duality(
        Run(options.items, _moved((options.items,), options.data)),
        Run(options.users, _moved((options.users,), options.user_data)),
        options.split,
        metric=options.metric,
        scale=options.scale,
        popularity=options.popularity,
    )
    if options.out:
        result.write(options.out, options.metrics)
    differences = [
        dataclasses.asdict(difference) for difference in result.compare(options.metrics).differences
    ]
    emit({**result.to_dict(), "differences": differences}, result.to_markdown(options.metrics), options.json)
    return 0


@dataclasses.dataclass(frozen=True)
class Protocols:
    """Evaluate one run under every protocol in use, one choice changed at a time."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="run directory")]
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="held-out part")] = "test"
    negatives: Annotated[
        tuple[int, ...],
        tyro.conf.arg(
            help="numbers of sampled negatives, each drawn uniformly and by popularity; default: 99 both ways and 999 "
            "uniform"
        ),
    ] = ()
    ks: Annotated[
        tuple[int, ...], tyro.conf.arg(help="cutoffs of the metrics; default: those of the run")
    ] = ()
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown and LaTeX; default: none")] = ""
    data: Data = ""
    latex: Latex = False
    json: Json = False


def protocols(arguments: list[str]) -> int:
    """Run ``jaxrec protocols RUN``; return the exit status."""
    options = parse(Protocols, arguments, "protocols")

    from jaxrec.analysis.protocols import protocols as protocols_of

    study = protocols_of(
        options.run,
        options.split,
        _moved((options.run,), options.data),
        options.out or None,
        options.negatives,
        options.ks,
    )
    emit(
        {
            "protocols": study.results,
            "seeds": study.seeds,
            "targets": study.targets,
            "targets_in_history": study.repeated,
            "omitted": list(study.omitted),
        },
        _tables([study.rows()], options.latex) + (f"\n{study.note}" if study.note else ""),
        options.json,
    )
    return 0


@dataclasses.dataclass(frozen=True)
class Stability:
    """Measure how lists and ranks change when histories are perturbed: all seeds, paired between runs."""

    runs: Runs
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="length of the lists")] = 10
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="held-out part")] = "test"
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown, LaTeX and a figure; default: none")] = ""
    data: Data = ""
    latex: Latex = False
    json: Json = False


def stability(arguments: list[str]) -> int:
    """Run ``jaxrec stability RUN [RUN ...]``; return the exit status."""
    options = parse(Stability, arguments, "stability")

    from jaxrec.analysis.stability import stability as stability_of

    data = _moved(options.runs, options.data)
    study = stability_of(options.runs, options.split, options.k, options.out or None, data)
    notes = [] if options.latex else study.notes()
    emit(study.to_dict(), "\n".join([_tables(study.tables(), options.latex), *notes]), options.json)
    return 0


def _tables(tables: Sequence[tuple[list[str], list[list[Any]]]], latex: bool) -> str:
    from jaxrec.analysis.tables import to_latex, to_markdown

    return "\n".join((to_latex if latex else to_markdown)(*table) for table in tables)


def _moved(runs: Sequence[str], source: str) -> Any:
    """The dataset at another path, read with the options of the first run; None = the path stored in the run."""
    if not source or not runs:
        return None

    from jaxrec.runs import stored_dataset
    from jaxrec.training.run_directory import stored_config

    return stored_dataset(Path(runs[0]), stored_config(Path(runs[0])).data, source)


@dataclasses.dataclass(frozen=True)
class Attention:
    """List the attention mechanisms with options and papers, or draw the attention of a run for one history."""

    run: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[RUN]", help="run directory; without one, list the mechanisms"),
    ] = None
    history: Annotated[tuple[str, ...], tyro.conf.arg(help="original item ids, oldest first")] = ()
    out: Annotated[str, tyro.conf.arg(help="directory for the figures; default: RUN/figures")] = ""
    json: Json = False


def attention(arguments: list[str]) -> int:
    """Run ``jaxrec attention`` and ``jaxrec attention RUN --history ...``; return the exit status."""
    options = parse(Attention, arguments, "attention")
    if options.run is None:
        if options.history or options.out:
            raise ConfigError(
                "--history and --out belong to the figures of a run, got none: jaxrec attention RUN --history ITEM ITEM"
            )
        listed = mechanisms()
        lines = []
        for name, about in listed.items():
            lines += [f"{name}: {about['summary']}", f"  paper: {about['paper']}"]
            lines += [f"  --attention.{option} {default!r}" for option, default in about["options"].items()]
        emit({"mechanisms": listed}, "\n".join(lines), options.json)
        return 0

    from jaxrec.analysis.attention_maps import draw_attention

    figures = draw_attention(options.run, options.history, options.out or Path(options.run) / "figures")
    text = "\n".join(f"{caption}: {path}" for caption, path in figures)
    emit({"figures": {caption: str(path) for caption, path in figures}}, text, options.json)
    return 0


def mechanisms() -> dict[str, Any]:
    """Every registered mechanism: first sentence of its docstring, paper, options with defaults."""
    from jaxrec.attention import ATTENTION

    return {
        name: {
            "summary": (config.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
            "paper": getattr(config, "paper", ""),
            "options": {field.name.replace("_", "-"): field.default for field in dataclasses.fields(config)},
        }
        for name, config in ATTENTION.items()
    }
