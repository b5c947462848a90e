"""The command line: every command is a call that a script could make."""

# Annotations are evaluated here, not deferred: tyro reads the options of `train` from a class made at run time.

import dataclasses
import datetime
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxrec.cli_common import emit, parse
from jaxrec.errors import Interrupted, JaxrecError

COMMANDS = {
    "train": "train on interactions, rank the held-out targets, write a run directory",
    "evaluate": "rank the held-out targets of a saved run again",
    "recommend": "the next items for one history, from a saved run",
    "audit": "what in a log of interactions makes results fragile",
    "prepare": "read a log once and save it as memory-mapped arrays",
    "compare": "is the difference between runs real? paired tests over users and seeds",
    "protocols": "one run under every evaluation protocol in use",
    "stability": "how far lists move when histories are perturbed",
    "attention": "list the attention mechanisms, or draw what a run attends to",
}
STUDIES = ("compare", "protocols", "stability", "attention")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 for an error told in words, 128 + signal after an interruption."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        from jaxrec import __version__

        print(f"jaxrec {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"jaxrec: unknown command {command!r}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        if command in STUDIES:
            from jaxrec import cli_studies

            return getattr(cli_studies, command)(rest)
        return globals()[f"_{command}"](rest)
    except Interrupted as interruption:
        print(f"jaxrec: {interruption}", file=sys.stderr)
        return 128 + interruption.signal_number
    except JaxrecError as error:
        print(f"jaxrec: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jaxrec: interrupted before anything was saved", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (as in `jaxrec ... | head`); nothing is wrong with the run.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A full disk, a directory without permission, a file that vanished.
        print(f"jaxrec: {error}; check the path, the permissions and the free space", file=sys.stderr)
        return 1


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    return (
        "usage: jaxrec COMMAND [OPTIONS]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\n`jaxrec COMMAND --help` lists the options."
    )


def _value_of(option: str, arguments: list[str], default: str) -> str:
    """The value of ``--option X`` or ``--option=X`` before the real parsing, which depends on it."""
    for index, argument in enumerate(arguments):
        if argument == f"--{option}" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"--{option}="):
            return argument.split("=", 1)[1]
    return default


def _train(arguments: list[str]) -> int:
    from jaxrec.presets import PRESETS
    from jaxrec.training.config import NAMED_SECTIONS, RunConfig, load_config
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
    from jaxrec.training.config import NAMED_SECTIONS

    return ", ".join(NAMED_SECTIONS[section])


def _present(config: Any, section: str) -> str:
    from jaxrec.training.config import NAMED_SECTIONS

    return NAMED_SECTIONS[section].name_of(type(getattr(config, section)))


def _default_workdir(source: str) -> Path:
    name = Path(source).name.split(".")[0]
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _evaluate(arguments: list[str]) -> int:
    from jaxrec.training.config import load_config
    from jaxrec.training.distributed import DistributedConfig, is_first, join
    from jaxrec.training.mesh import MeshConfig

    @dataclasses.dataclass(frozen=True)
    class Evaluate:
        """Rank the held-out targets of a saved run again, from its checkpoint."""

        run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="run directory")]
        split: Annotated[Literal["valid", "test"], tyro.conf.arg(help="which held-out part")] = "test"
        data: Annotated[str, tyro.conf.arg(help="the same data in another place; default: where it was")] = ""
        beyond: Annotated[
            int, tyro.conf.arg(help="also coverage, concentration, novelty and diversity of lists this long")
        ] = 0
        mesh: MeshConfig = MeshConfig()
        distributed: Annotated[DistributedConfig, tyro.conf.arg(help="how this process joins others")] = (
            DistributedConfig()
        )
        json: Annotated[bool, tyro.conf.arg(help="print the result as one JSON object")] = False

    given = parse(Evaluate, arguments, "evaluate")
    join(given.distributed)

    from jaxrec.api import evaluate
    from jaxrec.compilation import keep_compiled
    from jaxrec.reporting.results import format_metrics

    keep_compiled()
    config = load_config(Path(given.run) / "config.json")
    if given.data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=given.data))
    result = evaluate(given.run, given.split, config.data.load(), given.beyond or None, given.mesh)
    if not is_first():
        return 0
    told = f"{given.split}\n{format_metrics(result)}"
    for name, value in result.get("beyond_accuracy", {}).items():
        spread = "" if value["sd"] is None else f" ± {value['sd']:.4f}"
        told += f"\n{name}: {value['mean']:.4f}{spread}"
    emit(result, told, given.json)
    return 0


