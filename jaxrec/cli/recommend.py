"""`jaxrec recommend`, `jaxrec similar` and `jaxrec explain`."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import tyro

from jaxrec.cli.common import emit, parse, read_ids
from jaxrec.errors import ConfigError
from jaxrec.serving import Recommender
from jaxrec.serving.generation import GREEDY, GenerationConfig

_RUN = tyro.conf.arg(metavar="RUN", help="run directory")
_SEED = tyro.conf.arg(help="which of the run's models; default: the first")
_JSON = tyro.conf.arg(help="print the answer as one JSON object")


@dataclasses.dataclass(frozen=True)
class Recommend:
    """The next items for one history, for a file of histories, or for all users of the log, from a saved run."""

    run: Annotated[str, tyro.conf.Positional, _RUN]
    history: Annotated[tuple[str, ...] | None, tyro.conf.arg(help="original item ids, oldest first")] = None
    timestamps: Annotated[
        tuple[int, ...] | None, tyro.conf.arg(help="seconds since 1970 of each item of --history")
    ] = None
    user: Annotated[
        str | None,
        tyro.conf.arg(
            help="original id of the user of --history, for models with --encoder.user; default: a new user"
        ),
    ] = None
    all_users: Annotated[bool, tyro.conf.arg(help="rank for every user of the run's dataset, into --out")] = (
        False
    )
    histories: Annotated[
        str,
        tyro.conf.arg(
            help="rank for every row of this .parquet or .jsonl file, into --out: columns user, history and, where "
            "wanted, k, remove_seen, timestamps, exclude, allow, exclude_attributes, allow_attributes"
        ),
    ] = ""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="how many items")] = 10
    seed: Annotated[int | None, _SEED] = None
    keep_seen: Annotated[bool, tyro.conf.arg(help="allow items of the history in the answer")] = False
    exclude: Annotated[str, tyro.conf.arg(help="file of item ids that are no candidates, one per line")] = ""
    allow: Annotated[str, tyro.conf.arg(help="file of the only candidates, one item id per line")] = ""
    exclude_attributes: Annotated[
        tuple[str, ...], tyro.conf.arg(help="items with one of these attributes are no candidates")
    ] = ()
    allow_attributes: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(help="only items with one of these attributes are candidates")
    ] = None
    steps: Annotated[
        int,
        tyro.conf.arg(
            help="generate a sequence: append the answer to the history and ask again, so many times"
        ),
    ] = 0
    generation: Annotated[GenerationConfig, tyro.conf.arg(help="choice of generated items")] = GREEDY
    data: Annotated[
        str, tyro.conf.arg(help="of --all-users: where the run's dataset is, in place of the path in the run")
    ] = ""
    out: Annotated[str, tyro.conf.arg(help="directory of Parquet parts to write, as in recs.parquet")] = ""
    resume: Annotated[bool, tyro.conf.arg(help="continue --out where an interrupted command left it")] = False
    users_per_part: Annotated[int, tyro.conf.arg(help="users of a part, which are in memory at once")] = 8192
    ray_actors: Annotated[
        int, tyro.conf.arg(help="let that many Ray actors compute the parts (extra ray); 0 = this process")
    ] = 0
    json: Annotated[bool, _JSON] = False


def recommend(arguments: list[str]) -> int:
    """Run ``jaxrec recommend``; return the exit status."""
    options = parse(Recommend, arguments, "recommend")
    modes = [options.history is not None, options.all_users, bool(options.histories)]
    if sum(modes) != 1:
        raise ConfigError(
            "expected one of --history ITEMS, --histories FILE and --all-users, got "
            + ("none of them" if not any(modes) else "several")
        )
    if options.steps and options.history is None:
        raise ConfigError("--steps belongs to --history, got --all-users or --histories")
    if options.user is not None and options.history is None:
        raise ConfigError(
            "--user belongs to --history: got --all-users, which names every user, or --histories, whose file does"
        )
    if options.data and not options.all_users:
        raise ConfigError("--data is the log of --all-users: got --history or --histories, which need none")
    if options.generation != GREEDY and not options.steps:
        raise ConfigError("--generation.* chooses the items of --steps: expected --steps of 1 or more, got 0")
    return _recommend_one(options) if options.history is not None else _recommend_many(options)


def _recommend_one(options: Recommend) -> int:
    if (
        options.out
        or options.resume
        or options.ray_actors
        or options.users_per_part != Recommend.users_per_part
    ):
        raise ConfigError(
            "--out, --resume, --users-per-part and --ray-actors belong to --all-users and --histories, got --history; "
            "--json prints the answer for programs"
        )

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.serving import Request

    enable_compilation_cache()
    recommender = Recommender.load(options.run, options.seed)
    if options.steps:
        return _generate(options, recommender)
    request = Request(
        options.history or (),
        options.k,
        remove_seen=False if options.keep_seen else None,
        timestamps=options.timestamps,
        exclude=read_ids(options.exclude) if options.exclude else (),
        allow=read_ids(options.allow) if options.allow else None,
        exclude_attributes=options.exclude_attributes,
        allow_attributes=options.allow_attributes,
        user=options.user,
    )
    answer = recommender.answer([request])[0]
    _note_new_user(options.user, answer.known_user)
    if answer.unknown:
        print(f"jaxrec: ignored unknown items: {', '.join(answer.unknown)}", file=sys.stderr)
    if answer.popular:
        print(
            "jaxrec: no item of the history is known; these are the most popular items, with their numbers of training "
            "interactions",
            file=sys.stderr,
        )
    _note_fewer(len(answer.items), "-k", options.k)
    emit(dataclasses.asdict(answer), _item_lines(answer.items, answer.titles, answer.scores), options.json)
    return 0


def _note_new_user(user: str | None, known: bool | None) -> None:
    """Say on standard error that the model has no vector of a user that was named."""
    if user is not None and known is False:
        print(f"jaxrec: training had no user {user!r}; answered as a new user", file=sys.stderr)


def _note_fewer(found: int, option: str, wanted: int) -> None:
    """Say on standard error that an answer is shorter than what ``option`` asks for."""
    if found < wanted:
        print(
            f"jaxrec: {found} items, fewer than {option} {wanted}: the filters leave no more", file=sys.stderr
        )


def _generate(options: Recommend, recommender: Recommender) -> int:
    """Answer with a sequence of ``options.steps`` items."""
    if options.k != Recommend.k:
        raise ConfigError(
            f"-k is the length of a list of next items and --steps that of a sequence: got -k {options.k}"
        )
    answer = recommender.generate(
        [list(options.history or ())],
        options.steps,
        options.generation,
        remove_seen=False if options.keep_seen else None,
        timestamps=None if options.timestamps is None else [options.timestamps],
        exclude=read_ids(options.exclude) if options.exclude else (),
        allow=read_ids(options.allow) if options.allow else None,
        exclude_attributes=options.exclude_attributes,
        allow_attributes=options.allow_attributes,
        user=options.user,
    )[0]
    _note_new_user(options.user, recommender.knows(options.user))
    titles = answer.titles or [""] * len(answer.items)
    lines = [
        f"{step:>3}  {item:<12} {title}  ({score:.3f}, log-probability {probability:.3f})"
        for step, (item, title, score, probability) in enumerate(
            zip(answer.items, titles, answer.scores, answer.log_probabilities, strict=True), start=1
        )
    ]
    lines += [f"{beam.log_probability:9.3f}  {' '.join(beam.items)}" for beam in answer.beams or ()]
    if answer.unknown:
        print(f"jaxrec: ignored unknown items: {', '.join(answer.unknown)}", file=sys.stderr)
    if answer.popular:
        print(
            "jaxrec: no item of the history is known; the first item was chosen by popularity",
            file=sys.stderr,
        )
    _note_fewer(len(answer.items), "--steps", options.steps)
    emit(dataclasses.asdict(answer), "\n".join(lines), options.json)
    return 0


def _recommend_many(options: Recommend) -> int:
    if not options.out:
        raise ConfigError(
            "--all-users and --histories write Parquet parts: give --out, as in --out recs.parquet"
        )
    if options.timestamps is not None:
        raise ConfigError("--timestamps belongs to --history; a file of --histories has a column timestamps")

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.serving.bulk import BulkJob, run_bulk

    enable_compilation_cache()
    job = BulkJob(
        run=options.run,
        out=options.out,
        histories=options.histories,
        k=options.k,
        seed=options.seed,
        remove_seen=False if options.keep_seen else None,
        exclude=tuple(read_ids(options.exclude)) if options.exclude else (),
        allow=tuple(read_ids(options.allow)) if options.allow else None,
        exclude_attributes=options.exclude_attributes,
        allow_attributes=options.allow_attributes,
        users_per_part=options.users_per_part,
        data=options.data,
    )
    report_bulk(job, options.resume, options.ray_actors, options.json, run_bulk)
    return 0


def report_bulk(
    job: Any,
    resume: bool,
    ray_actors: int,
    as_json: bool,
    run_bulk: Callable[..., dict[str, Any]],
    others: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Run a bulk job with a progress bar, here or in Ray actors, and print its figures beside ``others``."""
    from tqdm import tqdm

    bars: list[tqdm] = []

    def progress(there: int, count: int) -> None:
        if not bars:  # after the options were checked, so that a refusal is one line
            bars.append(tqdm(unit=" parts", file=sys.stderr, disable=as_json, total=count, initial=there))
        bars[0].update(there - bars[0].n)

    try:
        if ray_actors:
            from jaxrec.serving.ray_job import run_on_ray

            figures = run_on_ray(job, resume, ray_actors)
        else:
            figures = run_bulk(job, resume, progress)
    finally:  # an error has a line of its own
        for bar in bars:
            bar.close()
    if figures.get("popular"):
        print(
            f"jaxrec: {figures['popular']:,} of {figures['users']:,} histories have no item of the catalogue; their lists "
            "are the most popular items",
            file=sys.stderr,
        )
    if not job.vectors and figures["candidates"] < job.k:
        print(
            f"jaxrec: lists have at most {figures['candidates']} items, fewer than -k {job.k}: the filters leave no more",
            file=sys.stderr,
        )
    rate = figures["users_per_second"]
    lines = [
        f"{figures['users']:,} users in {figures['parts']} parts in {figures['out']}"
        + ("; all parts were there" if rate is None else f"; {rate:,.0f} users/s"),
        f'next: polars.read_parquet("{figures["out"]}/part-*.parquet")',
    ]
    emit({**others, **figures}, "\n".join(lines), as_json)


