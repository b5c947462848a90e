"""Commands that ask questions of finished runs; see `jaxrec.training.runs`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxrec.cli.common import emit, parse

Runs = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="RUN [RUN ...]", help="run directories; the first is the baseline"),
]


Data = Annotated[str, tyro.conf.arg(help="the same data in another place; default: where it was")]


Latex = Annotated[bool, tyro.conf.arg(help="print LaTeX tables rather than Markdown")]


Json = Annotated[bool, tyro.conf.arg(help="print the result as one JSON object on the last line")]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Is the difference between runs real? Paired over users, seeds nested, corrected for several runs."""

    runs: Runs
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(help="what to compare")] = ("HR@10", "NDCG@10")
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="which held-out part")] = "test"
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown, LaTeX and figures; default: none")] = ""
    data: Annotated[
        str, tyro.conf.arg(help="for the figures, the same data in another place; default: where it was")
    ] = ""
    latex: Latex = False
    json: Json = False


def compare(arguments: list[str]) -> int:
    """``jaxrec compare RUN RUN ...``"""
    given = parse(Compare, arguments, "compare")

    from jaxrec.analysis.compare import compare as compare_directories

    data = _moved(given.runs, given.data)
    comparison = compare_directories(given.runs, given.metrics, given.split, given.out or None, data)
    emit(
        {**dataclasses.asdict(comparison), "limits": comparison.limits() if comparison.differences else []},
        comparison.to_latex() if given.latex else comparison.to_markdown(),
        given.json,
    )
    return 0


@dataclasses.dataclass(frozen=True)
class Protocols:
    """One run under every evaluation protocol in use: what each choice alone does to the number."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="run directory")]
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="which held-out part")] = "test"
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown and LaTeX; default: none")] = ""
    data: Data = ""
    latex: Latex = False
    json: Json = False


def protocols(arguments: list[str]) -> int:
    """``jaxrec protocols RUN``"""
    given = parse(Protocols, arguments, "protocols")

    from jaxrec.analysis.protocols import protocols as protocols_of

    study = protocols_of(given.run, given.split, _moved((given.run,), given.data), given.out or None)
    emit({"protocols": study.results, "seeds": study.seeds}, _tables([study.rows()], given.latex), given.json)
    return 0


@dataclasses.dataclass(frozen=True)
class StabilityForm:
    """How far do lists and ranks move when histories are perturbed? Paired between runs."""

    runs: Runs
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="length of the lists")] = 10
    split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="which held-out part")] = "test"
    out: Annotated[str, tyro.conf.arg(help="directory for Markdown, LaTeX and a figure; default: none")] = ""
    data: Data = ""
    latex: Latex = False
    json: Json = False


def stability(arguments: list[str]) -> int:
    """``jaxrec stability RUN [RUN ...]``"""
    given = parse(StabilityForm, arguments, "stability")

    from jaxrec.analysis.stability import stability as stability_of

    data = _moved(given.runs, given.data)
    study = stability_of(given.runs, given.split, given.k, given.out or None, data)
    effects = {
        name: {edit: effect._asdict() for edit, effect in by_edit.items()}
        for name, by_edit in study.effects.items()
    }
    summaries = {
        name: {each.perturbation.name: each.summary() for each in m} for name, m in study.runs.items()
    }
    emit({"runs": summaries, "effects": effects}, _tables(study.tables(), given.latex), given.json)
    return 0


def _tables(tables: Sequence[tuple[list[str], list[list[Any]]]], latex: bool) -> str:
    from jaxrec.analysis.tables import to_latex, to_markdown

    return "\n".join((to_latex if latex else to_markdown)(*table) for table in tables)


def _moved(runs: Sequence[str], source: str) -> Any:
    """The dataset in another place, read as the first run's configuration says; None = where it was."""
    if not source or not runs:
        return None

    from jaxrec.config import load_config

    return dataclasses.replace(load_config(Path(runs[0]) / "config.json").data, source=source).load()


@dataclasses.dataclass(frozen=True)
class Attention:
    """List the attention mechanisms with options and papers; or draw what a run attends to in one history."""

    run: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(help="run directory; without one, list the mechanisms"),
    ] = None
    history: Annotated[tuple[str, ...], tyro.conf.arg(help="original item ids, oldest first")] = ()
    out: Annotated[str, tyro.conf.arg(help="directory for the figures; default: RUN/figures")] = ""
    json: Json = False


def attention(arguments: list[str]) -> int:
    """``jaxrec attention`` and ``jaxrec attention RUN --history ...``"""
    given = parse(Attention, arguments, "attention")
    if given.run is None:
        listed = mechanisms()
        lines = []
        for name, about in listed.items():
            lines += [f"{name}: {about['summary']}", f"  paper: {about['paper']}"]
            lines += [f"  --attention.{option} {default!r}" for option, default in about["options"].items()]
        emit({"mechanisms": listed}, "\n".join(lines), given.json)
        return 0

    from jaxrec.analysis.attention_maps import draw_attention

    figures = draw_attention(given.run, given.history, given.out or Path(given.run) / "figures")
    text = "\n".join(f"{caption}: {path}" for caption, path in figures)
    emit({"figures": {caption: str(path) for caption, path in figures}}, text, given.json)
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