@dataclasses.dataclass(frozen=True)
class Recommend:
    """The next items for one history, from a saved run."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="run directory")]
    history: Annotated[tuple[str, ...], tyro.conf.arg(help="original item ids, oldest first")]
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="how many items")] = 10
    seed: Annotated[int | None, tyro.conf.arg(help="which of the run's models; default: the first")] = None
    keep_seen: Annotated[bool, tyro.conf.arg(help="allow items of the history in the answer")] = False
    json: Annotated[bool, tyro.conf.arg(help="print the answer as one JSON object")] = False


def _recommend(arguments: list[str]) -> int:
    given = parse(Recommend, arguments, "recommend")

    from jaxrec.compilation import keep_compiled
    from jaxrec.serving import Recommender

    keep_compiled()
    recommender = Recommender.load(given.run, given.seed)
    remove_seen = False if given.keep_seen else None
    answer = recommender.recommend([list(given.history)], given.k, remove_seen=remove_seen)[0]
    titles = answer.titles or [""] * len(answer.items)
    lines = [
        f"{place:>3}  {item:<12} {title}  ({score:.3f})"
        for place, (item, title, score) in enumerate(
            zip(answer.items, titles, answer.scores, strict=True), start=1
        )
    ]
    if answer.unknown:
        note = f"jaxrec: not in the catalogue, passed over: {', '.join(answer.unknown)}"
        if len(answer.unknown) == len(given.history):
            note += "; nothing of the history is known, so this is what the model answers to an empty one"
        print(note, file=sys.stderr)
    emit(dataclasses.asdict(answer), "\n".join(lines), given.json)
    return 0


@dataclasses.dataclass(frozen=True)
class _Source:
    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(help="csv, tsv, parquet, arrow or text file, or saved dataset"),
    ]
    user_column: Annotated[str, tyro.conf.arg(help="default: recognised by the usual names")] = ""
    item_column: Annotated[str, tyro.conf.arg(help="default: recognised by the usual names")] = ""
    time_column: Annotated[str, tyro.conf.arg(help="default: recognised by the usual names")] = ""
    first_of_pair: Annotated[
        bool, tyro.conf.arg(help="keep only the first interaction of a user with an item")
    ] = False
    filter: Annotated[
        Literal["none", "k-core", "one-pass"], tyro.conf.arg(help="drop rare users and items")
    ] = "none"
    min_interactions: Annotated[int, tyro.conf.arg(help="of a user and of an item, for the filter")] = 5

    def load(self) -> Any:
        from jaxrec.training.config import DataConfig

        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(_Source)
            if field.name != "data"
        }
        return DataConfig(source=self.data, **options).load()


@dataclasses.dataclass(frozen=True)
class Audit(_Source):
    """What in a log of interactions makes results fragile: ties in time, duplicates, leaks, short users."""

    json: Annotated[bool, tyro.conf.arg(help="print the findings as one JSON object")] = False


def _audit(arguments: list[str]) -> int:
    given = parse(Audit, arguments, "audit")

    from jaxrec.data import audit

    findings = audit(given.load())
    emit(findings.to_dict(), str(findings), given.json)
    return 0


@dataclasses.dataclass(frozen=True)
class Prepare(_Source):
    """Read a log once and save it as memory-mapped arrays, which open at once."""

    out: Annotated[str, tyro.conf.arg(help="directory to write; must be new or empty")] = "dataset"
    json: Annotated[bool, tyro.conf.arg(help="print the summary as one JSON object")] = False


def _prepare(arguments: list[str]) -> int:
    given = parse(Prepare, arguments, "prepare")
    dataset = given.load()
    dataset.save(given.out)
    summary = {
        "directory": given.out,
        "fingerprint": dataset.fingerprint,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": dataset.n_interactions,
    }
    text = (
        f"{dataset.n_users:,} users, {dataset.n_items:,} items, {dataset.n_interactions:,} interactions "
        f"saved in {given.out}\n"
        f"next: jaxrec train --data {given.out}"
    )
    emit(summary, text, given.json)
    return 0