@dataclasses.dataclass(frozen=True)
class Similar:
    """The items closest to one in the item table of a saved run."""

    run: Annotated[str, tyro.conf.Positional, _RUN]
    item: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ITEM", help="original item id")]
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="how many items")] = 10
    seed: Annotated[int | None, _SEED] = None
    json: Annotated[bool, _JSON] = False


def similar(arguments: list[str]) -> int:
    """Run ``jaxrec similar``; return the exit status."""
    options = parse(Similar, arguments, "similar")

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.serving.similar import SimilarItems

    enable_compilation_cache()
    answer = SimilarItems(Recommender.load(options.run, options.seed)).of([options.item], options.k)[0]
    emit(dataclasses.asdict(answer), _item_lines(answer.items, answer.titles, answer.scores), options.json)
    return 0


@dataclasses.dataclass(frozen=True)
class Explain:
    """The interactions of a history that move the score of an item: each is left out in turn and the item scored again."""

    run: Annotated[str, tyro.conf.Positional, _RUN]
    history: Annotated[tuple[str, ...], tyro.conf.arg(help="original item ids, oldest first")]
    item: Annotated[
        str, tyro.conf.arg(help="original id of the item to explain; default: the first of the list")
    ] = ""
    timestamps: Annotated[
        tuple[int, ...] | None, tyro.conf.arg(help="seconds since 1970 of each item of --history")
    ] = None
    user: Annotated[
        str | None,
        tyro.conf.arg(
            help="original id of the user of --history, for models with --encoder.user; default: a new user"
        ),
    ] = None
    seed: Annotated[int | None, _SEED] = None
    json: Annotated[bool, _JSON] = False


