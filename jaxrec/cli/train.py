"""`jaxrec train`."""

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxrec.cli.common import emit, parse
from jaxrec.errors import JaxrecError


def _value_of(option: str, arguments: list[str], default: str) -> str:
    """The value of ``--option X`` or ``--option=X`` before the real parsing, which depends on it."""
    for index, argument in enumerate(arguments):
        if argument == f"--{option}" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"--{option}="):
            return argument.split("=", 1)[1]
    return default


def train(arguments: list[str]) -> int:
    from jaxrec.config import NAMED_SECTIONS, RunConfig, load_config
    from jaxrec.presets import PRESETS
    from jaxrec.training.distributed import DistributedConfig, is_first, join

    workdir = _value_of("workdir", arguments, "")
    resuming = "--resume" in arguments
    if resuming and "--overwrite" in arguments:
        raise JaxrecError(
            "--resume and --overwrite exclude each other: continue the run, or delete it and start anew"
        )
    if resuming and not workdir:
        raise JaxrecError("--resume needs --workdir: the directory of the run to continue")
    preset_name = _value_of("preset", arguments, "sasrec")
    base = load_config(Path(workdir) / "config.json") if resuming else PRESETS[preset_name]()
    for section, registry in NAMED_SECTIONS.items():
        present = registry.name_of(type(getattr(base, section)))
        chosen = _value_of(section, arguments, present)
        if chosen != present:
            shared = {
                field.name: getattr(getattr(base, section), field.name)
                for field in dataclasses.fields(registry[chosen])
                if field.name in {f.name for f in dataclasses.fields(getattr(base, section))}
            }
            base = dataclasses.replace(base, **{section: registry[chosen](**shared)})
    seeds = base.training.seeds

    @dataclasses.dataclass(frozen=True)
    class Train:
        """Train on interactions, rank the held-out targets, and write a run directory."""

        config: Annotated[RunConfig, tyro.conf.arg(name="")] = base
        preset: Annotated[str, tyro.conf.arg(help=f"starting configuration: {', '.join(PRESETS)}")] = (
            preset_name
        )
        source: Annotated[
            str,
            tyro.conf.arg(
                name="data", help="csv, tsv, parquet, arrow or text file, saved dataset, or movietweetings"
            ),
        ] = base.data.source
        workdir: Annotated[
            str, tyro.conf.arg(help="run directory; default: runs/ with the dataset and the time")
        ] = ""
        resume: Annotated[bool, tyro.conf.arg(help="continue the run in --workdir")] = False
        overwrite: Annotated[bool, tyro.conf.arg(help="delete a run that is already in --workdir")] = False
        encoder_name: Annotated[str, tyro.conf.arg(name="encoder", help=_choices("encoder"))] = _present(
            base, "encoder"
        )
        attention_name: Annotated[str, tyro.conf.arg(name="attention", help=_choices("attention"))] = (
            _present(base, "attention")
        )
        objective_name: Annotated[str, tyro.conf.arg(name="objective", help=_choices("objective"))] = (
            _present(base, "objective")
        )
        n_seeds: Annotated[
            int, tyro.conf.arg(name="seeds", help="number of models, with seeds 0, 1, ...")
        ] = len(seeds)
        distributed: Annotated[DistributedConfig, tyro.conf.arg(help="how this process joins others")] = (
            DistributedConfig()
        )
        quiet: Annotated[bool, tyro.conf.arg(help="no progress bar")] = False
        no_compile_cache: Annotated[
            bool,
            tyro.conf.arg(help="compile anew: neither read nor keep compiled programs in ~/.cache/jaxrec"),
        ] = False
        json: Annotated[bool, tyro.conf.arg(help="print the results as one JSON object on the last line")] = (
            False
        )

    given = parse(Train, arguments, "train")
    config = given.config
    if given.source != base.data.source:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=given.source))
    if given.n_seeds != len(seeds):
        training = dataclasses.replace(config.training, seeds=tuple(range(given.n_seeds)))
        config = dataclasses.replace(config, training=training)
    if given.distributed.mode != "off" and not given.workdir:
        raise JaxrecError("several processes need one --workdir, on a disk that all of them see")
    directory = Path(given.workdir) if given.workdir else _default_workdir(config.data.source)
    join(given.distributed)

    from jaxrec.api import fit
    from jaxrec.compilation import keep_compiled
    from jaxrec.reporting.results import format_metrics

    if not given.no_compile_cache:
        keep_compiled()
    run = fit(
        None, config, directory, resume=given.resume, overwrite=given.overwrite, progress=not given.quiet
    )
    if not is_first():
        return 0
    timing = run.results["timing"]
    told = (
        f"\n{format_metrics(run.results)}\n\n"
        f"training {timing['training_seconds']:.1f} s ({timing['interactions_per_second']:,.0f} interactions/s), "
        f"compiling {timing['compile_seconds']:.1f} s, evaluating {timing['evaluation_seconds']:.1f} s\n"
        f"everything is in {directory}: open {directory / 'report.html'}\n"
        f"next: jaxrec recommend {directory} --history ITEM ITEM -k 10"
    )
    emit({**run.results, "workdir": str(directory)}, told, given.json)
    return 0


def _choices(section: str) -> str:
    from jaxrec.config import NAMED_SECTIONS

    return ", ".join(NAMED_SECTIONS[section])


def _present(config: Any, section: str) -> str:
    from jaxrec.config import NAMED_SECTIONS

    return NAMED_SECTIONS[section].name_of(type(getattr(config, section)))


def _default_workdir(source: str) -> Path:
    name = Path(source).name.split(".")[0]
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
