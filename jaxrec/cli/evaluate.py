"""`jaxrec evaluate`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrec.cli.common import emit, parse
from jaxrec.cli.devices import shown_mesh
from jaxrec.errors import ConfigError


def evaluate(arguments: list[str]) -> int:
    """Run ``jaxrec evaluate``; return the exit status."""
    from jaxrec.serving.generation import GenerationConfig
    from jaxrec.sharding import MeshConfig
    from jaxrec.training.distributed import DistributedConfig, is_first, join
    from jaxrec.training.run_directory import stored_config

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Rank the held-out targets of a saved run again, from its checkpoint."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="run directory")]
        split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="held-out part to rank")] = "test"
        data: Annotated[str, tyro.conf.arg(help="override the dataset path stored in the run")] = ""
        ks: Annotated[
            tuple[int, ...], tyro.conf.arg(help="cutoffs of the metrics in place of those that the run has")
        ] = ()
        list_metrics_k: Annotated[
            int, tyro.conf.arg(help="also coverage, concentration, novelty and diversity of lists this long")
        ] = 0
        shuffle: Annotated[
            Literal["", "all", "all-but-last", "both"],
            tyro.conf.arg(
                help="rank again with shuffled histories, to measure the use of order: all interactions, all but the "
                "last, or both in turn"
            ),
        ] = ""
        retie: Annotated[
            int, tyro.conf.arg(help="evaluate so many random orders of each user's simultaneous interactions")
        ] = 0
        breakdown: Annotated[
            bool,
            tyro.conf.arg(
                help="divide the metric by history length, popularity, repetition, transition and time"
            ),
        ] = False
        personal: Annotated[
            bool,
            tyro.conf.arg(
                help="compare lists and futures of users with similar histories, and measure effective ranks by layer"
            ),
        ] = False
        check_metric: Annotated[
            str,
            tyro.conf.arg(
                help="metric of shuffle, retie, breakdown and personal; default: the validation metric"
            ),
        ] = ""
        out: Annotated[
            str,
            tyro.conf.arg(help="directory for tables and figures of shuffle, retie, breakdown and personal"),
        ] = ""
        steps: Annotated[
            int,
            tyro.conf.arg(
                help="also generate so many items after each history and measure every step; needs a split that holds "
                "out as many, such as leave-last-n"
            ),
        ] = 0
        generation: Annotated[GenerationConfig, tyro.conf.arg(help="choice of generated items")] = (
            GenerationConfig()
        )
        mesh: MeshConfig = MeshConfig()
        distributed: Annotated[DistributedConfig, tyro.conf.arg(help="how this process joins others")] = (
            DistributedConfig()
        )
        json: Annotated[bool, tyro.conf.arg(help="print the result as one JSON object")] = False

    options = parse(Evaluate, arguments, "evaluate")
    if options.steps and options.distributed.mode != "off":
        raise ConfigError(
            f"--steps generates on one device: expected --distributed.mode off, got {options.distributed.mode}; run it in "
            "one process"
        )
    mesh = options.mesh
    if options.distributed.mode == "off":
        mesh = shown_mesh(mesh)
    join(options.distributed)

    from jaxrec.analysis.checks import Checks
    from jaxrec.analysis.generation import generation_figure, generation_quality
    from jaxrec.analysis.tables import check_free, summary_cell, to_markdown, write_tables
    from jaxrec.api import evaluate
    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.evaluation.metrics import parse_metric
    from jaxrec.reporting.results import format_metrics
    from jaxrec.runs import Run, stored_dataset

    enable_compilation_cache()
    if options.steps < 0:
        raise ConfigError(f"--steps must be at least 0, got {options.steps}")
    if options.generation != GenerationConfig() and not options.steps:
        raise ConfigError("--generation.* chooses the items of --steps: expected --steps of 1 or more, got 0")
    checked = bool(options.shuffle or options.retie or options.breakdown or options.personal)
    if options.check_metric and not checked:
        parse_metric(options.check_metric)
        raise ConfigError(
            f"--check-metric {options.check_metric} is the metric of --shuffle, --retie, --breakdown and --personal: "
            "expected one of them, got none"
        )
    if options.out and not (checked or options.steps):
        raise ConfigError(
            f"--out {options.out} holds tables and figures of --shuffle, --retie, --breakdown, --personal and --steps: "
            "expected one of them, got none; --json prints the metrics for programs"
        )
    if options.out:
        stems = ["checks"] * checked + ["generation"] * bool(options.steps)
        check_free(options.out, [f"{stem}.{kind}" for stem in stems for kind in ("md", "tex")])
    config = stored_config(Path(options.run))
    dataset = stored_dataset(Path(options.run), config.data, options.data)
    checks = Checks(options.shuffle, options.retie, options.breakdown, options.check_metric, options.personal)
    quality = None
    if options.steps:
        quality = generation_quality(
            Run(options.run, dataset), options.steps, options.generation, options.split
        )
    result = evaluate(
        options.run,
        options.split,
        dataset,
        options.list_metrics_k or None,
        mesh,
        checks,
        options.out or None,
        options.ks,
    )
    tables = result.pop("check_tables", "")
    if not is_first():
        return 0
    message = f"{options.split}\n{format_metrics(result)}"
    for name, value in result.get("beyond_accuracy", {}).items():
        message += f"\n{name}: {summary_cell(value)}"
    message += f"\n\n{tables}" if tables else ""
    if quality is not None:
        result["generation"] = quality.to_dict()
        message += f"\n\n{to_markdown(*quality.rows())}\n{to_markdown(*quality.whole_rows())}"
        if options.out:
            tables = [quality.rows(), quality.whole_rows()]
            write_tables(
                options.out, "generation", tables, {"generation.png": generation_figure({"model": quality})}
            )
    emit(result, message, options.json)
    return 0