def explain(arguments: list[str]) -> int:
    """Run ``jaxrec explain``; return the exit status."""
    options = parse(Explain, arguments, "explain")

    from jaxrec.compilation import enable_compilation_cache
    from jaxrec.serving.explain import explain as explain_item

    enable_compilation_cache()
    recommender = Recommender.load(options.run, options.seed)
    answer = explain_item(
        recommender, options.history, options.item or None, options.timestamps, options.user
    )
    lines = [
        f"{answer.item} {answer.title or ''}  score {answer.score:.3f}, rank {answer.rank} of all items",
        "",
    ]
    lines.append("change of the score, and rank without it:")
    _note_new_user(options.user, recommender.knows(options.user))
    lines += [
        f"{reason.change:>+8.3f}  rank {reason.rank_without:>6}  {reason.item:<12} {reason.title or ''}"
        for reason in sorted(answer.reasons, key=lambda reason: -reason.change)
    ]
    if answer.unknown:
        print(f"jaxrec: ignored unknown items: {', '.join(answer.unknown)}", file=sys.stderr)
    emit(dataclasses.asdict(answer), "\n".join(lines), options.json)
    return 0


def _item_lines(items: list[str], titles: list[str] | None, scores: list[float]) -> str:
    names = titles or [""] * len(items)
    return "\n".join(
        f"{place:>3}  {item:<12} {title}  ({score:.3f})"
        for place, (item, title, score) in enumerate(zip(items, names, scores, strict=True), start=1)
    )
